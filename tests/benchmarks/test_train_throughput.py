"""The benchmark against sentence-transformers: its arithmetic by hand, and both sides in small with real processes."""

from typing import Any

import pytest

from benchmarks.compare import summarize
from benchmarks.sides import Case, distinct
from benchmarks.train_throughput import result_of

from .conftest import smoke

CASE = Case("docstrings_256", "", "", 256, batch=10, steps=3)


def measured(seconds: list[float], **facts: float) -> list[dict[str, float]]:
    return [{"seconds": taken, "tokens": 80, "computed": 100, "padded": 160, "flops": 4e9} | facts for taken in seconds]


def test_ratios_by_hand() -> None:
    sides: dict[str, dict[str, Any]] = {"ours": {"peak_gib": 2.0}, "theirs": {"peak_gib": 4.0, "loss": "plain"}}
    found = summarize(CASE, {"ours": measured([1.0, 2.0]), "theirs": measured([4.0, 6.0])}, sides)
    assert found["ratio"] == pytest.approx((4 + 3) / 2), "of the same step, then the median"
    assert found["ours"]["padding"] == pytest.approx(0.2)
    assert found["theirs"]["padding_of_plain"] == pytest.approx(0.5)
    assert found["ours"]["pairs_per_s"] == pytest.approx(10 / 1.5)
    result = result_of({"docstrings_256": found}, rate=1e10)
    assert result["ratio_docstrings_256"] == found["ratio"]
    assert result["memory_ratio"] == 0.5
    assert result["gemm_fraction"] == pytest.approx((4e9 + 2e9) / 2 / 1e10)
    assert result["ratio_bound"] == pytest.approx(1e10 / 4e8 / (10 / 5.0))


def test_sides_that_did_other_work_are_not_compared() -> None:
    sides: dict[str, dict[str, Any]] = {"ours": {}, "theirs": {"loss": "plain"}}
    with pytest.raises(AssertionError, match="counted other tokens"):
        summarize(CASE, {"ours": measured([1.0]), "theirs": measured([1.0], tokens=79)}, sides)


def test_no_text_stands_in_two_pairs() -> None:
    assert distinct([("a", "b"), ("c", "b"), ("a", "d"), ("e", "e"), ("f", "g")]) == [("a", "b"), ("f", "g")]


def test_both_sides_run_and_count_the_same_tokens() -> None:
    result = smoke("train_throughput", timeout=280)
    assert result["ratio_docstrings_256"] > 0
    assert result["memory_ratio"] > 0
    theirs = result["cases"]["docstrings_256"]["theirs"]
    assert len(theirs["search_s"]) == 8
    assert (theirs["attention"], theirs["optimizer"]) == ("sdpa", "AdamW, fused")

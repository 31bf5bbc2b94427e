"""The mining benchmark, in small."""

from pathlib import Path

import pytest

from benchmarks.mine import measure


def test_both_sides_mine_as_many_and_as_hard_negatives(eyas_data: Path) -> None:
    found = measure(eyas_data, rows=500, rounds=1, seeds=1, documents=300)
    assert found["time_ratio"] > 0
    assert 0 < found["memory_ratio"] < 1
    assert found["rows_full"]["ours"] == pytest.approx(found["rows_full"]["peer"], rel=0.1)
    assert found["mean_score"]["ours"] == pytest.approx(found["mean_score"]["peer"], abs=0.02)
    nearest = found["false_negative_share_nearest"]
    assert nearest["ours"] == pytest.approx(nearest["peer"], abs=0.02), "the nearest are the same on both sides"

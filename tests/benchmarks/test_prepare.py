"""The preparation benchmark, in small."""

from pathlib import Path

from benchmarks.prepare import measure, peak_of_short_pairs


def test_what_is_planted_is_found(eyas_data: Path) -> None:
    found = measure(eyas_data, 6_000)
    assert found["rows_per_s"] > 0
    assert found["near_dup_planted"] > 20
    assert found["near_dup_recall"] >= 0.95
    assert found["near_dup_precision"] >= 0.99
    assert found["near_dup_decoys_dropped"] == 0
    assert found["contamination_planted"] > 5
    assert found["contamination_found"] == 1


def test_memory_of_short_pairs_is_measured(eyas_data: Path) -> None:
    assert peak_of_short_pairs(eyas_data, 300) > 50e6

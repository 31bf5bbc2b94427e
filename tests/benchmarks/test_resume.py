"""The benchmark that kills runs, in small."""

from pathlib import Path

from benchmarks.resume import measure


def test_killed_runs_end_where_the_undisturbed_one_does(tmp_path: Path) -> None:
    result = measure(tmp_path, kills=3, steps=20, seed=0)
    assert result["identical"]
    assert result["kills"] == sum(result["moments"].values()) == 3

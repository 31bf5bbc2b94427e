"""The benchmark of starts, in small."""

import sys
from pathlib import Path

import pytest

from benchmarks.launch import measure, seconds_to_line


@pytest.mark.timeout(900)
def test_both_come_to_their_first_step(tmp_path: Path) -> None:
    result = measure(tmp_path, rounds=1, pairs=64)
    assert result["overhead_s"] == result["warm_s"] - result["accelerate_launch_s"]
    assert min(result["cold_s"], result["warm_s"], result["accelerate_launch_s"]) > 0
    assert (tmp_path / "runs" / "cold" / "model" / "model.safetensors").is_file()


def test_a_command_that_takes_no_step_is_an_error_with_what_it_said(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "print('no step today')"]
    with pytest.raises(RuntimeError, match="no step today"):
        seconds_to_line(words, tmp_path, tmp_path / "log")

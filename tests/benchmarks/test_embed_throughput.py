"""The throughput benchmark of the pass at its smallest size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_it_runs_and_both_sides_give_the_same_vectors() -> None:
    command = [sys.executable, "-m", "benchmarks.embed_throughput", "--smoke"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["difference"] <= 1e-4
    assert result["key_bytes"] == 16
    rates = ("ratio", "gemm_fraction", "write_gbps", "disk_gbps", "read_gbps", "read_rows")
    rates += ("distill_overhead", "teacher_overhead")
    assert all(result[key] > 0 for key in rates)

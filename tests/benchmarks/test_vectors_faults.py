"""The fault benchmark at its smallest size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_no_fault_loses_or_changes_a_vector() -> None:
    command = [sys.executable, "-m", "benchmarks.vectors_faults", "--smoke"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["kills"], result["lost"], result["wrong"]) == (2, 0, 0)
    assert result["damaged_found"] == 2

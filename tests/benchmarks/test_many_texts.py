"""The benchmark of a pass over very many texts at its smallest size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_memory_is_counted_and_every_vector_is_there() -> None:
    command = [sys.executable, "-m", "benchmarks.many_texts", "--smoke"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["texts"] == 20_000
    assert 0 < result["peak_gib"] < 4
    assert result["index_bytes_per_text"] == 16

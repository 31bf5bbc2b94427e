"""The GPU benchmark of the pass: it refuses without a GPU, and its code runs small on any device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_embed", *words]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_refuses_without_a_gpu() -> None:
    done = run()
    assert done.returncode == 2
    assert "needs a CUDA GPU" in done.stderr
    assert not done.stdout


def test_it_runs_small() -> None:
    done = run("--smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(json.loads(done.stdout.splitlines()[-1])["models"]) == {"27b", "0.6b"}

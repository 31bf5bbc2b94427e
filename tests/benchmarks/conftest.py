"""What the tests of benchmarks share: a benchmark run small, as a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def smoke(name: str, *words: str, timeout: float | None = None) -> dict[str, Any]:
    """The JSON line of `python -m benchmarks.NAME --smoke`, which must end well."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--smoke", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))

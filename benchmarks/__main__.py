"""`python -m benchmarks`: every benchmark at its default size, one after another; each prints one JSON line last."""

import pkgutil
import subprocess
import sys
from pathlib import Path

HELPERS = {"__main__", "common", "pairs", "processes", "eval_peers", "eval_sets"}


def main() -> int:
    """Run them all; the exit code counts those that failed or refused (no GPU, no EYAS_DATA)."""
    folder = Path(__file__).parent
    names = sorted(module.name for module in pkgutil.iter_modules([str(folder)]) if module.name not in HELPERS)
    failed = 0
    for name in names:
        print(f"== benchmarks.{name}", flush=True)
        failed += subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode != 0
    print(f"{len(names) - failed} of {len(names)} benchmarks ran")
    return failed


if __name__ == "__main__":
    sys.exit(main())

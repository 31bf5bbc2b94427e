"""`python -m benchmarks [--save]`: every benchmark at its default size, one after another; one JSON line each."""

import pkgutil
import subprocess
import sys
from pathlib import Path

from benchmarks.common import arguments

HELPERS = {
    "__main__",
    "common",
    "recipes",
    "pairs",
    "processes",
    "sides",
    "steps",
    "compare",
    "outcomes",
    "eval_peers",
    "eval_sets",
    "mine_sides",
    "st_distill",
    "versus_peer",
    "versus_seeds",
}


def names() -> list[str]:
    """Every benchmark."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(module.name for module in modules if module.name not in HELPERS)


def main() -> int:
    """Run them all; the exit code counts those that failed or refused (no GPU, no EYAS_DATA)."""
    given = arguments(__doc__).parse_args()
    failed, every = 0, names()
    for name in every:
        print(f"== benchmarks.{name}", flush=True)
        words = [sys.executable, "-m", f"benchmarks.{name}", *(["--save"] if given.save else [])]
        failed += subprocess.run(words, check=False).returncode != 0
    print(f"{len(every) - failed} of {len(every)} benchmarks ran")
    return failed


if __name__ == "__main__":
    sys.exit(main())

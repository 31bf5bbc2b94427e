"""`python -m benchmarks [--save]`: every benchmark at its default size, one after another; one JSON line each.

But for those that train at full length, over hours: they are named at the end.
"""

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
    "eval_peers",
    "eval_sets",
    "mine_sides",
    "st_distill",
}
LONG = {"decoder", "retention", "versus_st"}
"""Hours each."""


def names() -> list[str]:
    """Every benchmark."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(module.name for module in modules if module.name not in HELPERS)


def main() -> int:
    """Run them all; the exit code counts those that failed or refused (no GPU, no EYAS_DATA)."""
    given = arguments(__doc__).parse_args()
    failed, short = 0, [name for name in names() if name not in LONG]
    for name in short:
        print(f"== benchmarks.{name}", flush=True)
        words = [sys.executable, "-m", f"benchmarks.{name}", *(["--save"] if given.save else [])]
        failed += subprocess.run(words, check=False).returncode != 0
    print(f"{len(short) - failed} of {len(short)} benchmarks ran; left out, hours each: {', '.join(sorted(LONG))}")
    return failed


if __name__ == "__main__":
    sys.exit(main())

"""What every benchmark shares: its options, the machine and its matrix rate, the JSON line at the end.

options = arguments(__doc__)
options.add_argument("--smoke", action="store_true", help="…")
given = options.parse_args()
…
report({"benchmark": "NAME", …}, save=given.save)
"""

import argparse
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from embedding.files import write_json
from embedding.machine import processor

PACKAGES = ("torch", "transformers", "sentence-transformers", "accelerate", "numpy")
GEMM_SIZES = (1_024, 1_536, 2_048, 3_072, 4_096)
RESULTS = Path(__file__).parent / "results"
"""What `--save` writes and the repository keeps; README.md there says what a file holds."""


class Options(argparse.ArgumentParser):
    """argparse with `--save`, which is refused together with `--smoke`: that measures nothing."""

    def __init__(self, description: str) -> None:
        """`description`: the benchmark's own docstring."""
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--save", action="store_true", help="also write the result to benchmarks/results/NAME.json")

    def parse_args(self, *words: Any, **more: Any) -> Any:
        """The options given."""
        given = super().parse_args(*words, **more)
        if given.save and getattr(given, "smoke", False):
            self.error("--smoke measures nothing worth keeping; leave out --save")
        return given


def arguments(description: str | None) -> Options:
    """The options that every benchmark has."""
    return Options(description or "")


def machine() -> dict[str, Any]:
    """Processor, cores, threads, versions and the commit that was measured."""
    facts: dict[str, Any] = {
        "processor": processor(),
        "cores": torch.multiprocessing.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "commit": _commit(),
    }
    if torch.cuda.is_available():
        facts["device"] = torch.cuda.get_device_name()
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = None
    return facts


def matrix_rate(
    sizes: tuple[int, ...] = GEMM_SIZES,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seconds: float = 0.5,
) -> float:
    """The best rate, in FLOP/s, of a square matrix product over `sizes`, each repeated for about `seconds`.

    A product of two n x n matrices counts 2 n^3 operations. What is reported is the best single product: the ceiling
    that this process sees, not an average over other people's load.
    """
    best = 0.0
    for size in sizes:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        _timed_product(a, b)
        until = time.perf_counter() + seconds
        while True:
            best = max(best, 2 * size**3 / _timed_product(a, b))
            if time.perf_counter() > until:
                break
    return best


def _timed_product(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    torch.mm(a, b)
    if a.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def report(result: dict[str, Any], *, save: bool = False, name: str | None = None) -> None:
    """Print a result as the last line of a benchmark, with the machine it was measured on.

    `save`: also write it to `benchmarks/results/NAME.json`, NAME being `result["benchmark"]` if not given, with the
    command and the day; to NAME_quick.json where `full` is there and false, beside what `--full` gave. A result of a
    changed checkout is written too; the plus at its commit says so.
    """
    whole = {**result, "machine": machine()}
    if save:
        command = shlex.join(["python", "-m", f"benchmarks.{result['benchmark']}", *sys.argv[1:]])
        path = saved_path(name or result["benchmark"], full=result.get("full", True))
        write_json(path, json.loads(json.dumps({**whole, "command": command, "day": today()}, default=_rounded)))
        say(f"saved {path.relative_to(RESULTS.parents[1])}")
    print(json.dumps(whole, default=_rounded), flush=True)


def saved_path(benchmark: str, *, full: bool = True) -> Path:
    """Where `report` saves a result."""
    return RESULTS / f"{benchmark}{'' if full else '_quick'}.json"


def say(text: str) -> None:
    """One line of progress."""
    print(text, flush=True)


def today() -> str:
    """The day, UTC."""
    return datetime.now(UTC).date().isoformat()


def _rounded(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"cannot report a {type(value).__name__}")


def _commit() -> str:
    """The commit of this checkout, with a plus where files other than results changed; "" outside of one."""

    def ask(*words: str) -> str:
        git = ["git", "-C", str(RESULTS.parents[1]), *words]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = ask("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/results")
        return ask("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""

"""What every benchmark shares: facts of the machine, its measured matrix rate, and the JSON line at the end."""

import importlib.metadata
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "sentence-transformers", "accelerate", "numpy")
GEMM_SIZES = (1_024, 1_536, 2_048, 3_072, 4_096)


def machine() -> dict[str, Any]:
    """Processor, cores, threads, versions and the commit that was measured."""
    facts: dict[str, Any] = {
        "processor": _processor(),
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


def report(result: dict[str, Any]) -> None:
    """Print a result as the last line of a benchmark, with the machine it was measured on."""
    print(json.dumps({**result, "machine": machine()}, default=_rounded), flush=True)


def say(text: str) -> None:
    """One line of progress."""
    print(text, flush=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"cannot report a {type(value).__name__}")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit of this checkout, with a plus where it has changes; "" outside of one."""
    folder = Path(__file__).parent
    try:
        words = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""

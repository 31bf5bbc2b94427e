"""How much memory there is; the C allocator, told to keep what it has; and what a device holds after it ran out of
memory, given up."""

import ctypes
import gc
import sys
from pathlib import Path

import psutil
import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""
KEEP_BYTES = 2**31 - 1
LARGE_BYTES = 2**30
CGROUP = Path("/sys/fs/cgroup")
"""Where Linux's control groups, version 2, say what a container or a Slurm job may use (kernel.org, cgroup-v2)."""


def keep_freed_memory() -> bool:
    """Have glibc reuse freed memory rather than hand it back to the kernel; whether that was possible.

    A step allocates and frees tensors of many megabytes. By default each of them is a fresh mapping whose pages the
    kernel must clear again: on two cores that was a tenth of the time of encoding. Call it before the work begins.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    return bool(libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)) and bool(libc.mallopt(M_TRIM_THRESHOLD, KEEP_BYTES))


def available_memory() -> float:
    """Bytes of this machine that can still be had, or of the control group of this process, if that has less."""
    free = float(psutil.virtual_memory().available)
    try:
        own = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
    except OSError:  # not Linux
        return free
    for folder in (CGROUP / own, *(CGROUP / own).parents):
        if not folder.is_relative_to(CGROUP):
            break
        try:
            names = ("memory.max", "memory.current", "memory.stat")
            limit, used, parts = ((folder / name).read_text().strip() for name in names)
        except OSError:  # the topmost has no limit, version 1 no such files
            continue
        if limit != "max":
            cache = dict(line.split(" ", 1) for line in parts.splitlines()).get("inactive_file", "0")
            free = min(free, float(limit) - float(used) + float(cache))  # files in memory make room when asked
    return max(free, 0.0)


def drop_garbage() -> None:
    """Free what a step that ran out of memory left behind; call it when the exception is gone.

    A graph that broke off half-way lies in reference cycles until Python looks for them, and PyTorch's allocator keeps
    what was freed in pieces of the sizes that did not fit.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

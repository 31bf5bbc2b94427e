"""The C allocator, told to keep what it has; and what a device holds after it ran out of memory, given up."""

import ctypes
import gc
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""
KEEP_BYTES = 2**31 - 1
LARGE_BYTES = 2**30


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


def drop_garbage() -> None:
    """Free what a step that ran out of memory left behind; call it when the exception is gone.

    A graph that broke off half-way lies in reference cycles until Python looks for them, and PyTorch's allocator keeps
    what was freed in pieces of the sizes that did not fit.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

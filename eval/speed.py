"""How fast a model encodes and how much memory that takes, on texts of three lengths."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import torch

from eval.preserve import evaluation_mode, preserved_random_state

LENGTHS = (16, 64, 256)
"""Tokens of a text: a question, a short answer, a page's paragraph."""
TOKENS = {"cpu": 2_048, "cuda": 65_536}
"""Tokens encoded in one round of a length: enough to fill a device, little enough for an evaluation's end."""
ROUNDS, ENOUGH = 3, 0.5
"""Rounds of a length at most, and the seconds after which there is no further one: a slow model is measured once."""
LOOK_EVERY = 0.02
"""Seconds between two looks at the memory of a process without a GPU."""


def measure(model: Any) -> dict[str, float]:
    """`texts/s, N tokens` at three lengths (the best of some rounds), and `peak MiB` while encoding.

    A length above the model's limit is left out. The texts are random ids of the model's vocabulary, the same for
    every model with that vocabulary: only their number counts. On CUDA the peak is what torch held at most; else it is
    what the process held beyond what it held before, the model's weights excluded.
    """
    vocabulary = int(model.backbone.config.vocab_size)
    found: dict[str, float] = {}
    with preserved_random_state(), evaluation_mode(model), _peak(found, model.device):
        for length in LENGTHS:
            if length > model.max_tokens:
                continue
            count = max(2, TOKENS.get(model.device.type, 16_384) // length)
            rows = list(np.random.default_rng(0).integers(0, vocabulary, (count, length), dtype=np.int32))
            model.encode_ids(rows[:2])
            found[f"texts/s, {length} tokens"] = round(count / _seconds(model, rows), 1)
    return found


def _seconds(model: Any, rows: list[np.ndarray]) -> float:
    """The best of a few rounds."""
    taken: list[float] = []
    while len(taken) < ROUNDS and sum(taken) < ENOUGH:
        start = time.perf_counter()
        model.encode_ids(rows)  # ends with the vectors on the CPU, so a GPU is done too
        taken.append(time.perf_counter() - start)
    return min(taken)


@contextmanager
def _peak(found: dict[str, float], device: torch.device) -> Iterator[None]:
    """Note the peak of memory within the block as `peak MiB`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield
        found["peak MiB"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
        return
    process, most, done = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def look() -> None:
        while not done.wait(LOOK_EVERY):
            most[0] = max(most[0], process.memory_info().rss)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    found["peak MiB"] = round(max(0, most[0] - before) / 2**20)

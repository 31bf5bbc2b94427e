"""How fast a model encodes texts of three lengths, on which machine, and the memory that takes on a GPU."""

import time
from typing import Any

import numpy as np
import torch

from embedding.machine import processor
from embedding.tokens import token_budget_of
from eval.preserve import evaluation_mode, preserved_random_state

LENGTHS = (16, 64, 256)
"""Tokens of a text: a question, a short answer, a page's paragraph."""
ROUNDS, ENOUGH = 3, 0.5
"""Rounds of a length at most, and the seconds after which there is no further one: a slow model is measured once."""


def measure(model: Any) -> dict[str, Any]:
    """`texts/s, N tokens` at three lengths (the best of some rounds); on CUDA `peak MiB`, what torch held at most; and
    `on`, what it was measured on. Speeds on two machines say nothing about two models.

    A length above the model's limit is left out. The texts are random ids of the model's vocabulary, the same for
    every model with that vocabulary: only their number counts. There is no peak for a CPU: a process keeps what it
    freed and takes it again, so that what it holds says little about the model.
    """
    vocabulary = int(model.backbone.config.vocab_size)
    found: dict[str, Any] = {}
    on_cuda = model.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(model.device)
    with preserved_random_state(), evaluation_mode(model):
        for length in LENGTHS:
            if length > model.max_tokens:
                continue
            count = max(2, token_budget_of(model.device) // length)
            rows = list(np.random.default_rng(0).integers(0, vocabulary, (count, length), dtype=np.int32))
            model.encode_ids(rows[:2])
            found[f"texts/s, {length} tokens"] = round(count / _seconds(model, rows), 1)
    if on_cuda:
        found["peak MiB"] = round(torch.cuda.max_memory_allocated(model.device) / 2**20)
    return found | {"on": _machine(model.device)}


def _seconds(model: Any, rows: list[np.ndarray]) -> float:
    """The best of a few rounds."""
    taken: list[float] = []
    while len(taken) < ROUNDS and sum(taken) < ENOUGH:
        start = time.perf_counter()
        model.encode_ids(rows)  # ends with the vectors on the CPU, so a GPU is done too
        taken.append(time.perf_counter() - start)
    return min(taken)


def _machine(device: torch.device) -> str:
    """A GPU's name; else the processor's, and how many threads torch uses of it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    beside = "" if device.type == "cpu" else f"{device.type}, "
    return f"{beside}{processor()}, {torch.get_num_threads()} threads"

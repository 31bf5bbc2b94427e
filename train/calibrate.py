"""Measured once per run: the chunk size that is fastest on this device, and what a token's activations weigh.

Both choose how the machine is used, not what is computed; they are kept in the checkpoints, so that a resumed run makes
the same chunks and ends bit for bit where the uninterrupted one would have.
"""

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from embedding.memory import available_memory, drop_garbage
from embedding.tokens import chunk_tokens, plan_chunks
from train.recipe import ComputeConfig
from train.step import Memory
from train.student import Student

CANDIDATES: dict[str, tuple[int, ...]] = {
    "cpu": (1_024, 2_048, 4_096, 8_192),
    "cuda": (8_192, 16_384, 32_768, 65_536, 131_072),
}
"""Padded tokens of a chunk."""
CUDA_SHARE = 0.9
"""Of a GPU's free memory, what chunks may take; the rest is for the losses and for what fragments leave unusable."""
STATE_BYTES = 16
"""Of a trained parameter, still to come before the first step is done: its gradient, DDP's copy of that, and AdamW's
two moments, in fp32."""
AVERAGE_BYTES = 4
"""Of a trained parameter, its moving average, where a stage has one."""
GATHERED_BYTES = 4
"""Of a parameter, whole in the backward pass under FSDP2: weight and gradient in bf16. Of the fp32 weights that lie on
the device whole as this is measured, only a rank's share is left by then."""
SAMPLE_TOKENS = {"cpu": 8_192, "cuda": 131_072}
NOISE = 0.05
"""By what share two measurements of the same step differ: a difference below says nothing."""
RECOMPUTED = 1 / 3
"""Of the time of a chunk's forward and backward pass, what its forward pass takes once more (Kaplan et al. 2020,
section 2.1: two of six operations a weight)."""


def calibrate(
    student: Student,
    rows: Sequence[np.ndarray],
    config: ComputeConfig,
    *,
    shards: int = 1,
    later: int = 0,
    averaged: bool = False,
) -> Memory:
    """Choose the token budget and the memory for activations, from texts of the first batch.

    Args:
        shards: the ranks that the student will be cut over, after this (FSDP2); 1: each keeps it whole.
        later: tokens of the longest text that any stage of the run reads.
        averaged: a stage keeps a moving average of the weights.

    Raises:
        ValueError: the configured budget is under one text, or the device has no memory for the longest text.
    """
    device = student.embedder.device
    longest = max(len(row) for row in rows)
    if config.token_budget is not None and config.token_budget < longest:
        raise ValueError(
            f"compute.token_budget {config.token_budget}: a text of this stage has {longest} tokens; raise the "
            "budget or lower the stage's max_tokens"
        )
    sample = _sample(rows, SAMPLE_TOKENS.get(device.type, 16_384))
    seconds = {config.token_budget: 0.0} if config.token_budget else _seconds(student, sample, longest)
    memory = Memory(min(seconds), 0.0, 0.0, student.embedder.packs)
    while True:
        try:
            memory = replace(memory, bytes_per_token=_bytes_per_token(student, sample, memory.token_budget))
            break
        except torch.OutOfMemoryError:
            memory = memory.halved(longest)
            seconds = {memory.token_budget: 0.0}  # less than the smallest that was measured: nothing to choose
        drop_garbage()

    def activations(budget: int) -> float:
        if config.activation_gib:
            return config.activation_gib * 2**30
        return _room(student, memory, max(budget, later), shards, STATE_BYTES + averaged * AVERAGE_BYTES)

    rooms = {budget: activations(budget) for budget in seconds}
    budget = _best(seconds, rooms, memory.bytes_per_token * sum(len(row) for row in rows), memory.token_budget)
    return replace(memory, token_budget=budget, activation_bytes=max(0.0, rooms[budget]))


def _best(seconds: Mapping[int, float], rooms: Mapping[int, float], whole: float, least: int) -> int:
    """The smallest budget of those with about the fastest step: a large chunk may be the faster one, and leaves less
    room to keep others; where it is not, a small one takes less memory.

    Args:
        seconds: of a sample's forward and backward pass, by budget.
        rooms: bytes for kept activations beside a chunk of that budget; negative: the chunk itself has no room.
        whole: bytes of the activations of a whole batch; 0: the student is frozen, and keeps none.
        least: what remains where no chunk has room.
    """

    def step(budget: int) -> float:
        kept = min(1.0, rooms[budget] / whole) if whole else 1.0
        return seconds[budget] * (1 + RECOMPUTED * (1 - kept))

    steps = {budget: step(budget) for budget, room in rooms.items() if room >= 0}
    fastest = min(steps.values(), default=0.0)
    return min((budget for budget, taken in steps.items() if taken <= (1 + NOISE) * fastest), default=least)


def lowered(memory: Memory, config: ComputeConfig) -> Memory:
    """What a checkpoint keeps, or less where the configuration now says so: the way out when a device is too small."""
    budget = min(memory.token_budget, config.token_budget or memory.token_budget)
    activations = min(memory.activation_bytes, (config.activation_gib or math.inf) * 2**30)
    return replace(memory, token_budget=budget, activation_bytes=activations)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the device at a large square matrix product: what a step could reach at best."""
    size = 8_192 if device.type == "cuda" else 1_024  # a CPU core takes a second for four products of 2,048
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(4):
        _synchronize(device)
        start = time.perf_counter()
        a @ b
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def _sample(rows: Sequence[np.ndarray], tokens: int) -> list[np.ndarray]:
    """The first texts that hold about so many tokens."""
    total = np.cumsum([len(row) for row in rows])
    return list(rows[: int(np.searchsorted(total, tokens)) + 1])


def _seconds(student: Student, sample: Sequence[np.ndarray], longest: int) -> dict[int, float]:
    """Of the sample's forward and backward pass, by budget; where there is one alone, it is not measured."""
    known = CANDIDATES.get(student.embedder.device.type, (4_096, 16_384))
    candidates = [budget for budget in known if budget >= longest] or [longest]
    whole = longest * len(sample)  # a budget beyond it makes the same single chunk
    candidates = [budget for budget, below in zip(candidates, [0, *candidates], strict=False) if below < whole]
    if len(candidates) == 1:
        return {candidates[0]: 0.0}
    seconds: dict[int, float] = {}
    try:
        _forward_backward(student, sample, candidates[0])
        for budget in candidates:
            seconds[budget] = min(_forward_backward(student, sample, budget) for _ in range(2))
    except torch.OutOfMemoryError:  # nor will a larger one fit
        student.zero_grad(set_to_none=True)
    drop_garbage()
    return seconds or {candidates[0]: 0.0}


def _forward_backward(student: Student, sample: Sequence[np.ndarray], budget: int) -> float:
    packed = student.embedder.packs
    chunks = plan_chunks(np.array([len(row) for row in sample]), budget, packed=packed)
    _synchronize(student.embedder.device)
    start = time.perf_counter()
    for chunk in chunks:  # one at a time: a sample need not fit as a whole
        vectors, projected = student([[sample[i] for i in chunk]], 1)
        (vectors.sum() + projected.sum()).backward()
    _synchronize(student.embedder.device)
    student.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def _bytes_per_token(student: Student, sample: Sequence[np.ndarray], budget: int) -> float:
    """Bytes that the graph of one chunk keeps, per padded token, parameters not counted."""
    lengths = np.array([len(row) for row in sample])
    packed = student.embedder.packs
    chunk = plan_chunks(lengths, budget, packed=packed)[0]
    parameters = {parameter.untyped_storage().data_ptr() for parameter in student.parameters()}
    storages: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        vectors = student.embedder.embed_rows([sample[i] for i in chunk])
    del vectors
    return sum(storages.values()) / chunk_tokens(lengths[chunk], packed=packed)


def _room(student: Student, memory: Memory, chunk: int, shards: int, state: int) -> float:
    """Bytes for the activations of kept chunks: on a GPU nearly all, elsewhere others live on the machine too.
    Negative on a GPU where the chunk of so many tokens that is recomputed beside them has no room itself."""
    device = student.embedder.device
    if device.type != "cuda":
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return 0.5 * available_memory() / ranks
    torch.cuda.empty_cache()  # what the measuring left with PyTorch's allocator does not count as free
    to_come = state * sum(p.numel() for p in student.parameters() if p.requires_grad) / shards
    if shards > 1:
        to_come += GATHERED_BYTES * sum(p.numel() for p in student.parameters()) / shards
    return CUDA_SHARE * (torch.cuda.mem_get_info(device)[0] - to_come) - chunk * memory.bytes_per_token


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

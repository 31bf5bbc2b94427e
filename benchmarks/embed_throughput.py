"""The teacher's pass against sentence-transformers, the store against the disk, and what stored vectors cost a step.

    python -m benchmarks.embed_throughput [--texts 2000] [--keys 0] [--smoke]

all-MiniLM-L6-v2 in float32 over both sides of docstrings cut at 512 tokens. Ours is the whole pass: tokenize, compute,
write to the store. The peer is `SentenceTransformer.encode`, which sorts by length too, at the batch size that is
fastest in this run; the two take turns, and the best of each counts.

ratio            texts/s, ours / theirs                                                        aim 1.15
bf16_ratio       texts/s with the teacher in bfloat16 / in float32, where the CPU computes in it (AVX512-BF16, AMX); the
                 peer could be run in it too                             bf16_cosine: the lowest of the two vectors
difference       the largest difference of a number of their vectors and ours (float32)        aim 1e-4
gemm_fraction    real tokens' operations / seconds / the best fp32 matrix rate
write_gbps       GB/s of vectors (E = 5,376, float16) into durable shards; disk_gbps: plain writes with one fsync each
read_gbps, read_rows    random reads of 4,096 vectors: GB/s of stored bytes and vectors/s, from the page cache
distill_overhead a training step whose teacher vectors (E = 5,376) are read ahead from the store, against the same step
                 with vectors that are in memory                                               aim 1.03
teacher_overhead the former against the step without a teacher: no vectors, no match, no map to the teacher's width
key_bytes        with --keys N: bytes of memory a key takes in the index of a store with N small vectors
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from sentence_transformers import SentenceTransformer

from benchmarks.common import GEMM_SIZES, arguments, matrix_rate, report, say
from benchmarks.pairs import TEACHER, docstring_pairs, load_inputs, ranking_rows, write_inputs
from benchmarks.steps import train_state
from data_prep.assemble import write_rows
from data_prep.build import DataConfig
from data_prep.embed import embed_texts
from data_prep.tables import Texts
from data_prep.teacher import TeacherConfig, load_teacher
from data_prep.vectors import VectorStore
from embedding.embedder import Embedder
from embedding.layout import resolve_model
from embedding.memory import keep_freed_memory
from train.calibrate import calibrate
from train.losses import InfoNCE, Loss, Match
from train.optim import build_optimizer
from train.plan import StagePlan, TeacherVectors, plan_stages
from train.recipe import ComputeConfig, PretrainedStudent, Recipe, Stage, StudentConfig
from train.step import TrainState, prepare_work, read_ahead, train_step
from train.student import Student, build_student, training_flops

MAX_TOKENS = 512
WIDTH = 5_376
READ_ROWS = 4_096
PEER_BATCHES = (4, 8, 16, 32, 64)
SHARD = 2_048
"""Vectors in a shard, as the pass writes them."""


def texts_of(folder: Path, pairs: int) -> Texts:
    """Both sides of so many docstrings."""
    write_rows(((row, 0, "") for row in ranking_rows(docstring_pairs(pairs))), folder, ["docstrings"])
    return Texts.load(folder / "texts")


def throughput(folder: Path, pairs: int, rounds: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Ours and theirs, in turns."""
    texts = texts_of(folder / "data", pairs)
    raw = texts.texts.to_pylist()
    config = TeacherConfig(model=TEACHER, max_tokens=MAX_TOKENS)
    ours = load_teacher(config)
    assert isinstance(ours, Embedder)
    theirs = SentenceTransformer(str(resolve_model(TEACHER)), device="cpu")
    theirs.max_seq_length = MAX_TOKENS
    sample = raw[:: max(1, len(raw) // 400)]
    by_batch = {size: _seconds(partial(theirs.encode, sample, batch_size=size)) for size in PEER_BATCHES}
    batch = min(by_batch, key=lambda size: by_batch[size])
    say(f"sentence-transformers is fastest at a batch of {batch} of {list(PEER_BATCHES)}")
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    in_half = config.model_copy(update={"dtype": "bfloat16"})
    half = load_teacher(in_half) if computes_in_bf16() else None
    for turn in range(rounds):
        stores = folder / f"stores-{turn}"
        seconds["ours"].append(_seconds(partial(embed_texts, config, texts, stores, progress=False, embedder=ours)))
        seconds["theirs"].append(_seconds(partial(theirs.encode, raw, batch_size=batch)))
        if isinstance(half, Embedder):
            work = partial(embed_texts, in_half, texts, stores, progress=False, embedder=half)
            seconds.setdefault("bf16", []).append(_seconds(work))
        say(f"round {turn + 1}: {', '.join(f'{side} {found[-1]:.1f} s' for side, found in seconds.items())}")
    best = {side: min(found) for side, found in seconds.items()}
    expected, found = theirs.encode(sample, batch_size=batch), ours.encode(sample)
    halved = {}
    if isinstance(half, Embedder):
        lowest = float((half.encode(sample) * found).sum(axis=1).min())
        halved = {"bf16_ratio": best["ours"] / best["bf16"], "bf16_cosine": lowest}
    lengths_N = np.minimum([len(row) for row in ours.tokenize(raw, [""] * len(raw))], MAX_TOKENS)
    return {
        "texts": len(raw),
        "tokens": int(lengths_N.sum()),
        "ratio": best["theirs"] / best["ours"],
        "texts_per_second": {side: len(raw) / value for side, value in best.items()},
        "tokens_per_second": float(lengths_N.sum()) / best["ours"],
        "peer_batch": batch,
        "difference": float(np.abs(found - expected).max()),
        "gemm_fraction": training_flops(ours, lengths_N) / 3 / best["ours"] / matrix_rate(sizes),
        **halved,
    }


def computes_in_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices itself; elsewhere it takes many times as long."""
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch that eyas takes
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def store_rates(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Writing and reading vectors as wide as a 27B teacher's."""
    rng = np.random.default_rng(0)
    vectors_NE = rng.standard_normal((SHARD, WIDTH), dtype=np.float32)
    vectors_NE /= np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    keys_N2 = rng.integers(0, 2**64, (rows, 2), dtype=np.uint64)
    store = VectorStore.open(folder / "wide", {"model": "noise"}, WIDTH)
    plain = vectors_NE.astype(np.float16).tobytes()
    writes, disk = [], []
    for at in range(0, rows, SHARD):
        keys = keys_N2[at : at + SHARD]
        writes.append(_seconds(partial(store.append, keys, vectors_NE[: len(keys)])) / len(keys))
        disk.append(_seconds(partial(_write_plain, folder / f"plain-{at}", plain)) / SHARD)
    row_bytes = 2 * WIDTH
    reads = []
    for _ in range(rounds):
        positions = store.locate(keys_N2[rng.integers(0, rows, READ_ROWS)])
        reads.append(_seconds(partial(store.read, positions)))
    return {
        "write_gbps": row_bytes / statistics.median(writes) / 1e9,
        "disk_gbps": row_bytes / statistics.median(disk) / 1e9,
        "read_gbps": READ_ROWS * row_bytes / min(reads) / 1e9,
        "read_rows": READ_ROWS / min(reads),
    }


def distill_overhead(folder: Path, rows: int, steps: int, rounds: int, batch: int) -> dict[str, Any]:
    """`train.step.train_step` on the same texts in three ways: teacher vectors (E = 5,376) read ahead from the store,
    the same kind of vectors always in memory, and no teacher at all. Medians over rounds, in which the three take
    turns for `steps` steps each.

    The student is all-MiniLM-L6-v2 with a learned map to the teacher's width, InfoNCE and, with vectors, match.
    """
    store = VectorStore.existing(folder / "wide")
    teacher = load_teacher(TeacherConfig(model=TEACHER))
    assert isinstance(teacher, Embedder)
    write_inputs(folder / "steps", ranking_rows(docstring_pairs(batch * (steps + 1))), teacher, vectors=False)
    inputs = load_inputs(folder / "steps")
    place_N = np.random.default_rng(1).integers(0, rows, len(inputs.texts))  # any of the store's stands for a text's
    kept_NE = store.read(place_N[: 2 * batch])
    read = {
        "store": lambda texts: store.read(place_N[texts]),
        "kept": lambda texts: kept_NE[: len(texts)],
        "none": None,
    }
    accelerator = Accelerator(cpu=True)
    config = StudentConfig(start=PretrainedStudent(model=TEACHER), max_tokens=128)
    student = build_student(config, None, 0, width=WIDTH).train()
    seconds: dict[str, list[float]] = {way: [] for way in read}
    memory = None
    for _ in range(rounds):
        for way, vectors in read.items():
            losses: list[Loss] = [InfoNCE()] if vectors is None else [InfoNCE(), Match()]
            stage = Stage(
                name=way, steps=steps + 1, batch_size=batch, max_tokens=128, learning_rate=1e-5, losses=losses
            )
            recipe = Recipe(name=way, data=DataConfig(), teacher=TeacherConfig(), student=config, stages=[stage])
            plan = plan_stages(recipe, replace(inputs, vectors=vectors))[0]
            module = student if vectors is not None else Student(student.embedder)
            memory = memory or calibrate(student, prepare_work(plan.sampler, None, 0).rows, ComputeConfig())
            state = train_state(accelerator, module, module, build_optimizer(stage, module), plan, memory)
            seconds[way].append(_steps(state, plan, vectors))
            say(f"{steps} steps, vectors from {way}: {seconds[way][-1]:.1f} s")

    def ratio(way: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds["store"], seconds[way], strict=True))

    step_seconds = statistics.median(seconds["store"]) / steps
    return {"distill_overhead": ratio("kept"), "teacher_overhead": ratio("none"), "step_seconds": step_seconds}


def _steps(state: TrainState, plan: StagePlan, vectors: TeacherVectors | None) -> float:
    """Seconds of all steps but the first."""
    for work in read_ahead(plan.sampler, vectors, range(plan.steps)):
        if work.batch.step == 1:
            begun = time.perf_counter()
        train_step(state, work)
    return time.perf_counter() - begun


def key_memory(folder: Path, count: int) -> dict[str, Any]:
    """Write `count` vectors of 4 numbers, then open the store and look for all their keys and as many others."""
    rng = np.random.default_rng(2)
    store = VectorStore.open(folder / "many", {"model": "small"}, 4)
    rows = 262_144
    for at in range(0, count, rows):
        size = min(rows, count - at)
        store.append(_spread_keys(at, size), rng.standard_normal((size, 4), dtype=np.float32))
    del store
    process = psutil.Process()
    before = process.memory_full_info().uss
    store = VectorStore.existing(folder / "many")
    begun = time.perf_counter()
    assert len(store) == count
    indexed = time.perf_counter() - begun
    index_bytes = store.index_bytes
    found = 0
    begun = time.perf_counter()
    for at in range(0, count, rows):
        size = min(rows, count - at)
        found += int((store.locate(_spread_keys(at, size)) >= 0).sum())
    assert found == count, f"{count - found} keys were not found"
    return {
        "keys": count,
        "key_bytes": index_bytes / count,
        "key_bytes_grown": (process.memory_full_info().uss - before) / count,
        "index_seconds": indexed,
        "lookups_per_second": count / (time.perf_counter() - begun),
    }


def _spread_keys(begin: int, count: int) -> np.ndarray:
    """Distinct keys without a random number to remember (Fibonacci hashing, Knuth 6.4): uint64 [count, 2]."""
    number = np.arange(begin, begin + count, dtype=np.uint64)
    return np.column_stack([number * np.uint64(0x9E3779B97F4A7C15), number])


def _write_plain(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    """All of it, in turn."""
    options = arguments(__doc__)
    options.add_argument("--texts", type=int, default=2_000)
    options.add_argument("--keys", type=int, default=0, help="also index so many keys (10 million take 1 GB of disk)")
    options.add_argument("--smoke", action="store_true", help="a few texts, to see that it works")
    given = options.parse_args()
    keep_freed_memory()
    pairs, rounds, rows, steps, batch = (24, 1, 4_096, 2, 8) if given.smoke else (given.texts // 2, 3, 65_536, 4, 64)
    with TemporaryDirectory() as name:
        folder = Path(name)
        result = throughput(folder, pairs, rounds, (512,) if given.smoke else GEMM_SIZES)
        result |= store_rates(folder, rows, 3 if given.smoke else 30)
        result |= distill_overhead(folder, rows, steps, rounds, batch)
        if given.smoke or given.keys:
            result |= key_memory(folder, given.keys or 100_000)
    report({"benchmark": "embed_throughput", **result}, save=given.save)


if __name__ == "__main__":
    main()

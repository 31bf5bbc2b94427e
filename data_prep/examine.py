"""A batch of rows through everything that needs no other row: filters, decontamination, keys, signatures.

`examine` is a plain function of a batch and of what every batch shares, so it runs here, in worker processes, or on a
cluster (`launch.on_ray`). `examined` runs it over a stream of batches in their order: in this process while there is
little, in worker processes from there on.
"""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from data_prep.clean import digest_normal, normal_form
from data_prep.decontaminate import DecontaminationConfig, EvaluationIndex, Match
from data_prep.filters import FilterConfig, apply_filters
from data_prep.near_duplicates import band_hashes
from data_prep.rows import Numbered, Row
from embedding.files import content_key
from embedding.instruction import Role
from embedding.machine import cores

T = TypeVar("T")

BATCH_ROWS, BATCH_CHARS = 1_000, 8_000_000
ALONE_BATCHES = 10
"""Batches done in this process before others are started: starting them takes seconds."""
AHEAD = 3
"""Batches in flight for each worker."""


class Batch(NamedTuple):
    """Rows of one source on their way."""

    source: int
    instruction: str
    symmetric: bool
    filters: FilterConfig
    rows: list[Numbered]


class Shared(NamedTuple):
    """What every batch is examined with."""

    bands: bool = False
    """Whether near-duplicates are looked for."""
    evaluation: Path | None = None
    """The index of evaluation texts, where there is one."""
    decontamination: DecontaminationConfig = DecontaminationConfig()


class Dropped(NamedTuple):
    """A row that goes, why, and what shows it."""

    number: int
    place: str
    reason: str
    detail: str
    row: Row


class Examined(NamedTuple):
    """The rows that stay (R), their texts one after another (T), and those that go."""

    source: int
    rows: list[Numbered]
    roles: list[Role]
    tasks: list[str]
    texts: list[str]
    langs: list[str]
    keys_T2: np.ndarray
    """uint64: the content keys of (role, task, text)."""
    digests_T: np.ndarray
    """uint64: of the normal forms."""
    bands_TB: np.ndarray
    """uint64; no columns where near-duplicates are not looked for."""
    dropped: list[Dropped]
    removed: dict[str, int]
    """Single texts that went while their row stays, by reason."""
    short: int
    """Texts that equal an evaluation text, too short for that to count."""


Workers = Callable[[Iterable[Batch], Shared], Iterator[Examined]]
"""Who examines a stream of batches, in its order."""


def batches(
    rows: Iterable[Numbered], source: int, instruction: str, symmetric: bool, filters: FilterConfig
) -> Iterator[Batch]:
    """Rows in batches of bounded size."""
    batch: list[Numbered] = []
    size = 0
    for found in rows:
        batch.append(found)
        size += sum(map(len, found.row.texts()))
        if len(batch) == BATCH_ROWS or size >= BATCH_CHARS:
            yield Batch(source, instruction, symmetric, filters, batch)
            batch, size = [], 0
    if batch:
        yield Batch(source, instruction, symmetric, filters, batch)


def examine(batch: Batch, shared: Shared, index: EvaluationIndex | None = None) -> Examined:
    """Judge the rows of a batch, and describe the texts of those that stay."""
    dropped: list[Dropped] = []
    removed = {"positives and negatives that a filter dropped": 0, "negatives that repeat an evaluation text": 0}
    kept: list[Numbered] = []
    for found in batch.rows:
        verdict = apply_filters(found.row, batch.filters, batch.symmetric)
        if verdict.reason:
            dropped.append(Dropped(found.number, found.place, verdict.reason, verdict.detail, found.row))
        else:
            removed["positives and negatives that a filter dropped"] += verdict.removed
            kept.append(found._replace(row=verdict.row))
    texts = [text for found in kept for text in found.row.texts()]
    normals = [normal_form(text) for text in texts]
    digests_T = np.fromiter(map(digest_normal, normals), dtype=np.uint64, count=len(texts))
    bands_TB = band_hashes(normals) if shared.bands or index else np.zeros((len(texts), 0), np.uint64)
    short = 0
    if index is not None:
        matches, short = index.match(normals, digests_T, bands_TB)
        kept, stays = _without(kept, matches, dropped, removed)
        texts = [text for text, stay in zip(texts, stays, strict=True) if stay]
        digests_T, bands_TB = digests_T[stays], bands_TB[stays]
    roles, tasks, langs = list[Role](), list[str](), list[str]()
    for found in kept:
        row, task = found.row, found.row.instruction or batch.instruction
        others = len(row.positives) + len(row.negatives)
        roles.append("query" if row.positives or task else "document")
        tasks.append(task)
        roles += ["query" if batch.symmetric else "document"] * others
        tasks += [task if batch.symmetric else ""] * others
        langs += [row.lang, *[row.positive_lang or row.lang] * others]
    keys = b"".join(content_key(*parts) for parts in zip(roles, tasks, texts, strict=True))
    return Examined(
        batch.source,
        kept,
        roles,
        tasks,
        texts,
        langs,
        np.frombuffer(keys, dtype="<u8").reshape(-1, 2),
        digests_T,
        bands_TB if shared.bands else bands_TB[:, :0],
        dropped,
        {reason: count for reason, count in removed.items() if count},
        short,
    )


def _without(
    rows: list[Numbered], matches: dict[int, Match], dropped: list[Dropped], removed: dict[str, int]
) -> tuple[list[Numbered], np.ndarray]:
    """The rows that repeat no evaluation text, without the negatives that do, and which texts stay: bool [T]."""
    kept, stays, start = [], [], 0
    for found in rows:
        row = found.row
        sides = 1 + len(row.positives)
        end = start + sides + len(row.negatives)
        hit = next((place for place in range(start, start + sides) if place in matches), None)
        if hit is None:
            good = [place not in matches for place in range(start, end)]
            negatives = tuple(text for text, stay in zip(row.negatives, good[sides:], strict=True) if stay)
            removed["negatives that repeat an evaluation text"] += len(row.negatives) - len(negatives)
            kept.append(found._replace(row=row._replace(negatives=negatives)))
            stays += good
        else:
            match = matches[hit]
            side = "query" if hit == start else "positive"
            reason = f"repeats an evaluation text {match.how}" if match.how != "exact" else "is an evaluation text"
            detail = f"the {side}, of {match.task}: {match.text}"
            dropped.append(Dropped(found.number, found.place, reason, detail, row))
            stays += [False] * (end - start)
        start = end
    return kept, np.array(stays, dtype=bool)


def examined(stream: Iterable[Batch], shared: Shared) -> Iterator[Examined]:
    """`examine` over a stream, in its order, by a process a core once there is more than a little of it.

    Raises:
        ValueError: a worker process was killed.
    """
    index = open_index(shared)
    todo = iter(stream)
    workers = cores()
    for number, batch in enumerate(todo, start=1):
        yield examine(batch, shared, index)
        if number == ALONE_BATCHES and workers > 1:
            break
    # Not forked: a forked process inherits the caller's threads broken.
    context = multiprocessing.get_context("spawn")
    first = next(todo, None)
    if first is None:
        return
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(shared,)) as pool:
        try:
            yield from in_order(
                chain([first], todo), lambda batch: pool.submit(_examine, batch), Future.result, workers
            )
        except BrokenProcessPool:
            raise ValueError("a process that examines rows was killed; is there enough memory?") from None
        finally:
            pool.shutdown(cancel_futures=True)


def in_order(
    stream: Iterable[Batch], submit: Callable[[Batch], T], result: Callable[[T], Examined], workers: int
) -> Iterator[Examined]:
    """What workers make of a stream of batches, in its order; at most `AHEAD` of each worker are on their way."""
    waiting: deque[T] = deque()
    for batch in stream:
        waiting.append(submit(batch))
        if len(waiting) >= AHEAD * workers:
            yield result(waiting.popleft())
    while waiting:
        yield result(waiting.popleft())


def open_index(shared: Shared) -> EvaluationIndex | None:
    """The index of evaluation texts, where there is one."""
    return None if shared.evaluation is None else EvaluationIndex(shared.evaluation, shared.decontamination)


_STATE: list[tuple[Shared, EvaluationIndex | None]] = []
"""In a worker process: what its batches share."""


def _start(shared: Shared) -> None:
    _STATE.append((shared, open_index(shared)))


def _examine(batch: Batch) -> Examined:
    shared, index = _STATE[0]
    return examine(batch, shared, index)

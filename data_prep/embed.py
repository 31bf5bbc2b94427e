"""The teacher's one pass over the texts: what the store lacks is computed, longest first, and nothing twice.

Tokenizing the next unit of texts and writing the last shard go on beside the computation.

Shapes: N texts, E width of the teacher.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.endpoint import Endpoint, TextsRefused
from data_prep.opening import open_store, require_same_model
from data_prep.progress import Meter
from data_prep.reduce import FILE, Reduction, StoreConfig
from data_prep.refused import Refusals
from data_prep.tables import Texts
from data_prep.teacher import AnyTeacher, Imported, Teacher, TeacherConfig, load_teacher, vector_keys
from data_prep.units import Rota, Share, cut_units, text_bytes
from data_prep.vectors import VectorStore, first_rows
from embedding.embedder import Embedder
from embedding.files import fingerprint, read_manifest
from embedding.tokens import token_budget_of

SHARD_TEXTS = 2_048
"""Vectors in a shard, at most: what a kill can lose."""
SHARD_TOKENS = 262_144
"""Tokens behind a shard, at most, so that long texts lose no more time than short ones."""
PART_CHUNKS = 8
"""Chunks between two steps of the progress bar."""
ENDPOINT_SHARDS = 2
"""Shards that are asked of an endpoint at once, so that it never waits for the last answer of one."""
UNFINISHED = 4
"""Shards computed and not yet written, at most: bounds memory where the disk is slow."""
MOST_REFUSED = 1_000
"""Refused texts of one process, at most: where there are more, it is not the texts that are wrong."""
FIT_WAIT_SECONDS = 600.0
"""For so long, the other processes leave the fit of a reduction to the first."""


@dataclass(frozen=True)
class EmbedReport:
    """What an embedding pass of one process did."""

    store: Path
    identity: dict[str, Any]
    """What names the store."""
    width: int
    """Of the stored vectors."""
    computed: int
    reused: int
    seconds: float
    tokens: int
    """Tokens computed, after the cut; of an endpoint: what it says it has read."""
    cut: int
    """Texts computed that were longer than the teacher's max tokens."""
    set_aside: list[str] = field(default_factory=list)
    """Damaged shards that were found and computed again."""
    note: str = ""
    """Why a new store was begun beside existing ones."""


class _Unit(NamedTuple):
    """Texts of one unit that have no vector yet, longest first."""

    rows: np.ndarray
    ids: list[np.ndarray]
    lengths: np.ndarray
    """After the teacher's cut."""
    cut: int


def embed_texts(
    config: AnyTeacher,
    texts: Texts,
    stores: Path,
    progress: bool = True,
    embedder: Teacher | None = None,
    share: Share = Share(),  # noqa: B008  # a tuple cannot be changed
) -> EmbedReport:
    """Compute the vectors of all texts that the teacher's store below `stores` lacks.

    With several processes, each computes its share and returns when all vectors are there.

    Args:
        embedder: the teacher, where the caller has loaded it already.

    Raises:
        ValueError: the teacher cannot be loaded, gives NaN, or (an endpoint) does not answer as it should.
        OSError: the disk is full. Finished shards are kept in either case.
    """
    start = time.perf_counter()
    work = Pass(config, embedder or load_teacher(config), stores, texts, share, progress)
    units = cut_units(work.size_N, share.world)
    work.run(Rota(work.store, work.keys_N2, units, share), progress)
    work.require_all()
    return EmbedReport(
        store=work.store.folder,
        identity=work.store.identity,
        width=work.store.width,
        computed=work.computed,
        reused=work.reused,
        seconds=time.perf_counter() - start,
        tokens=work.teacher.used_tokens if isinstance(work.teacher, Endpoint) else work.tokens,
        cut=work.cut,
        set_aside=work.store.set_aside,
        note=work.note,
    )


class Pass:
    """One process's part of the work: a teacher, its store, and the distinct texts."""

    def __init__(
        self,
        config: AnyTeacher,
        teacher: Teacher,
        stores: Path,
        texts: Texts,
        share: Share = Share(),  # noqa: B008
        progress: bool = False,
        store: VectorStore | None = None,
    ) -> None:
        """`progress`: show that of a reduction that has to be fitted first; `store`: where it is open already."""
        self.config, self.teacher, self.texts = config, teacher, texts
        self.store, self.note = open_store(config, teacher, stores) if store is None else (store, "")
        self.refusals = Refusals(self.store.folder)
        keys_N2 = vector_keys(texts, teacher.template)
        self.distinct_N = first_rows(keys_N2)
        """Rows of the texts that are embedded: a teacher that takes bare text may see one in several roles."""
        self.keys_N2 = keys_N2[self.distinct_N]
        self.size_N = text_bytes(texts)[self.distinct_N]
        self.computed = self.tokens = self.cut = self.refused = 0
        self.reused = int((~self.store.missing(self.keys_N2)).sum())
        self._lock = threading.Lock()
        self.reduction: Reduction | None = None
        if config.store.pca and not isinstance(teacher, Imported):
            self.reduction = self._fitted(stores, share, progress)
        if isinstance(teacher, Endpoint):
            require_same_model(teacher, self.store, self.reduction)

    def run(self, rota: Rota, progress: bool) -> None:
        """Do unit after unit."""
        mine = texts = 0
        if progress:
            absent = self.store.missing(self.keys_N2)
            texts = int(absent.sum())
            spans = [rota.units[unit] for unit in rota.own]
            mine = sum(int(self.size_N[span][absent[span]].sum(dtype=np.int64)) for span in spans)
        with Meter(texts > 0, mine, texts, self.store.vector_bytes) as meter:
            self._run(rota, meter)

    def require_all(self) -> None:
        """Say which texts have no vector because the server refused them.

        Raises:
            ValueError: there are some.
        """
        absent = self.store.missing(self.keys_N2)
        self.refusals.require_none(self.keys_N2[absent], self.distinct_N[absent], len(self.texts))

    def _run(self, rota: Rota, meter: Meter) -> None:
        remote = isinstance(self.teacher, Endpoint)
        jobs: deque[Future[int]] = deque()
        # One thread writes (to an endpoint: asks and writes), one tokenizes the next unit.
        with ThreadPoolExecutor(ENDPOINT_SHARDS if remote else 1) as writers, ThreadPoolExecutor(1) as readers:
            try:
                for number, unit in self._units(rota, readers):
                    self.cut += unit.cut
                    stolen = number % rota.share.world != rota.share.rank
                    for shard in self._shards(unit, rota.share.rank if stolen else 0):
                        began = time.perf_counter()
                        rows = unit.rows[shard]
                        if stolen:
                            self.store.refresh()
                            if not self.store.missing(self.keys_N2[rows]).all():
                                continue  # its owner is alive and has come here meanwhile
                        if remote:
                            jobs.append(writers.submit(self._compute_and_write, unit, shard, meter))
                        else:
                            jobs.append(writers.submit(self._write, *self._vectors(unit, shard, meter)))
                        while len(jobs) > UNFINISHED:
                            self.computed += jobs.popleft().result()
                        self.tokens += int(unit.lengths[shard].sum())
                        rota.longest_shard = max(rota.longest_shard, time.perf_counter() - began)
                    if stolen:
                        self._finish(jobs)  # before asking again what is missing
                self._finish(jobs)
            except BaseException:
                for job in jobs:
                    job.cancel()
                if isinstance(self.teacher, Endpoint):
                    self.teacher.close()
                raise

    def _units(self, rota: Rota, readers: ThreadPoolExecutor) -> Iterator[tuple[int, _Unit]]:
        """The units with work in them, each prepared while the one before is computed."""
        ahead: deque[tuple[int, Future[_Unit]]] = deque()
        own = len(rota.own)
        for done, number in enumerate(rota):
            ahead.append((number, readers.submit(self._prepare, rota.units[number], done < own)))
            # What another process may be doing meanwhile is not prepared ahead: it would be out of date.
            while len(ahead) > (1 if done < own - 1 else 0):
                before, future = ahead.popleft()
                yield before, future.result()

    def _prepare(self, span: slice, own: bool) -> _Unit:
        at = np.arange(span.start, span.stop)
        self.store.refresh()
        at = at[self.store.missing(self.keys_N2[at])]
        if not own:
            at = at[~self.refusals.among(self.keys_N2[at])]  # their owner has asked
        prompts, raw = self.texts.prompted(self.teacher.template, self.distinct_N[at])
        ids = self.teacher.tokenize(raw, prompts)
        whole = np.array([len(row) for row in ids], dtype=np.int64)
        lengths = np.minimum(whole, self.teacher.max_tokens)
        order = np.argsort(-lengths, kind="stable")
        cut = int((whole > self.teacher.max_tokens).sum())
        return _Unit(at[order], [ids[i] for i in order.tolist()], lengths[order], cut)

    def _shards(self, unit: _Unit, turn: int) -> list[slice]:
        """The unit's shards; each process begins at another place, so that two that meet in one do not do the same."""
        shards = list(runs(unit.lengths, SHARD_TEXTS, self._shard_tokens()))
        turn = turn % len(shards) if shards else 0
        return shards[turn:] + shards[:turn]

    def _shard_tokens(self) -> int:
        # An endpoint's rows are bytes; English has four or five in a token.
        return SHARD_TOKENS * 4 if isinstance(self.teacher, Endpoint) else SHARD_TOKENS

    def _vectors(self, unit: _Unit, shard: slice, meter: Meter) -> tuple[np.ndarray, np.ndarray]:
        """(which of the distinct texts, their vectors as they are stored: float32 [n, E]) of a shard."""
        parts = [slice(0, shard.stop - shard.start)]
        budget = None
        if isinstance(self.teacher, Embedder):
            budget = self.config.token_budget if isinstance(self.config, TeacherConfig) else None
            size = PART_CHUNKS * (budget or token_budget_of(self.teacher.device))
            parts = list(runs(unit.lengths[shard], SHARD_TEXTS, size))
        ids, rows, lengths = unit.ids[shard], unit.rows[shard], unit.lengths[shard]
        taken, found = [], []
        for part in parts:
            gone: list[int] = []
            try:
                vectors = self.teacher.encode_ids(ids[part], token_budget=budget)
            except TextsRefused as error:
                vectors, gone = error.vectors, sorted(error.said)
                self._note_refusals(rows[part], error.said)
            taken.append(np.delete(rows[part], gone))
            found.append(np.delete(vectors, gone, axis=0))
            meter.advance(len(ids[part]), int(lengths[part].sum()), int(self.size_N[rows[part]].sum()))
        vectors = np.concatenate(found)
        return np.concatenate(taken), vectors if self.reduction is None else self.reduction.apply(vectors)

    def _note_refusals(self, rows: np.ndarray, said: dict[int, str]) -> None:
        for place, words in said.items():
            self.refusals.add(self.keys_N2[rows[place]], words)
        with self._lock:
            self.refused += len(said)
        if self.refused > MOST_REFUSED:
            raise ValueError(f"more than {MOST_REFUSED:,} texts were refused, the last: {words}; is the server well?")

    def _write(self, rows: np.ndarray, vectors: np.ndarray) -> int:
        self.store.append(self.keys_N2[rows], vectors)
        self.refusals.forget(self.keys_N2[rows])
        return len(rows)

    def _compute_and_write(self, unit: _Unit, shard: slice, meter: Meter) -> int:
        return self._write(*self._vectors(unit, shard, meter))

    def _finish(self, jobs: deque[Future[int]]) -> None:
        while jobs:
            self.computed += jobs.popleft().result()

    def _fitted(self, stores: Path, share: Share, progress: bool) -> Reduction:
        """The store's reduction, and in the store whatever the teacher's store of whole vectors has already.

        Where it is yet to be fitted, the processes put a sample of the texts into that other store, as in any pass:
        killed, it goes on from there.
        """
        identity = {name: fact for name, fact in self.store.identity.items() if name != "store"}
        folder = stores / fingerprint(identity)
        if (self.store.folder / FILE).is_file():
            reduction = Reduction.load(self.store.folder)
            if read_manifest(folder) is not None:
                self._take_over(VectorStore.open(folder, identity, self.teacher.width), reduction)
            return reduction
        if len(self.store):
            raise ValueError(
                f"{self.store.folder}: {FILE} is gone, and with it what the stored numbers mean; delete the store"
            )
        whole = VectorStore.open(folder, identity, self.teacher.width)
        config = self.config.model_copy(update={"store": StoreConfig()})
        count = min(self.config.store.pca_sample, len(self.distinct_N))
        rows = self.distinct_N[np.unique(np.linspace(0, len(self.distinct_N) - 1, count).astype(np.int64))]
        sample = Pass(config, self.teacher, stores, self.texts.take(rows), share, store=whole)
        sample.run(Rota(whole, sample.keys_N2, cut_units(sample.size_N, share.world), share), progress)
        self.computed, self.tokens, self.cut = sample.computed, sample.tokens, sample.cut
        reduction = self._fit(sample, share)
        self._take_over(whole, reduction)
        return reduction

    def _fit(self, sample: "Pass", share: Share) -> Reduction:
        waited = time.monotonic()
        while share.rank > 0 and time.monotonic() - waited < FIT_WAIT_SECONDS:
            if (self.store.folder / FILE).is_file():
                return Reduction.load(self.store.folder)
            time.sleep(0.5)
        keys_N2 = sample.keys_N2[~sample.store.missing(sample.keys_N2)]  # without refused ones
        order = np.random.default_rng(0).permutation(len(keys_N2))  # what is measured is of the kind that is fitted
        assert self.config.store.pca is not None
        return Reduction.fit(sample.store.rows(keys_N2[order]), self.config.store.pca).save(self.store.folder)

    def _take_over(self, whole: VectorStore, reduction: Reduction) -> None:
        here = np.flatnonzero(~whole.missing(self.keys_N2))
        before = self.computed
        for part in runs(np.ones(len(here)), SHARD_TEXTS, SHARD_TEXTS):
            self.store.refresh()
            keys_N2 = self.keys_N2[here[part]]
            keys_N2 = keys_N2[self.store.missing(keys_N2)]
            self.store.append(keys_N2, reduction.apply(whole.rows(keys_N2)))
            self.reused += len(keys_N2)
        self.reused -= min(before, self.reused)


def runs(lengths: np.ndarray, most_texts: int, most_tokens: int) -> Iterator[slice]:
    """Cut a sequence into runs of at most so many texts and tokens; a text longer than that is a run of its own."""
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        before = ends[start] - lengths[start]
        fitting = int(np.searchsorted(ends, before + most_tokens, side="right"))
        stop = min(max(fitting, start + 1), start + most_texts)
        yield slice(start, stop)
        start = stop

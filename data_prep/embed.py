"""The teacher's one pass over the texts: what the store lacks is computed, longest first, and nothing twice.

Tokenizing the next unit of texts and writing the last shard go on beside the computation.

Shapes: N texts, E width of the teacher.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.endpoint import Endpoint, TextRefused
from data_prep.progress import Meter
from data_prep.reduce import FILE, Reduction
from data_prep.tables import Texts
from data_prep.teacher import AnyTeacher, Imported, Teacher, TeacherConfig, load_teacher, teacher_identity, vector_keys
from data_prep.units import Rota, Share, cut_units, text_bytes
from data_prep.vectors import VectorStore, first_rows
from embedding.embedder import TOKEN_BUDGET, Embedder
from embedding.files import content_keys, differences, fingerprint, read_manifest
from embedding.tokens import PROBE

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
SAME_COSINE = 0.999
"""An endpoint's vector of one text, asked again, must be this close to the stored one: rounding differs between
batches and machines, models differ by far more."""
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
    work = Pass(config, embedder or load_teacher(config), stores, texts, share)
    units = cut_units(work.size_N, share.world)
    absent = work.store.missing(work.keys_N2)
    work.run(Rota(work.store, work.keys_N2, units, share), absent if progress else None)
    return EmbedReport(
        store=work.store.folder,
        identity=work.store.identity,
        width=work.store.width,
        computed=work.computed,
        reused=int(len(absent) - absent.sum()),
        seconds=time.perf_counter() - start,
        tokens=work.teacher.used_tokens if isinstance(work.teacher, Endpoint) else work.tokens,
        cut=work.cut,
        set_aside=work.store.set_aside,
        note=work.note,
    )


def open_store(
    config: AnyTeacher,
    teacher: Teacher,
    stores: Path,
    texts: Texts | None = None,
    share: Share = Share(),  # noqa: B008
) -> tuple[VectorStore, Reduction | None, str]:
    """The teacher's store below `stores`, its reduction, and why it was begun beside existing ones ("" otherwise).

    Args:
        texts: what a reduction is fitted to where the store has none yet.

    Raises:
        ValueError: vectors to import that nobody imported; an endpoint that no longer gives the stored vectors; or a
            reduction that cannot be fitted.
    """
    identity = teacher_identity(config, teacher)
    folder = stores / fingerprint(identity)
    manifest = read_manifest(folder)
    note = "" if manifest else _nearest(stores, identity)
    if isinstance(teacher, Imported):
        if manifest is None:
            raise ValueError(
                f"{folder}: no vectors of {config.model!r} were imported; run `eyas vectors import` first"
                + (f" ({note})" if note else "")
            )
        teacher.width = int(manifest["width"])
        return VectorStore.open(folder, identity, teacher.width), None, ""
    store = VectorStore.open(folder, identity, config.store.pca or teacher.width)
    reduction = None
    if config.store.pca:
        reduction = _reduction(config, teacher, store, texts, share)
    if isinstance(teacher, Endpoint):
        _same_endpoint(teacher, store, reduction)
    return store, reduction, note


class Pass:
    """One process's part of the work: a teacher, its store, and the distinct texts."""

    def __init__(
        self,
        config: AnyTeacher,
        teacher: Teacher,
        stores: Path,
        texts: Texts,
        share: Share = Share(),  # noqa: B008
    ) -> None:
        self.config, self.teacher, self.texts = config, teacher, texts
        self.store, self.reduction, self.note = open_store(config, teacher, stores, texts, share)
        keys_N2 = vector_keys(texts, teacher.template)
        self.distinct_N = first_rows(keys_N2)
        """Rows of the texts that are embedded: a teacher that takes bare text may see one in several roles."""
        self.keys_N2 = keys_N2[self.distinct_N]
        self.size_N = text_bytes(texts)[self.distinct_N]
        self.computed = self.tokens = self.cut = 0

    def run(self, rota: Rota, absent: np.ndarray | None) -> None:
        """Do unit after unit; `absent` says which texts have no vector yet, for the progress; None: show nothing."""
        mine = texts = 0
        if absent is not None:
            texts = int(absent.sum())
            spans = [rota.units[unit] for unit in rota.own]
            mine = sum(int(self.size_N[span][absent[span]].sum(dtype=np.int64)) for span in spans)
        with Meter(texts > 0, mine, texts, self.store.vector_bytes) as meter:
            self._run(rota, meter)

    def _run(self, rota: Rota, meter: Meter) -> None:
        remote = isinstance(self.teacher, Endpoint)
        jobs: deque[Future[None]] = deque()
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
                            vectors = self._vectors(unit, shard, meter)
                            jobs.append(writers.submit(self.store.append, self.keys_N2[rows], vectors))
                        while len(jobs) > UNFINISHED:
                            jobs.popleft().result()
                        self.computed += len(rows)
                        self.tokens += int(unit.lengths[shard].sum())
                        rota.longest_shard = max(rota.longest_shard, time.perf_counter() - began)
                    if stolen:
                        _finish(jobs)  # before asking again what is missing
                _finish(jobs)
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
            ahead.append((number, readers.submit(self._prepare, rota.units[number])))
            # What another process may be doing meanwhile is not prepared ahead: it would be out of date.
            while len(ahead) > (1 if done < own - 1 else 0):
                before, future = ahead.popleft()
                yield before, future.result()

    def _prepare(self, span: slice) -> _Unit:
        at = np.arange(span.start, span.stop)
        self.store.refresh()
        at = at[self.store.missing(self.keys_N2[at])]
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

    def _vectors(self, unit: _Unit, shard: slice, meter: Meter) -> np.ndarray:
        """The vectors of a shard as they are stored: float32 [n, E]."""
        parts = [slice(0, shard.stop - shard.start)]
        budget = None
        if isinstance(self.teacher, Embedder):
            budget = self.config.token_budget if isinstance(self.config, TeacherConfig) else None
            size = PART_CHUNKS * (budget or TOKEN_BUDGET.get(self.teacher.device.type, 16_384))
            parts = list(runs(unit.lengths[shard], SHARD_TEXTS, size))
        ids, rows, lengths = unit.ids[shard], unit.rows[shard], unit.lengths[shard]
        found = []
        for part in parts:
            try:
                found.append(self.teacher.encode_ids(ids[part], token_budget=budget))
            except TextRefused as error:
                row = int(self.distinct_N[rows[part][error.position]])
                raise ValueError(f"text {row} of {len(self.texts)}: {error}") from None
            meter.advance(len(ids[part]), int(lengths[part].sum()), int(self.size_N[rows[part]].sum()))
        vectors = np.concatenate(found)
        return vectors if self.reduction is None else self.reduction.apply(vectors)

    def _compute_and_write(self, unit: _Unit, shard: slice, meter: Meter) -> None:
        self.store.append(self.keys_N2[unit.rows[shard]], self._vectors(unit, shard, meter))


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


def _finish(jobs: deque[Future[None]]) -> None:
    while jobs:
        jobs.popleft().result()


def _reduction(
    config: AnyTeacher, teacher: Teacher, store: VectorStore, texts: Texts | None, share: Share
) -> Reduction:
    """The store's reduction; fitted to a sample of the texts by the first process that needs it."""
    waited = time.monotonic()
    while share.rank > 0 and not (store.folder / FILE).is_file() and time.monotonic() - waited < FIT_WAIT_SECONDS:
        time.sleep(0.5)
    if (store.folder / FILE).is_file():
        return Reduction.load(store.folder)
    if len(store):
        raise ValueError(f"{store.folder}: {FILE} is gone, and with it what the stored numbers mean; delete the store")
    if texts is None:
        raise ValueError(f"{store.folder}: has no reduction yet; run `eyas embed` first, which fits one")
    assert config.store.pca is not None
    keys_N2 = vector_keys(texts, teacher.template)
    distinct_N = first_rows(keys_N2)
    count = min(config.store.pca_sample, len(distinct_N))
    sample = distinct_N[np.unique(np.linspace(0, len(distinct_N) - 1, count).astype(np.int64))]
    prompts, raw = texts.prompted(teacher.template, sample)
    vectors_NE = teacher.encode_ids(teacher.tokenize(raw, prompts))
    order = np.random.default_rng(0).permutation(len(sample))  # what is measured is of the same kind as what is fitted
    reduction = Reduction.fit(vectors_NE[order], config.store.pca).save(store.folder)
    for span in runs(np.ones(len(sample)), SHARD_TEXTS, SHARD_TEXTS):
        store.append(keys_N2[sample[span]], reduction.apply(vectors_NE[span]))
    return reduction


def _same_endpoint(teacher: Endpoint, store: VectorStore, reduction: Reduction | None) -> None:
    """Keep the vector of one text, and compare it the next time: nobody tells us when a served model changes.

    Raises:
        ValueError: it is another vector now.
    """
    key_12 = content_keys([""], [PROBE])
    now_1E = teacher.encode_ids(teacher.tokenize([PROBE], [""]))
    now_1E = now_1E if reduction is None else reduction.apply(now_1E)
    if store.missing(key_12).any():
        store.append(key_12, now_1E)
        return
    stored_1E = store.rows(key_12)
    cosine = float((stored_1E * now_1E).sum() / np.linalg.norm(stored_1E) / np.linalg.norm(now_1E))
    if cosine < SAME_COSINE:
        raise ValueError(
            f"{store.folder}: {teacher.config.url} no longer gives the vectors stored here (cosine {cosine:.3f} for "
            f"{PROBE!r}): the model behind it has changed; set teacher.revision to begin a new store"
        )


def _nearest(stores: Path, identity: dict[str, Any]) -> str:
    """How the most similar existing store differs: the reason why a new one is begun."""
    manifests = [read_manifest(folder) for folder in sorted(stores.glob("*")) if folder.is_dir()]
    others = [differences(identity, manifest["made_from"]) for manifest in manifests if manifest]
    if not others:
        return ""
    nearest = min(others, key=lambda lines: len(lines))
    return f"a new store, since no existing one fits; nearest: {'; '.join(nearest)}"

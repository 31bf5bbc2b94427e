"""Hard negatives: for each query the documents that a model puts near it and that are not known to answer it.

The vectors are there already, so mining costs a search. Where the choice among the survivors is random, most of it is
made before the search: documents are dealt into random parts, and each query searches one, with its share of the ranks.

    manifest.json    what it was made from, and the statistics
    examples         the examples table, row for row, with the negatives

Shapes: N texts, M examples, P documents of a pool, b rows of a block, k candidates of each, E width.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_prep.mined import Statistics
from data_prep.negatives import Codes, Known, Limits, choose, parts_of, random_order
from data_prep.search import TUNED_WITH, Index, Vectors, search_among, unit
from data_prep.tables import EXAMPLES, Examples, Ragged, Texts, pieces, write_table
from embedding.config import Config
from embedding.files import made_before, new_folder, write_manifest

FORMAT = 4
"""Raised when the same inputs would give other negatives; part of the fingerprint."""
BLOCK_BYTES, BLOCK_ROWS, BLOCK_CANDIDATES = 16 << 20, 4_096, 1 << 19
"""Queries in float32, rows, and candidates looked at at a time, at most."""
SPARE = 4
"""Candidates that a part is expected to hold within the ranks for each negative wanted."""
DEPTH = 1_000
"""A group with more texts is searched without its texts; they would fill the ranks of its rows."""
WRITTEN_ROWS = 100_000
"""Rows of the examples table written at a time."""


class MineConfig(Config):
    """Hard negatives for every row with a positive."""

    negatives: int = Field(default=7, ge=1)
    """So many of each row; a stage's `negatives` says how many of them a step takes."""
    ranks: tuple[int, int] = (1, 100)
    """The first and last rank of a negative among all that is not known to be relevant."""
    relative: float | None = Field(default=0.95, gt=0, le=1)
    """A negative's score stays below so much of the positive's (NV-Retriever, arXiv:2407.15831); null: no limit."""
    absolute: float | None = Field(default=None, ge=0)
    """A negative's score stays below the positive's by so much."""
    pool: Literal["source", "all"] = "source"
    """Where negatives come from: the documents of the row's own source, or of all sources that prompt them alike."""
    pick: Literal["random", "nearest"] = "random"
    """What is taken of those that the limits leave."""
    given: Literal["keep", "replace"] = "keep"
    """The negatives that a row came with: kept, and topped up; or replaced."""
    parts: int | None = Field(default=None, ge=1)
    """Random parts that the documents are dealt into; a query searches one. None: as many as leave four candidates
    for each negative; 1 where `pick` is nearest."""
    index: Index = "auto"
    """`exact`, `ivf`, `hnsw`; auto: exact on a GPU and for up to a million documents, ivf beyond."""
    model: str | None = None
    """Mine with the vectors of this model (a folder or hub id), such as the student of the round before; None: with the
    teacher's."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        first, last = self.ranks
        if not 1 <= first <= last:
            raise ValueError(f"ranks {first} to {last}: expected a first rank of at least 1, and a last one not below")
        room = last - first + 1
        if room < self.negatives:
            raise ValueError(f"ranks {first} to {last}: expected room for negatives: {self.negatives}, found {room}")
        if self.pick == "nearest" and (self.parts or 1) > 1:
            raise ValueError(f"parts {self.parts}: the nearest of a random part are not the nearest; set pick: random")
        return self

    @property
    def dealt(self) -> int:
        """The number of parts."""
        if self.pick == "nearest":
            return 1
        first, last = self.ranks
        return self.parts or max(1, (last - first + 1) // (SPARE * self.negatives))


class Pool(NamedTuple):
    """Rows whose negatives come from the same documents."""

    rows: np.ndarray
    """Rows of the examples table."""
    documents: np.ndarray
    """Rows of the texts table, no two equal in normal form."""


def mine(
    config: MineConfig,
    data: Path,
    vectors: Vectors,
    made_from: Mapping[str, Any],
    out: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Write the examples of `data` with their negatives to `out`, whole or not at all; return the statistics.

    Nothing is done where `out` was made from the same.

    Args:
        vectors: rows of the texts table -> float32 [n, E].
        made_from: everything that determines the result.
        device: a torch device; not `cpu`: the search runs there.

    Raises:
        ValueError: no row has a positive to mine for.
    """
    if manifest := made_before(out, made_from):
        return dict(manifest["statistics"])
    texts, examples = Texts.load(data / "texts"), Examples.load(data / "examples")
    miner = Miner(config, texts, examples, vectors, seed, device)
    if not len(miner.rows):
        raise ValueError(f"{data}: no row to mine for: single texts and graded pairs have no positive; drop `mine`")
    columns = (TextColumn("mining"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress, transient=True) as display:
        task = display.add_task("mining", total=len(miner.rows))
        mined = miner.run(lambda rows: display.advance(task, rows))
    negatives = _merged(mined, examples, config)
    statistics = miner.statistics.report(examples, negatives, len(miner.rows), config.negatives)
    with new_folder(out, made_from) as folder:
        write_table(folder / "examples", EXAMPLES, _batches(data, negatives))
        write_manifest(folder, made_from, statistics=statistics)
    return statistics


class Miner:
    """One pass over all pools."""

    def __init__(
        self, config: MineConfig, texts: Texts, examples: Examples, vectors: Vectors, seed: int, device: str
    ) -> None:
        self.config, self.texts, self.examples = config, texts, examples
        self.vectors, self.seed, self.device = vectors, seed, device
        self.codes = Codes.of(texts)
        self.known = Known(examples, self.codes)
        self.rows = np.flatnonzero((examples.positives.counts > 0) & np.isnan(examples.scores))
        """Rows that are mined for: a graded pair's second text may be anything but relevant."""
        self.limits = Limits(config.relative, config.absolute)
        self.statistics = Statistics(whole=config.dealt == 1)
        kind = np.int32 if len(texts) < 2**31 else np.int64
        self.mined_Mn = np.full((len(examples), config.negatives), -1, dtype=kind)
        self.positive_M = np.full(len(examples), np.nan, dtype=np.float32)
        self.near_M = np.zeros(len(examples), dtype=bool)
        """Rows that had a candidate at or above their limit."""

    def run(self, advance: Callable[[int], None]) -> np.ndarray:
        """Mine for all rows: rows of the texts table, [M, n]; -1 where there are not enough."""
        self._score_positives()
        for pool in self._pools():
            self._mine(pool, advance)
        return self.mined_Mn

    def _score_positives(self) -> None:
        """The lowest score of a query's positives, over all rows that ask the same: the safe one to stay below."""
        positives, query_M = self.examples.positives, self.codes.code_N[self.examples.queries]
        low_C = np.full(len(self.codes.digest_C), np.inf, dtype=np.float32)
        for piece in pieces(len(self.rows), BLOCK_ROWS):
            rows = self.rows[piece]
            taken = positives.take(rows)
            for part in pieces(len(taken.values), BLOCK_ROWS):
                owner = rows[taken.owners[part]]
                asked = unit(self.vectors(self.examples.queries[owner]))
                scores = np.einsum("ne,ne->n", asked, unit(self.vectors(taken.values[part])))
                np.minimum.at(low_C, query_M[owner], scores)
        self.positive_M[self.rows] = low_C[query_M[self.rows]]

    def _pools(self) -> Iterator[Pool]:
        """By source, or all sources together; documents under different prompts apart, and large groups too."""
        examples, rows = self.examples, self.rows
        roles, tasks = (column.dictionary_encode().combine_chunks() for column in (self.texts.roles, self.texts.tasks))
        prompt_N = roles.indices.to_numpy() * max(len(tasks.dictionary), 1) + tasks.indices.to_numpy()
        single = np.flatnonzero(examples.positives.counts == 0)
        sides = [(side.owners, side.values) for side in (examples.positives, examples.negatives)]
        sides.append((single, examples.queries[single]))
        document = np.concatenate([values for _, values in sides])
        source = examples.sources[np.concatenate([owners for owners, _ in sides])].astype(np.int64)
        first = examples.positives.values[examples.positives.offsets[rows]]
        apart = self.config.pool == "source"
        place = prompt_N[document] + apart * source * (prompt_N.max() + 1)
        wanted = prompt_N[first] + apart * examples.sources[rows].astype(np.int64) * (prompt_N.max() + 1)
        large = self.known.group_counts(examples.groups[rows]) > DEPTH
        for key in np.unique(wanted):
            documents = np.unique(document[place == key])
            documents = documents[np.unique(self.codes.code_N[documents], return_index=True)[1]]
            mine = wanted == key
            yield Pool(rows[mine & ~large], documents)
            for group in np.unique(examples.groups[rows[mine & large]]):
                others = ~np.isin(self.codes.code_N[documents], self.known.group(int(group)))
                yield Pool(rows[mine & large & (examples.groups[rows] == group)], documents[others])

    def _mine(self, pool: Pool, advance: Callable[[int], None]) -> None:
        """Each row in its part of the pool; then in the whole pool, where a part held too few negatives."""
        parts = self.config.dealt
        digest_C, code_N = self.codes.digest_C, self.codes.code_N
        part_P = parts_of(self.seed, digest_C[code_N[pool.documents]], parts)
        part_m = parts_of(self.seed + 1, digest_C[code_N[self.examples.queries[pool.rows]]], parts)
        for part in range(parts):
            self._search(Pool(pool.rows[part_m == part], pool.documents[part_P == part]), parts, advance)
        if parts > 1:
            found_m = (self.mined_Mn[pool.rows] >= 0).sum(axis=1)
            short = _short(found_m, self.near_M[pool.rows], self.config.negatives)
            self.statistics.searched_again += int(short.sum())
            self._search(Pool(pool.rows[short], pool.documents), 1, lambda rows: None, again=True)

    def _search(self, pool: Pool, parts: int, advance: Callable[[int], None], again: bool = False) -> None:
        if not len(pool.rows) or not len(pool.documents):
            advance(len(pool.rows))
            return
        examples, code_N = self.examples, self.codes.code_N
        first, last = self.config.ranks
        # A part's ranks are those of the pool, thinned out.
        ranks = ((first - 1) / parts + 1, max(last / parts, (first - 1) / parts + 1))
        asked = pool.rows[np.argsort(examples.queries[pool.rows], kind="stable")]  # each query once, or twice at a cut
        search = self._index(pool, asked)
        code_P = code_N[pool.documents]
        query_m, group_m = code_N[examples.queries[asked]], examples.groups[asked]
        aside_m = np.minimum(self.known.counts(query_m) + self.known.group_counts(group_m), DEPTH)
        deepest = int(np.ceil(ranks[1]))
        for piece in pieces(len(asked), self._block_rows(deepest + int(aside_m.max()))):
            rows, query_b, group_b = asked[piece], query_m[piece], group_m[piece]
            k = min(deepest + int(aside_m[piece].max()), len(pool.documents))
            distinct, inverse = np.unique(examples.queries[rows], return_inverse=True)
            score_bk, place_bk = search.nearest(unit(self.vectors(distinct)), k)
            score_bk, place_bk = score_bk[inverse], place_bk[inverse]
            code_bk = code_P[place_bk]
            known_bk = self.known.among(query_b, group_b, code_bk)
            order_bk = None
            if self.config.pick == "random":
                digests = self.codes.digest_C
                order_bk = random_order(self.seed, digests[query_b], digests[code_bk])
            positive_b = self.positive_M[rows]
            chosen = choose(
                score_bk,
                known_bk | (place_bk < 0),
                self.limits.highest(positive_b),
                order_bk,
                ranks,
                self.config.negatives,
            )
            count_b = (chosen.place_bn >= 0).sum(axis=1)
            self.near_M[rows] = chosen.near_bk.any(axis=1)
            final_b = again | (parts == 1) | ~_short(count_b, self.near_M[rows], self.config.negatives)
            if not again:
                self.statistics.add_candidates(score_bk, positive_b, known_bk & (place_bk >= 0), chosen)
            self.statistics.add_chosen(score_bk[final_b], positive_b[final_b], chosen.place_bn[final_b])
            found_bn = np.take_along_axis(place_bk, np.maximum(chosen.place_bn, 0), axis=1)
            self.mined_Mn[rows] = np.where(chosen.place_bn >= 0, pool.documents[found_bn], -1)
            advance(len(rows))

    def _index(self, pool: Pool, asked: np.ndarray) -> Any:
        step = max(1, len(asked) // TUNED_WITH)
        sample = unit(self.vectors(np.unique(self.examples.queries[asked[::step]])))
        search, facts = search_among(pool.documents, self.vectors, self.config.index, self.device, sample)
        self.statistics.indexed(facts)
        return search

    def _block_rows(self, k: int) -> int:
        width = int(self.vectors(self.examples.queries[:1]).shape[1])
        return max(64, min(BLOCK_ROWS, BLOCK_BYTES // (4 * width), BLOCK_CANDIDATES // k))


def _short(found: np.ndarray, near: np.ndarray, wanted: int) -> np.ndarray:
    """Which rows have too few negatives while the rest of the pool may hold more. Where a part held none below the
    limit and some `near`, above it, the rest is no different; where it held nothing, it may be."""
    few: np.ndarray = (found < wanted) & ((found > 0) | ~near)
    return few


def _merged(mined_Mn: np.ndarray, examples: Examples, config: MineConfig) -> Ragged:
    """The negatives of every row: those that it came with, where they are kept, then the mined ones, n at most of both
    where any were mined for."""
    given = examples.negatives
    kept_M = given.counts.copy()
    if config.given == "replace":
        kept_M[(mined_Mn >= 0).any(axis=1)] = 0
    room_M = np.maximum(config.negatives - kept_M, 0)
    taken_Mn = (mined_Mn >= 0) & (np.cumsum(mined_Mn >= 0, axis=1) <= room_M[:, None])
    count_M = taken_Mn.sum(axis=1)
    merged = Ragged.of(np.empty(int((kept_M + count_M).sum()), dtype=np.int64), kept_M + count_M)
    own = kept_M[given.owners] > 0
    within = np.arange(len(given.values)) - given.offsets[given.owners]
    merged.values[(merged.offsets[given.owners] + within)[own]] = given.values[own]
    row, column = np.nonzero(taken_Mn)
    place = np.cumsum(taken_Mn, axis=1)[row, column] - 1
    merged.values[merged.offsets[row] + kept_M[row] + place] = mined_Mn[row, column]
    return merged


def _batches(data: Path, negatives: Ragged) -> Iterator[pa.RecordBatch]:
    from data_prep.tables import read_table

    table = read_table(data / "examples", EXAMPLES)
    for rows in pieces(len(table), WRITTEN_ROWS):
        start, end = int(rows[0]), int(rows[-1]) + 1
        part = table.slice(start, end - start).combine_chunks()
        offsets = negatives.offsets[start : end + 1]
        column = Ragged(offsets - offsets[0], negatives.values[offsets[0] : offsets[-1]]).to_arrow()
        columns = [column if name == "negatives" else part[name].combine_chunks() for name in EXAMPLES.names]
        yield pa.record_batch(columns, schema=EXAMPLES)

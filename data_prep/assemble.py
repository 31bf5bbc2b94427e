"""The tables while they grow: every text once, examples that point into them, and what is kept from training.

Texts go to a file as they come; in memory there are only flat arrays. Which texts are equal is found
by sorting their keys when all are there.

Shapes: T texts as they came, repeats included (a text is known by its first place); M examples; B bands.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from data_prep.clean import normal_form, order
from data_prep.examine import Examined, Shared, batches, examine
from data_prep.filters import FilterConfig
from data_prep.near_duplicates import BANDS, NUMBER, candidates, representatives, similarities
from data_prep.rows import Numbered, Row
from data_prep.tables import EXAMPLES, TEXTS, Ragged, pieces, write_table
from embedding.mix import GAMMA, mix

BATCH_ROWS = 1 << 24
"""Examples in a batch of the table that is written."""
FEWEST = 2
"""Pairs that a task needs at the least."""
_SPILL = pa.schema([("role", pa.string()), ("task", pa.string()), ("text", pa.large_string()), ("lang", pa.string())])
KEPT, DUPLICATE, NEAR_DUPLICATE, HELD, SPOILT = range(5)
"""What becomes of an example."""
FATES = ("", "duplicate", "near-duplicate", "held out", "repeats a held-out text")


class Pair(NamedTuple):
    """A held-out pair: what is asked, its document, how close they are (None: not graded), and its instruction."""

    query: str
    document: str
    score: float | None
    instruction: str


class Assembly:
    """Collects examined rows; `freeze` says which of them are distinct."""

    def __init__(self, folder: Path) -> None:
        """`folder` takes the texts meanwhile; delete it when all is written."""
        folder.mkdir(parents=True)
        self.folder = folder
        self.keys, self.digests = array("Q"), array("Q")
        self.units, self.counts = array("Q"), array("q")
        self.positive_counts = array("q")
        self.scores, self.groups, self.sources, self.numbers = array("f"), array("q"), array("i"), array("q")
        self.group_of: dict[tuple[int, str], int] = {}
        self._file = pa.OSFile(str(folder / "texts.arrow"), "wb")
        self._writer = pa.ipc.new_file(self._file, _SPILL)
        self._bands = [(folder / f"band-{band:02}").open("wb") for band in range(BANDS)]

    def add(self, found: Examined) -> None:
        """Add the rows of a batch that stay."""
        if not found.rows:
            return
        columns = (found.roles, found.tasks, found.texts, found.langs)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, _SPILL, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=_SPILL))
        start = len(self.digests)
        self.keys.frombytes(np.ascontiguousarray(found.keys_T2).tobytes())
        self.digests.frombytes(found.digests_T.tobytes())
        for band, file in enumerate(self._bands[: found.bands_TB.shape[1]]):
            file.write(np.ascontiguousarray(found.bands_TB[:, band]).tobytes())
        for number, _, row in found.rows:
            self.counts.append(len(row.texts()))
            self.positive_counts.append(len(row.positives))
            self.scores.append(float("nan") if row.score is None else row.score)
            self.sources.append(found.source)
            self.numbers.append(number)
            if row.group is None:
                self.groups.append(-1)
                self.units.append(self.digests[start + min(len(row.positives), 1)])
            else:
                self.groups.append(self.group_of.setdefault((found.source, row.group), len(self.group_of)))
                self.units.append(order(found.source, row.group))
            start += self.counts[-1]

    def freeze(self) -> "Selection":
        """What was collected; examples that repeat an earlier one are out."""
        self._writer.close()
        self._file.close()
        for file in self._bands:
            file.close()
        return Selection(self)


class Spill:
    """The texts as they came, memory-mapped."""

    def __init__(self, path: Path) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        sizes = [self._reader.get_batch(i).num_rows for i in range(self._reader.num_record_batches)]
        self._starts = np.cumsum([0, *sizes])

    def take(self, rows: np.ndarray) -> Iterator[pa.RecordBatch]:
        """Ascending rows, in pieces."""
        borders = np.searchsorted(rows, self._starts)
        for number in np.flatnonzero(np.diff(borders)).tolist():
            mine = rows[borders[number] : borders[number + 1]] - self._starts[number]
            yield self._reader.get_batch(number).take(pa.array(mine))

    def texts(self, rows: np.ndarray, column: str = "text") -> list[str]:
        """The texts, or what another column holds, of rows in any order."""
        distinct, place = np.unique(rows, return_inverse=True)
        found = [value for batch in self.take(distinct) for value in batch.column(column).to_pylist()]
        return [found[i] for i in place.tolist()]


class Selection:
    """Which examples are trained on: `fate_M`, and for a repeat `of_M`, the example it repeats (-1: none)."""

    def __init__(self, assembly: Assembly) -> None:
        self.assembly = assembly
        self.spill = Spill(assembly.folder / "texts.arrow")
        self.sources_M = np.asarray(assembly.sources, dtype=np.int32)
        self.digests_T = np.asarray(assembly.digests, dtype=np.uint64)
        self.near_digests_T = self.digests_T
        """Of the text that each is a near-duplicate of; of all others their own."""
        self.close_C2 = np.zeros((0, 2), dtype=np.int64)
        """Pairs of texts that are near each other."""
        self.units_M = np.asarray(assembly.units, dtype=np.uint64)
        self.fate_M = np.zeros(len(self.sources_M), dtype=np.int8)
        self.of_M = np.full(len(self.sources_M), -1, dtype=np.int64)
        self.first_T = _first_of_equal(np.asarray(assembly.keys, dtype=np.uint64).reshape(-1, 2))
        counts = np.asarray(assembly.counts, dtype=np.int64)
        positive_counts = np.asarray(assembly.positive_counts, dtype=np.int64)
        starts = np.cumsum(counts) - counts
        asked_T = np.zeros(len(self.first_T), dtype=bool)
        asked_T[starts] = True
        # A row's positives follow its query: +1 where they begin, -1 where they end.
        borders_T = np.zeros(len(self.first_T) + 1, dtype=np.int8)
        np.add.at(borders_T, starts + 1, 1)
        np.add.at(borders_T, starts + 1 + positive_counts, -1)
        positive_T = np.cumsum(borders_T[:-1], dtype=np.int8) > 0
        self.queries_M = self.first_T[asked_T]
        self.positives = Ragged.of(self.first_T[positive_T], positive_counts)
        self.negatives = Ragged.of(self.first_T[~asked_T & ~positive_T], counts - positive_counts - 1)
        scores = np.asarray(assembly.scores, dtype=np.float32).view(np.uint32).astype(np.int64)
        sides = (_sum_of_hashes(self.positives, 1), _sum_of_hashes(self.negatives, 2), _salted(scores, 3))
        self._drop_repeats(_salted(self.queries_M, 0) + sum(sides[1:], sides[0]), DUPLICATE)

    def _drop_repeats(self, hash_M: np.ndarray, fate: int, among_M: np.ndarray | bool = True) -> None:
        """Of kept examples with one hash, `among_M` (bool [M]) alone, all but the first go. Two of M examples share a
        64-bit hash by chance with a probability of M**2 / 2**65: 3 in a million at ten million rows."""
        rows = np.flatnonzero((self.fate_M == KEPT) & among_M)
        _, first, inverse = np.unique(hash_M[rows], return_index=True, return_inverse=True)
        again = first[inverse] != np.arange(len(rows))
        self.fate_M[rows[again]] = fate
        self.of_M[rows[again]] = rows[first[inverse[again]]]

    def drop_near_duplicates(self, threshold: float, compared: np.ndarray) -> dict[str, int]:
        """Drop every example whose query and positives are each nearly an earlier example's; returns what was found.

        Texts that are near each other share a near digest from then on, so that what is held out keeps its
        near-duplicates from training too. Texts whose numbers differ are not near each other: `chapter 3`, `chapter 4`.

        Args:
            compared: of each source, whether its rows are compared: bool [sources].
        """
        bands = self.assembly.folder.glob("band-*")
        compared_M = compared[self.sources_M]
        wanted_T = np.zeros(len(self.first_T), dtype=bool)
        wanted_T[self.first_T[np.repeat(compared_M, np.asarray(self.assembly.counts, dtype=np.int64))]] = True
        distinct = np.flatnonzero(wanted_T)
        pairs = candidates(np.fromfile(path, dtype=np.uint64)[distinct] for path in sorted(bands))
        similar = similarities(
            pairs,
            lambda rows: [normal_form(text) for text in self.spill.texts(distinct[rows])],
            NUMBER.findall,
        )
        close = pairs[similar >= threshold]
        self.close_C2 = distinct[close]
        near_T = np.arange(len(self.first_T))
        near_T[distinct] = distinct[representatives(len(distinct), close)]
        positives = Ragged(self.positives.offsets, near_T[self.positives.values])
        hash_M = _salted(near_T[self.queries_M], 0) + _sum_of_hashes(positives, 1)
        self._drop_repeats(hash_M, NEAR_DUPLICATE, compared_M)
        ungrouped = np.asarray(self.assembly.groups) < 0
        self.near_digests_T = self.digests_T[near_T[self.first_T]]
        answers_M = self.queries_M.copy()
        some = self.positives.counts > 0
        answers_M[some] = self.positives.values[self.positives.offsets[:-1][some]]
        self.units_M = np.where(ungrouped, self.near_digests_T[answers_M], self.units_M)
        return {
            "candidate pairs": len(pairs),
            "near pairs": len(close),
            "texts near an earlier one": int((near_T[distinct] != distinct).sum()),
        }

    def hold_out(self, source: int, share: float, most: int) -> list[Pair]:
        """Take about `share` of a source's pairs, at most about `most`, for evaluation, by a hash of their unit.

        A unit is all rows with one positive, or of one group, so that what is asked at the test was never an answer
        in training; one that would make it more than twice `most`, or half of the source, stays in training. Single
        texts have nothing to evaluate. Returns the pairs.
        """
        rows = np.flatnonzero((self.sources_M == source) & (self.positives.counts > 0) & self.kept_M)
        wanted = min(max(int(np.ceil(share * len(rows))), FEWEST), most)
        if not share or 2 * wanted > len(rows):
            return []
        units, sizes = np.unique(self.units_M[rows], return_counts=True)
        room, held_out, taken = min(2 * most, len(rows) // 2), 0, []
        for unit, size in zip(units, sizes.tolist(), strict=True):
            if held_out + size <= room:
                taken.append(unit)
                held_out += size
            if held_out >= wanted:
                break
        if held_out < min(wanted, FEWEST):
            return []  # as where one unit is most of the source, such as its only document
        chosen = rows[np.isin(self.units_M[rows], taken)]
        chosen = chosen[self._testable(chosen)]
        self.fate_M[chosen] = HELD
        held = self.positives.take(chosen)
        queries = np.repeat(self.queries_M[chosen], held.counts)
        asked, instructions = self.spill.texts(queries), self.spill.texts(queries, "task")
        scores = np.repeat(np.asarray(self.assembly.scores)[chosen], held.counts).tolist()
        found = zip(asked, self.spill.texts(held.values), scores, instructions, strict=True)
        return [
            Pair(query, document, None if np.isnan(score) else score, instruction)
            for query, document, score, instruction in found
        ]

    def _testable(self, rows: np.ndarray) -> np.ndarray:
        """Which rows a task can be made of: graded ones of more than one grade, others of more than one document."""
        scores = np.asarray(self.assembly.scores)[rows]
        graded = ~np.isnan(scores)
        documents = self.digests_T[self.positives.take(rows[~graded]).values]
        return np.where(graded, len(np.unique(scores[graded])) > 1, len(np.unique(documents)) > 1)

    def digests_of_held(self) -> set[int]:
        """The digests of all texts of held-out examples."""
        held = np.flatnonzero(self.fate_M == HELD)
        texts = np.concatenate([self.queries_M[held], self.positives.take(held).values])
        return set(self.digests_T[texts].tolist())

    def protect(self, digests: set[int]) -> int:
        """Keep every text with one of these digests out of training, and its near-duplicates with it: a row whose query
        or positive it is goes, of negatives only the text itself. Returns how many negatives went."""
        forbidden_T = np.isin(self.digests_T, np.fromiter(digests, dtype=np.uint64, count=len(digests)))
        # By the near digest alone a text would stay that is not compared, or has another representative than its equal.
        forbidden_T |= np.isin(self.near_digests_T, self.near_digests_T[forbidden_T])
        # Nor does nearness pass on: of three versions in a row the outer two may have no representative in common.
        held_T = np.zeros(len(self.first_T), dtype=bool)
        held_T[self.first_T[forbidden_T]] = True
        held_T[self.close_C2[held_T[self.close_C2].any(axis=1)]] = True
        forbidden_T |= np.isin(self.digests_T, self.digests_T[held_T])
        spoilt_M = forbidden_T[self.queries_M]
        spoilt_M[self.positives.owners[forbidden_T[self.positives.values]]] = True
        self.fate_M[spoilt_M & self.kept_M] = SPOILT
        gone = forbidden_T[self.negatives.values] & self.kept_M[self.negatives.owners]
        self.negatives = self.negatives.without(gone)
        return int(gone.sum())

    @property
    def kept_M(self) -> np.ndarray:
        """The examples to train on."""
        return np.asarray(self.fate_M == KEPT)

    def write(self, folder: Path, names: Sequence[str]) -> tuple[int, int]:
        """Write `texts` and `examples` with what is kept; return the numbers of texts and examples."""
        kept = np.flatnonzero(self.kept_M)
        used_T = np.zeros(len(self.digests_T), dtype=bool)
        used_T[self.queries_M[kept]] = True
        for side in (self.positives, self.negatives):
            used_T[side.take(kept).values] = True
        new_T = np.cumsum(used_T) - 1
        write_table(folder / "texts", TEXTS, self._text_batches(np.flatnonzero(used_T)))
        scores_M, groups_M = np.asarray(self.assembly.scores), np.asarray(self.assembly.groups)

        def batch(rows: np.ndarray) -> pa.RecordBatch:
            sides = (side.take(rows) for side in (self.positives, self.negatives))
            columns = [
                pa.array(new_T[self.queries_M[rows]]),
                *(Ragged(side.offsets, new_T[side.values]).to_arrow() for side in sides),
                pa.array(scores_M[rows]),
                pa.array(groups_M[rows]),
                pa.array(names, pa.string()).take(pa.array(self.sources_M[rows])),
            ]
            return pa.record_batch(columns, schema=EXAMPLES)

        # A column of names in one batch holds 2 GiB of them. No rows make one empty batch.
        batches = (batch(kept[part]) for part in pieces(len(kept), BATCH_ROWS)) if len(kept) else [batch(kept)]
        write_table(folder / "examples", EXAMPLES, batches)
        return int(used_T.sum()), len(kept)

    def _text_batches(self, used: np.ndarray) -> Iterator[pa.RecordBatch]:
        keys_T2 = np.asarray(self.assembly.keys, dtype=np.uint64).reshape(-1, 2)
        done = 0
        for batch in self.spill.take(used):
            keys = keys_T2[used[done : done + batch.num_rows]]
            done += batch.num_rows
            columns = [batch.column(name).cast(pa.string()) for name in _SPILL.names]
            yield pa.record_batch([pa.array(keys[:, 0]), pa.array(keys[:, 1]), *columns], schema=TEXTS)

    def rows_of(self, examples: np.ndarray) -> Iterator[dict[str, Any]]:
        """The texts of examples, for people: query, positives, negatives."""
        for start in range(0, len(examples), 1_000):
            piece = examples[start : start + 1_000]
            queries = self.spill.texts(self.queries_M[piece])
            sides = []
            for side in (self.positives, self.negatives):
                chosen = side.take(piece)
                texts = self.spill.texts(chosen.values)
                sides.append([texts[a:b] for a, b in zip(chosen.offsets[:-1], chosen.offsets[1:], strict=True)])
            for query, positives, negatives in zip(queries, *sides, strict=True):
                yield {"query": query, "positives": positives, "negatives": negatives}


def write_rows(rows: Iterable[tuple[Row, int, str]], folder: Path, names: Sequence[str]) -> tuple[int, int]:
    """Write the tables of (row, source, instruction) to `folder`, each distinct row once and nothing else dropped;
    return the numbers of texts and examples."""
    with TemporaryDirectory() as work:
        assembly = Assembly(Path(work) / "texts")
        for (source, instruction), found in groupby(rows, key=itemgetter(1, 2)):
            numbered = (Numbered(number, "", row) for number, (row, _, _) in enumerate(found, start=1))
            for batch in batches(numbered, source, instruction, False, FilterConfig()):
                assembly.add(examine(batch, Shared()))
        return assembly.freeze().write(folder, names)


def _first_of_equal(keys_T2: np.ndarray) -> np.ndarray:
    """The first place of each text: int64 [T]."""
    ordered = np.lexsort((keys_T2[:, 1], keys_T2[:, 0]))  # stable: among equal keys the earliest comes first
    begins = np.zeros(len(ordered), dtype=bool)
    begins[:1] = True
    for half in (0, 1):  # one after the other: ten million rows are 20 million texts, and each copy of a column 160 MB
        column_T = keys_T2[ordered, half]
        begins[1:] |= column_T[1:] != column_T[:-1]
    first_T = np.empty(len(ordered), dtype=np.int64)
    first_T[ordered] = ordered[np.flatnonzero(begins)][np.cumsum(begins) - 1] if len(ordered) else ordered
    return first_T


def _salted(values: np.ndarray, salt: int) -> np.ndarray:
    """A hash of each value, another for each salt: uint64."""
    return mix(values.astype(np.uint64) + np.uint64((salt + 1) * GAMMA % 2**64))


def _sum_of_hashes(side: Ragged, salt: int) -> np.ndarray:
    """A hash of each row's values whatever their order: uint64 [rows]."""
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_salted(side.values, salt), dtype=np.uint64)])
    return np.asarray(total[side.offsets[1:]] - total[side.offsets[:-1]])

"""The tables while they grow: every text once, examples that point into them, and what is kept from training.

Shapes: N texts, M examples. Texts are held in memory until they are written; everything else is a flat array.
"""

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from data_prep.clean import digest, order
from data_prep.sources import Row
from data_prep.tables import EXAMPLES, TEXTS, Ragged, pieces, write_table
from embedding.files import content_key
from embedding.instruction import Role

BATCH_ROWS = 10_000
FEWEST = 2
"""Pairs that a task needs at the least."""


class Pair(NamedTuple):
    """A held-out pair: what is asked, its document, and how close they are (None: not graded)."""

    query: str
    document: str
    score: float | None


class Assembly:
    """Collects rows, then holds some out, then writes the rest."""

    def __init__(self) -> None:
        self.row_of: dict[bytes, int] = {}
        self.roles, self.tasks, self.texts, self.langs = list[str](), list[str](), list[str](), list[str]()
        self.digests = array("Q")
        self.queries, self.units = array("q"), array("Q")
        self.positives, self.positive_counts = array("q"), array("q")
        self.negatives, self.negative_counts = array("q"), array("q")
        self.scores, self.groups, self.sources = array("f"), array("q"), array("i")
        self.group_of: dict[tuple[int, str], int] = {}
        self.seen: set[bytes] = set()

    def add(self, row: Row, source: int, instruction: str, symmetric: bool = False) -> bool:
        """Add an example; False where the same one is there already."""
        asks = bool(row.positives or instruction)
        query = self._text("query" if asks else "document", instruction, row.query, row.lang)
        side: tuple[Role, str] = ("query", instruction) if symmetric else ("document", "")
        positives = [self._text(*side, text, row.lang) for text in row.positives]
        negatives = [self._text(*side, text, row.lang) for text in row.negatives]
        key = content_key(repr((query, sorted(positives), sorted(negatives), row.score)))
        if key in self.seen:
            return False
        self.seen.add(key)
        self.queries.append(query)
        self.positives.extend(positives)
        self.positive_counts.append(len(positives))
        self.negatives.extend(negatives)
        self.negative_counts.append(len(negatives))
        self.scores.append(float("nan") if row.score is None else row.score)
        self.sources.append(source)
        if row.group is None:
            self.groups.append(-1)
            self.units.append(self.digests[(positives or [query])[0]])
        else:
            self.groups.append(self.group_of.setdefault((source, row.group), len(self.group_of)))
            self.units.append(order(source, row.group))
        return True

    def _text(self, role: Role, task: str, text: str, lang: str) -> int:
        row = self.row_of.setdefault(content_key(role, task, text), len(self.texts))
        if row == len(self.texts):
            self.roles.append(role)
            self.tasks.append(task)
            self.texts.append(text)
            self.langs.append(lang)
            self.digests.append(digest(text))
        return row

    def freeze(self) -> "Selection":
        """What was collected, with every example still in."""
        return Selection(self)


class Selection:
    """Which examples are trained on. `held_M`: kept for evaluation; `spoilt_M`: repeats a text that is."""

    def __init__(self, assembly: Assembly) -> None:
        self.assembly = assembly
        self.sources_M = np.asarray(assembly.sources, dtype=np.int32)
        self.queries_M = np.asarray(assembly.queries, dtype=np.int64)
        self.digests_N = np.asarray(assembly.digests, dtype=np.uint64)
        self.positives = Ragged.of(np.asarray(assembly.positives), np.asarray(assembly.positive_counts))
        self.negatives = Ragged.of(np.asarray(assembly.negatives), np.asarray(assembly.negative_counts))
        self.held_M = np.zeros(len(self.queries_M), dtype=bool)
        self.spoilt_M = np.zeros(len(self.queries_M), dtype=bool)

    def hold_out(self, source: int, share: float, most: int) -> list[Pair]:
        """Take about `share` of a source's pairs, at most about `most`, for evaluation, by a hash of their unit.

        A unit is all rows with one positive, or of one group, so that what is asked at the test was never an answer
        in training. Single texts have nothing to evaluate. Returns the pairs.
        """
        rows = np.flatnonzero((self.sources_M == source) & (self.positives.counts > 0))
        wanted = min(max(int(np.ceil(share * len(rows))), FEWEST), most)
        if not share or 2 * wanted > len(rows):
            return []
        units = np.asarray(self.assembly.units)[rows]
        ordered = np.argsort(units, kind="stable")
        border = units[ordered[wanted - 1]]
        chosen = np.sort(rows[units <= border])
        self.held_M[chosen] = True
        texts, scores = self.assembly.texts, self.assembly.scores
        return [
            Pair(texts[self.queries_M[row]], texts[positive], None if np.isnan(scores[row]) else scores[row])
            for row in chosen.tolist()
            for positive in self.positives.row(row).tolist()
        ]

    def protect(self, digests: set[int]) -> int:
        """Keep every text with one of these digests out of training: a row whose query or positive it is goes, of
        negatives only the text itself. Returns how many negatives went."""
        forbidden_N = np.isin(self.digests_N, np.fromiter(digests, dtype=np.uint64, count=len(digests)))
        self.spoilt_M |= forbidden_N[self.queries_M]
        self.spoilt_M[self.positives.owners[forbidden_N[self.positives.values]]] = True
        self.spoilt_M &= ~self.held_M
        gone = forbidden_N[self.negatives.values] & self.kept_M[self.negatives.owners]
        self.negatives = self.negatives.without(gone)
        return int(gone.sum())

    @property
    def kept_M(self) -> np.ndarray:
        """The examples to train on."""
        return ~(self.held_M | self.spoilt_M)

    def write(self, folder: Path, names: Sequence[str]) -> tuple[int, int]:
        """Write `texts` and `examples` with what is kept; return the numbers of texts and examples."""
        kept = np.flatnonzero(self.kept_M)
        positives, negatives = self.positives.take(kept), self.negatives.take(kept)
        used_N = np.zeros(len(self.digests_N), dtype=bool)
        for rows in (self.queries_M[kept], positives.values, negatives.values):
            used_N[rows] = True
        new_N = np.cumsum(used_N) - 1
        write_table(folder / "texts", TEXTS, self._text_batches(np.flatnonzero(used_N)))
        examples = [
            pa.array(new_N[self.queries_M[kept]]),
            Ragged(positives.offsets, new_N[positives.values]).to_arrow(),
            Ragged(negatives.offsets, new_N[negatives.values]).to_arrow(),
            pa.array(np.asarray(self.assembly.scores)[kept]),
            pa.array(np.asarray(self.assembly.groups)[kept]),
            pa.array([names[source] for source in self.sources_M[kept].tolist()], pa.string()),
        ]
        write_table(folder / "examples", EXAMPLES, [pa.record_batch(examples, schema=EXAMPLES)])
        return int(used_N.sum()), len(kept)

    def _text_batches(self, used: np.ndarray) -> Iterator[pa.RecordBatch]:
        # A dict keeps its order: the keys stand in the order of the rows.
        keys = np.frombuffer(b"".join(self.assembly.row_of), dtype="<u8").reshape(-1, 2)
        columns = (self.assembly.roles, self.assembly.tasks, self.assembly.texts, self.assembly.langs)
        for piece in pieces(len(used), BATCH_ROWS):
            rows = used[piece]
            strings = [pa.array([column[row] for row in rows.tolist()], pa.string()) for column in columns]
            yield pa.record_batch([pa.array(keys[rows, 0]), pa.array(keys[rows, 1]), *strings], schema=TEXTS)

"""Which documents may be a row's negatives, and which of them are: pure functions over one block of search results.

Shapes: N texts, M examples, b rows of a block, k candidates of each, C distinct texts.
"""

from typing import NamedTuple, Self

import numpy as np

from data_prep.clean import digest
from data_prep.tables import Examples, Ragged, Texts, pieces
from embedding.mix import mix, mix_int

KEYED_TEXTS = 16_384
"""Texts whose digests are taken at a time."""


class Codes(NamedTuple):
    """Equal texts (in normal form) have equal codes, in whatever role and with whatever prompt they stand."""

    code_N: np.ndarray
    """int64 [N], from 0 to C - 1."""
    digest_C: np.ndarray
    """uint64 [C]: what does not change when other texts are added."""

    @classmethod
    def of(cls, texts: Texts) -> Self:
        """Of all texts."""
        found = np.empty(len(texts), dtype=np.uint64)
        for rows in pieces(len(texts), KEYED_TEXTS):
            part = texts.texts.slice(int(rows[0]), len(rows)).to_pylist()
            found[rows] = np.fromiter(map(digest, part), np.uint64, count=len(rows))
        digest_C, code_N = np.unique(found, return_inverse=True)
        return cls(code_N.astype(np.int64), digest_C)


class Known:
    """What is known to be no negative of a row: the query itself, every positive and given negative of any row that
    asks the same, every query that it answers, and every text of the row's group."""

    def __init__(self, examples: Examples, codes: Codes) -> None:
        code_N, self._count = codes.code_N, len(codes.digest_C)
        query_M = code_N[examples.queries]
        found = [query_M * (self._count + 1)]
        for side in (examples.positives, examples.negatives):
            found.append(query_M[side.owners] * self._count + code_N[side.values])
        found.append(code_N[examples.positives.values] * self._count + query_M[examples.positives.owners])
        self._pairs = np.unique(np.concatenate(found))
        grouped = examples.groups >= 0
        members = [examples.groups[grouped] * self._count + query_M[grouped]]
        owner = examples.positives.owners[grouped[examples.positives.owners]]
        values = examples.positives.values[grouped[examples.positives.owners]]
        members.append(examples.groups[owner] * self._count + code_N[values])
        self._members = np.unique(np.concatenate(members))

    def counts(self, query_b: np.ndarray) -> np.ndarray:
        """How many texts are known of each query (a code), its group apart: int64 [b]."""
        low_b, high_b = self._range(self._pairs, query_b)
        count_b: np.ndarray = high_b - low_b
        return count_b

    def group_counts(self, group_b: np.ndarray) -> np.ndarray:
        """How many texts are in each row's group: int64 [b]; 0 without a group."""
        low, high = self._range(self._members, group_b)
        return np.where(group_b >= 0, high - low, 0)

    def group(self, group: int) -> np.ndarray:
        """The codes of a group's texts: int64 [texts], ascending."""
        low, high = self._range(self._members, np.array([group]))
        found: np.ndarray = self._members[low[0] : high[0]] - group * self._count
        return found

    def among(self, query_b: np.ndarray, group_b: np.ndarray, code_bk: np.ndarray) -> np.ndarray:
        """Which candidates are no negatives: bool [b, k]."""
        low_b, high_b = self._range(self._pairs, query_b)
        pairs = Ragged.of(np.zeros(0), high_b - low_b)
        owner = np.repeat(np.arange(len(query_b)), high_b - low_b)
        place = np.arange(len(owner)) - pairs.offsets[owner] + low_b[owner]
        # A small table of this block's own pairs: looking up in the large one would miss the cache every time.
        local = owner * self._count + self._pairs[place] - query_b[owner] * self._count
        row_b1 = np.arange(len(query_b))[:, None] * self._count
        known_bk = _contains(np.sort(local), row_b1 + code_bk)
        grouped = np.flatnonzero(group_b >= 0)
        if len(grouped):
            known_bk[grouped] |= _contains(self._members, group_b[grouped, None] * self._count + code_bk[grouped])
        return known_bk

    def _range(self, table: np.ndarray, first_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        start_b = first_b * self._count
        return np.searchsorted(table, start_b), np.searchsorted(table, start_b + self._count)


class Limits(NamedTuple):
    """How near to the positive's score a negative's may come."""

    relative: float | None
    absolute: float | None

    def highest(self, positive_b: np.ndarray) -> np.ndarray:
        """The score that a row's negatives must stay below: [b]. The relative limit is taken off the positive's size,
        so that it lowers the limit of a positive with a score below zero too."""
        highest_b = np.full(len(positive_b), np.inf, dtype=np.float32)
        if self.relative is not None:
            highest_b = np.minimum(highest_b, positive_b - np.abs(positive_b) * (1.0 - self.relative))
        if self.absolute is not None:
            highest_b = np.minimum(highest_b, positive_b - self.absolute)
        return highest_b


class Chosen(NamedTuple):
    """What became of one block's candidates."""

    place_bn: np.ndarray
    """Columns of the candidates chosen: int64 [b, n]; -1 where there are not enough."""
    near_bk: np.ndarray
    """Within the ranks and at or above the limit: bool [b, k]. Relevant perhaps, though nobody says so."""
    usable_bk: np.ndarray
    """Within the ranks and below the limit: bool [b, k]."""


def choose(
    score_bk: np.ndarray,
    known_bk: np.ndarray,
    highest_b: np.ndarray,
    order_bk: np.ndarray | None,
    ranks: tuple[float, float],
    count: int,
) -> Chosen:
    """The negatives of rows among their candidates, which stand nearest first.

    Args:
        known_bk: candidates that are no negatives; they have no rank.
        order_bk: uint64; those with the smallest numbers are taken. None: the nearest are.
        ranks: the first and the last rank, from 1.
    """
    rank_bk = np.cumsum(~known_bk, axis=1)
    inside_bk = ~known_bk & (rank_bk >= ranks[0]) & (rank_bk <= ranks[1])
    near_bk = inside_bk & (score_bk >= highest_b[:, None])
    usable_bk = inside_bk & ~near_bk
    if order_bk is None:
        order_bk = np.broadcast_to(np.arange(score_bk.shape[1], dtype=np.uint64), score_bk.shape)
    order_bk = np.where(usable_bk, order_bk >> np.uint64(1), np.uint64(2**64 - 1))  # the unusable come last
    taken = np.argsort(order_bk, axis=1, kind="stable")[:, :count]
    place_bn = np.full((len(score_bk), count), -1, dtype=np.int64)
    place_bn[:, : taken.shape[1]] = np.where(np.take_along_axis(usable_bk, taken, axis=1), taken, -1)
    return Chosen(place_bn, near_bk, usable_bk)


def random_order(seed: int, query_b: np.ndarray, document_bk: np.ndarray) -> np.ndarray:
    """Numbers that depend on the seed and the digests of query and document alone: uint64 [b, k]."""
    return mix(mix(query_b + np.uint64(mix_int(seed)))[:, None] ^ document_bk)


def parts_of(seed: int, digests: np.ndarray, parts: int) -> np.ndarray:
    """Which of `parts` random parts each text falls into: int64."""
    return (mix(digests ^ np.uint64(mix_int(~seed))) % np.uint64(parts)).astype(np.int64)


def _contains(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    if not len(table):
        return np.zeros(values.shape, dtype=bool)
    place = np.minimum(np.searchsorted(table, values), len(table) - 1)
    found: np.ndarray = table[place] == values
    return found

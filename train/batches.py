"""The sampler: batch(step) as a pure function of the seed, the step and the data. Nothing is remembered between steps.

The sequence of global batches is the same for any number of ranks, and any step can be jumped to at once.

Shapes: B rows of a batch, N distinct texts in it, K distinct documents, H negatives of a row, G graded pairs, X pairs,
W ranks, n texts on each rank, P positives of all rows.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_prep.tables import Examples, Texts, Tokens
from embedding.mix import mix_int
from embedding.tokens import cut, plan_chunks
from train.permutation import permute
from train.views import PART_BITS

SLOTS = 4_096
"""Resolution of the mixture: a source's share is rounded to 1 / SLOTS."""


@dataclass(frozen=True)
class Batch:
    """One global batch, as positions into its own distinct texts; `train.views.Views` explains the fields."""

    step: int
    text_N: np.ndarray
    """Rows of the texts table, distinct, ascending."""
    length_N: np.ndarray
    """Tokens of each text after the cut."""
    part_N: np.ndarray
    query_B: np.ndarray
    document_K: np.ndarray
    positive_B: np.ndarray
    negative_BH: np.ndarray
    excluded_X2: np.ndarray
    query_group_B: np.ndarray
    document_group_K: np.ndarray
    graded_G2: np.ndarray
    score_G: np.ndarray


@dataclass(frozen=True)
class Share:
    """How a batch's texts are spread over ranks: neighbours in length go to different ranks, so tokens balance."""

    mine_n: np.ndarray
    """This rank's texts, positions into the batch, longest first; the last ones may repeat a text as filler."""
    filler_n: np.ndarray
    """True where a text only fills up the rank's share."""
    where_N: np.ndarray
    """Where each text stands among the gathered rows of all ranks."""
    longest_n: np.ndarray
    """The longest length over the ranks in each place: chunks planned from it are equally many on every rank."""

    def chunks(self, token_budget: int, *, packed: bool) -> list[np.ndarray]:
        """Places [.] of each chunk among this rank's texts."""
        return plan_chunks(self.longest_n, token_budget, packed=packed)


def share(length_N: np.ndarray, rank: int, world: int) -> Share:
    """Deal a batch's texts to `world` ranks by length, back and forth, so that every rank gets about as many tokens."""
    order = np.argsort(-length_N, kind="stable")
    per_rank = -(-len(order) // world)
    fillers = per_rank * world - len(order)
    filled = np.concatenate([order, np.repeat(order[-1:], fillers)]).reshape(per_rank, world)
    filler = (np.arange(per_rank * world) >= len(order)).reshape(per_rank, world)
    for table in (filled, filler):
        table[1::2] = table[1::2, ::-1].copy()
    where_N = np.empty(len(order), dtype=np.int64)
    place, owner = np.nonzero(~filler)
    where_N[filled[place, owner]] = owner * per_rank + place
    return Share(filled[:, rank], filler[:, rank], where_N, length_N[filled].max(axis=1))


def source_shares(examples: Examples, weights: Mapping[str, float] | None, alpha: float) -> np.ndarray:
    """How often each source is drawn, in the order of their names: by `weights`, else by its rows ** alpha; sum 1."""
    names = examples.source_names
    sizes = np.bincount(examples.sources, minlength=len(names)).astype(np.float64)
    by_size = np.where(sizes > 0, np.maximum(sizes, 1) ** alpha, 0.0)
    raw = np.array([weights.get(name, 0.0) for name in names]) if weights else by_size
    return np.asarray(raw / raw.sum())


class Sampler:
    """Batches of one stage over one prepared data set."""

    def __init__(
        self,
        texts: Texts,
        examples: Examples,
        tokens: Tokens,
        *,
        seed: int,
        batch_size: int,
        max_tokens: int,
        negatives: int = 0,
        weights: Mapping[str, float] | None = None,
        alpha: float = 1.0,
        one_source: bool = True,
    ) -> None:
        """`weights`: share of each named source, others are left out; None: size ** `alpha`.

        `one_source`: a batch's rows come from one source, so that in-batch negatives share its task.

        Raises:
            ValueError: an unknown source, or a batch larger than the rows it is drawn from.
        """
        self.texts, self.examples, self.tokens = texts, examples, tokens
        self.seed, self.batch_size, self.max_tokens, self.negatives = seed, batch_size, max_tokens, negatives
        self.one_source = one_source
        self._grouped, self._group_of_grouped = _document_groups(examples)
        names = examples.source_names
        sizes = np.bincount(examples.sources, minlength=len(names))
        unknown = sorted(set(weights or {}) - set(names))
        if unknown:
            raise ValueError(f"mixture: no source named {unknown[0]!r}; the data has {', '.join(names)}")
        raw = source_shares(examples, weights, alpha)
        self._rows = [np.flatnonzero(examples.sources == source) for source in range(len(names))]
        for source in np.flatnonzero(raw):
            limit = int(sizes[source]) if one_source else int(sizes[raw > 0].sum())
            if batch_size > limit:
                what = f"source {names[source]!r}" if one_source and len(names) > 1 else "the data"
                raise ValueError(f"batch_size {batch_size}: {what} has {limit} rows; set batch_size to at most {limit}")
        self._source_of, self._seen, self._quota = _schedule(raw, seed)
        self.rows_per_epoch = int(sizes[raw > 0].sum())
        drawn_M = raw[examples.sources] > 0
        paired_M, graded_M = examples.positives.counts > 0, np.isfinite(examples.scores)
        hard_M = drawn_M & paired_M & ~graded_M & (examples.negatives.counts > 0)
        self.rows_of_kind: dict[str, int] = {
            "single": int((drawn_M & ~paired_M).sum()),
            "pairs": int((drawn_M & paired_M & ~graded_M).sum()),
            "negatives": int(hard_M.sum()) if negatives else 0,
            "graded": int((drawn_M & paired_M & graded_M).sum()),
        }
        """Rows that are drawn from, by kind; those with negatives are pairs too."""

    def batch(self, step: int) -> Batch:
        """The global batch of a step."""
        rows, epochs = self._draw(step)
        return self._build(step, rows, epochs)

    @property
    def longest(self) -> int:
        """Tokens of the longest text that there is, cut to the stage's length."""
        return min(int(self.tokens.lengths.max(initial=0)), self.max_tokens)

    def ids(self, text: int) -> np.ndarray:
        """The tokens of a text, cut to the stage's length with the EOS kept: int32."""
        return cut(self.tokens.ids(text), self.max_tokens, self.tokens.suffix)

    def _draw(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The example rows of a step and the epoch each belongs to."""
        size = self.batch_size
        if self.one_source:
            turn_B = np.full(size, step)
        else:
            turn_B = step * size + np.arange(size)
        period, slot = np.divmod(turn_B, SLOTS)
        source = self._source_of[slot]
        at = period * self._quota[source] + self._seen[slot]
        if self.one_source:
            at = at * size + np.arange(size)
        rows, epochs = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
        for s in np.unique(source):
            mine = np.flatnonzero(source == s)
            epochs[mine], within = np.divmod(at[mine], len(self._rows[s]))
            for epoch in np.unique(epochs[mine]):
                now = epochs[mine] == epoch
                shuffled = permute(within[now], len(self._rows[s]), mix_int(self.seed, int(s), int(epoch)))
                rows[mine[now]] = self._rows[s][shuffled]
        return rows, epochs

    def _build(self, step: int, rows: np.ndarray, epochs: np.ndarray) -> Batch:
        query, positive, owner, negative, negative_of, also, graded = [], [], [], [], [], [], []
        for row, epoch in zip(rows.tolist(), epochs.tolist(), strict=True):
            positives, negatives = self.examples.positives_of(row), self.examples.negatives_of(row)
            query.append(self.examples.queries[row])
            if not len(positives):
                continue
            turn = mix_int(self.seed, row, epoch)
            chosen = positives[turn % len(positives)]
            if np.isfinite(self.examples.scores[row]):  # a graded pair: how close it is, not that it belongs together
                graded.append((query[-1], chosen, self.examples.scores[row]))
                continue
            owner.append(len(query) - 1)
            positive.append(chosen)
            also += [(len(owner) - 1, int(p)) for p in positives] if len(positives) > 1 else []
            count = min(self.negatives, len(negatives))
            negative += [negatives[(turn + j) % len(negatives)] for j in range(count)]
            negative_of += [(len(owner) - 1, j) for j in range(count)]
        owner_B = np.array(owner, dtype=np.int64)
        table_G3 = np.array(graded, dtype=np.float64).reshape(-1, 3)
        of_pair = table_G3[:, 1].astype(np.int64)
        parts = [np.array(part, dtype=np.int64) for part in (query, positive, negative)]
        text_N = np.unique(np.concatenate([*parts, of_pair]))
        query_at, positive_at, negative_at, of_pair = (np.searchsorted(text_N, part) for part in (*parts, of_pair))
        part_N = np.zeros(len(text_N), dtype=np.int64)
        roles = (query_at, np.concatenate([positive_at, of_pair]), negative_at)
        for at, bit in zip(roles, PART_BITS.values(), strict=True):
            np.bitwise_or.at(part_N, at, bit)
        document_K = np.unique(np.concatenate([positive_at, negative_at]))
        positive_B = np.searchsorted(document_K, positive_at)
        query_B, group_B = query_at[owner_B], self.examples.groups[rows[owner_B]]
        group_K, several = self._groups_of(text_N[document_K])
        excluded = self._other_positives(also, text_N[document_K])
        excluded |= self._same_words(text_N[query_B], text_N[document_K], positive_B)
        excluded |= {(int(i), k) for k, group in several for i in np.flatnonzero(group_B == group)}
        some_X2 = np.array(list(excluded), dtype=np.int64).reshape(-1, 2)
        pairs_X2 = np.concatenate([self._same_query(query_B, positive_B), some_X2])
        count = max(len(document_K), 1)
        code_X = np.unique(pairs_X2 @ np.array([count, 1]))  # as numbers, which sort fast: there may be millions
        negative_BH = np.full((len(owner), self.negatives), -1, dtype=np.int64)
        of_R2, k_R = np.array(negative_of, dtype=np.int64).reshape(-1, 2), np.searchsorted(document_K, negative_at)
        good_R = ~np.isin(of_R2[:, 0] * count + k_R, code_X) & (k_R != positive_B[of_R2[:, 0]])
        negative_BH[of_R2[good_R, 0], of_R2[good_R, 1]] = k_R[good_R]
        return Batch(
            step=step,
            text_N=text_N,
            length_N=np.minimum(self.tokens.lengths[text_N], self.max_tokens),
            part_N=part_N,
            query_B=query_B,
            document_K=document_K,
            positive_B=positive_B,
            negative_BH=negative_BH,
            excluded_X2=np.stack(np.divmod(code_X, count), axis=1),
            query_group_B=group_B,
            document_group_K=group_K,
            graded_G2=np.stack([np.searchsorted(text_N, table_G3[:, 0].astype(np.int64)), of_pair], axis=1),
            score_G=table_G3[:, 2].astype(np.float32),
        )

    def _groups_of(self, text_K: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """The group of each document, -1 for none: a negative's too, which may be another row's positive. Where a
        document stands in several, the others are listed as (document, group)."""
        low_K, high_K = (np.searchsorted(self._grouped, text_K, side) for side in ("left", "right"))
        group_K = np.full(len(text_K), -1, dtype=np.int64)
        group_K[high_K > low_K] = self._group_of_grouped[low_K[high_K > low_K]]
        several = np.flatnonzero(high_K > low_K + 1).tolist()
        return group_K, [(k, int(group)) for k in several for group in self._group_of_grouped[low_K[k] + 1 : high_K[k]]]

    @staticmethod
    def _same_query(query_B: np.ndarray, positive_B: np.ndarray) -> np.ndarray:
        """A query that stands in several rows is not contrasted with any of their positives: (row, document) [X, 2]."""
        _, group_B, counts = np.unique(query_B, return_inverse=True, return_counts=True)
        order_B, begin = np.argsort(group_B, kind="stable"), np.cumsum(counts) - counts
        rows = np.flatnonzero(counts[group_B] > 1)
        many = counts[group_B[rows]]
        row_X = np.repeat(rows, many)
        within_X = np.arange(len(row_X)) - np.repeat(np.cumsum(many) - many, many)
        other_X = order_B[begin[group_B[row_X]] + within_X]
        apart = row_X != other_X
        return np.stack([row_X[apart], positive_B[other_X[apart]]], axis=1)

    @staticmethod
    def _other_positives(also: list[tuple[int, int]], document_text_K: np.ndarray) -> set[tuple[int, int]]:
        """A row's further positives, where the batch happens to hold them."""
        place = {text: k for k, text in enumerate(document_text_K.tolist())}
        return {(row, place[text]) for row, text in also if text in place}

    def _same_words(
        self, query_text_B: np.ndarray, document_text_K: np.ndarray, positive_B: np.ndarray
    ) -> set[tuple[int, int]]:
        """A document with the words of the query, or of its positive, is no negative: under several prompts the same
        words are several texts."""
        words_K = [self.texts.text(text) for text in document_text_K.tolist()]
        places: dict[str, list[int]] = defaultdict(list)
        for k, words in enumerate(words_K):
            places[words].append(k)
        found = set()
        for row, (text, positive) in enumerate(zip(query_text_B.tolist(), positive_B.tolist(), strict=True)):
            found |= {(row, k) for k in places.get(self.texts.text(text), ())}
            found |= {(row, k) for k in places[words_K[positive]] if k != positive}
        return found


def _document_groups(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """The documents of rows with a group, ascending, and their groups; one that is in several stands there for each."""
    if not (examples.groups >= 0).any():
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    group_P = np.repeat(examples.groups, examples.positives.counts)
    pairs = np.stack([examples.positives.values, group_P], axis=1)[group_P >= 0]
    pairs = np.unique(pairs, axis=0)
    return pairs[:, 0], pairs[:, 1]


def _schedule(weights: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spread the sources over SLOTS turns by largest remainder, every source at least one turn. Of a source with q
    turns one lies in each q-th part of the whole, anywhere in it: a short training is mixed as a long one.

    Returns the source of each turn, how many earlier turns had the same source, and each source's number of turns.
    """
    exact = weights / weights.sum() * (SLOTS - np.count_nonzero(weights))
    quota = np.floor(exact).astype(np.int64) + (weights > 0)
    rest = SLOTS - int(quota.sum())
    quota[np.argsort(np.floor(exact) - exact, kind="stable")[:rest]] += 1
    source_of = np.repeat(np.arange(len(weights)), quota)
    seen = np.arange(SLOTS) - np.repeat(np.cumsum(quota) - quota, quota)
    within = permute(np.arange(SLOTS), SLOTS, mix_int(seed, SLOTS)) / SLOTS
    order = np.argsort((seen + within) / quota[source_of], kind="stable")
    return source_of[order], seen[order], quota

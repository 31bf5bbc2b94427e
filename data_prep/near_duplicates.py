"""Near-duplicate texts: MinHash signatures in bands propose pairs, their exact Jaccard similarity decides.

A text is the set of its runs of SHINGLE characters, in normal form (`data_prep.clean`). Signatures are made by `rensa`
from hashed shingles, a batch at a time, wherever the batch is; finding pairs needs only the bands of all texts, one
band in memory at a time. Both are plain functions over arrays, so a cluster can run the first over shards.

Shapes: N texts, B bands, C candidate pairs.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from embedding.config import Config

SHINGLE = 5
BANDS, ROWS = 20, 5
"""Of a signature. Two texts of similarity s share a band with probability 1 - (1 - s**5)**20 (Leskovec, Rajaraman and
Ullman, Mining of Massive Datasets, 3.4): 0.9997 at 0.8, 0.97 at 0.7, 0.19 at 0.4."""
SEED = 1
VERIFIED_PAIRS = 4_096
NUMBER = re.compile(r"\d+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2**64 divided by the golden ratio, odd: Knuth's multiplicative hashing (TAOCP 3, 6.4)."""


class NearDuplicateConfig(Config):
    """Which rows count as the same though their texts differ a little."""

    threshold: float = Field(default=0.8, ge=0.5, le=1.0)
    """Least Jaccard similarity of two texts' runs of 5 characters. 0.8 is about one word in twenty changed."""


class Codes(NamedTuple):
    """Texts as one array of code points, nothing between two: `starts_N` and `ends_N` tell them apart."""

    codes: np.ndarray
    """uint64 [characters]."""
    starts_N: np.ndarray
    ends_N: np.ndarray


def encode(texts: Sequence[str]) -> Codes:
    """The code points of texts, one after another."""
    joined = "".join(texts).encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(joined, dtype="<u4").astype(np.uint64)
    ends_N = np.cumsum(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)))
    return Codes(codes, np.concatenate([[0], ends_N[:-1]]).astype(np.int64), ends_N)


def runs(codes: Codes, length: int) -> np.ndarray:
    """A hash of the run of `length` characters that begins at each character: uint64 [characters - length + 1].

    Polynomial in the code points, by doubling; then mixed (MurmurHash3's finalizer), so that its low bits are as
    good as its high ones. Runs that reach into the next text are there too: the caller takes those it wants.
    """
    whole = max(len(codes.codes) - length + 1, 0)
    hashed = np.zeros(whole, dtype=np.uint64)
    power, run, width, place = _MULTIPLIER, codes.codes, 1, 0
    while width <= length:
        if length & width:
            hashed = hashed * power + run[place : place + whole]
            place += width
        run = run[:-width] * power + run[width:] if len(run) > width else run[:0]
        power, width = np.uint64(int(power) ** 2 % 2**64), 2 * width
    hashed ^= hashed >> np.uint64(33)
    hashed *= np.uint64(0xFF51AFD7ED558CCD)
    hashed ^= hashed >> np.uint64(33)
    return hashed


def shingles(normal: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of all shingles, offsets [N + 1]) of texts in normal form; a short text is one shingle."""
    codes = encode([text if len(text) >= SHINGLE else text.ljust(SHINGLE) for text in normal])
    counts = codes.ends_N - codes.starts_N - SHINGLE + 1
    inside = np.ones(len(codes.codes), dtype=bool)
    for back in range(1, SHINGLE):
        inside[codes.ends_N - back] = False
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return runs(codes, SHINGLE)[inside[: len(codes.codes) - SHINGLE + 1]], offsets


def band_hashes(normal: Sequence[str]) -> np.ndarray:
    """The bands of texts in normal form: uint64 [N, B]. Texts that share one are candidates."""
    from rensa import RMinHash

    if not normal:
        return np.zeros((0, BANDS), dtype=np.uint64)
    hashes, offsets = shingles(normal)
    made = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), BANDS * ROWS, SEED)
    signatures_NBR = np.array(made.to_rows(), dtype=np.uint64).reshape(len(normal), BANDS, ROWS)
    bands_NB = np.zeros((len(normal), BANDS), dtype=np.uint64)
    for row in range(ROWS):
        bands_NB = (bands_NB ^ (bands_NB >> np.uint64(29))) * _MULTIPLIER + signatures_NBR[:, :, row]
    return bands_NB


def candidates(bands: Iterable[np.ndarray]) -> np.ndarray:
    """Pairs of rows that share a band, the earlier first: int64 [C, 2], each once.

    Of a large bucket each row is paired with the first and with the one before it, not with all others.

    Args:
        bands: uint64 [N] for each band; one is in memory at a time.
    """
    found = []
    for band_N in bands:
        order = np.argsort(band_N, kind="stable")
        ordered = band_N[order]
        same = np.flatnonzero(ordered[1:] == ordered[:-1])
        del ordered
        if not len(same):
            continue
        begins = same[np.diff(same, prepend=-2) > 1]
        lengths = np.diff(np.append(np.searchsorted(same, begins), len(same)))
        before = np.column_stack([order[same], order[same + 1]])
        first = np.column_stack([order[np.repeat(begins, lengths)], order[same + 1]])
        found.append(np.unique(np.concatenate([before, first]), axis=0))
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *found])
    return np.unique(pairs, axis=0)


def similarities(
    pairs_C2: np.ndarray,
    normal: Callable[[np.ndarray], Sequence[str]],
    apart: Callable[[str], Any] = lambda _: None,
) -> np.ndarray:
    """The Jaccard similarity of each pair's shingle sets: float64 [C].

    Args:
        normal: the normal forms of ascending, distinct rows.
        apart: what must be equal of two texts, else their similarity is 0.
    """
    out_C = np.zeros(len(pairs_C2))
    for start in range(0, len(pairs_C2), VERIFIED_PAIRS):
        piece = pairs_C2[start : start + VERIFIED_PAIRS]
        rows, places = np.unique(piece, return_inverse=True)
        texts = normal(rows)
        hashes, offsets = shingles(texts)
        sets = [np.unique(hashes[offsets[i] : offsets[i + 1]]) for i in range(len(rows))]
        for i, (one, other) in enumerate(places.reshape(-1, 2).tolist()):
            if apart(texts[one]) != apart(texts[other]):
                continue
            shared = len(np.intersect1d(sets[one], sets[other], assume_unique=True))
            out_C[start + i] = shared / (len(sets[one]) + len(sets[other]) - shared)
    return out_C


def representatives(count: int, pairs_C2: np.ndarray) -> np.ndarray:
    """For each row the earliest row that it repeats and that repeats none itself; else its own number: int64 [N].

    So two texts with one representative are both close to it: chains of small changes do not add up.

    Args:
        pairs_C2: similar rows, the earlier first.
    """
    of_N = np.arange(count)
    for earlier, later in pairs_C2[np.lexsort((pairs_C2[:, 0], pairs_C2[:, 1]))].tolist():
        if of_N[later] == later and of_N[earlier] == earlier:
            of_N[later] = earlier
    return of_N

"""Never train on the test: which training texts repeat an evaluation text, wholly, in long runs, or nearly.

Three tests, on normal forms (`data_prep.clean`):

    exact   the same text, unless it is so short that equal texts say nothing (a name, an answer of one word)
    runs    of either text, at least a share lies in runs of 30 characters that stand in the other (12 where
            they are of a script without spaces): a passage inside a document, a document cut differently
    near    Jaccard similarity of the runs of 5 characters, as for near-duplicates: short texts with a word changed

The evaluation texts come as a stream and are written once as arrays and a table, which every process maps: so many of
them cost no memory per process. Shapes: N training texts of a batch, E evaluation texts.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from data_prep.clean import digest_normal, normal_form
from data_prep.near_duplicates import BANDS, band_hashes, encode, runs, similarities
from embedding.config import Config

RUN, SHORT_RUN = 30, 12
"""Characters of a run; of one in scripts written without spaces, where a character says more."""
MOST_RUNS = 20_000_000
"""Runs that are kept of the evaluation texts; beyond, a sample by hash, the same on both sides."""
BATCH_TEXTS, BATCH_CHARS = 5_000, 8_000_000
BITS = 8
"""Bits of the filter for each run in it: one look-up in eight that finds nothing goes on to the search."""
MOST_ROWS = 64
"""Evaluation texts remembered of one run: what stands in more of them is a set phrase."""
_EXACT, _RUNS, _NEAR = "exact", "in long runs", "nearly"
SHOWN_CHARS = 80
UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF))
"""Scripts without spaces: Thai and Lao, Burmese, Khmer, kana, Chinese characters (unicode.org/charts)."""
_DENSE = (*UNSPACED, (0xAC00, 0xD7AF))
"""Scripts where a character says more: those, and Hangul."""


class DecontaminationConfig(Config):
    """What counts as repeating an evaluation text."""

    enabled: bool = True
    """Rows whose query or positive repeats a text of the recipe's suite go; of negatives only the text goes."""
    share: float = Field(default=0.5, gt=0.0, le=1.0)
    """Of the shorter way to look at it: so much of either text in common long runs."""
    threshold: float = Field(default=0.8, ge=0.5, le=1.0)
    """Least Jaccard similarity of a near match."""
    least_chars: int = Field(default=15, ge=0)
    """A training text that is shorter (in normal form; a character of a script without spaces counts twice) repeats
    nothing: `Paris` as an answer here and there gives no test away. Those that equal an evaluation text are counted."""


class EvaluationTexts(NamedTuple):
    """What is tested on, as whoever knows the suite hands it over."""

    made_from: Any
    """JSON facts that determine the texts."""
    stream: Callable[[], Iterable[tuple[str, str]]]
    """(task, text) of every text."""


class Match(NamedTuple):
    """How a training text repeats an evaluation text."""

    how: str
    task: str
    text: str
    """The beginning of the evaluation text."""


_TABLE = pa.schema([("task", pa.string()), ("text", pa.large_string())])


def build_index(texts: Iterable[tuple[str, str]], folder: Path) -> int:
    """Write the index of evaluation texts, in normal form and each once, to `folder`; return their number."""
    folder.mkdir(parents=True)
    seen: set[int] = set()
    chars, characters = [], 0
    bands: list[np.ndarray] = []
    with pa.OSFile(str(folder / "texts.arrow"), "wb") as file, pa.ipc.new_file(file, _TABLE) as writer:
        for batch in _batches(texts):
            new: dict[int, tuple[str, str]] = {}
            for task, text in batch:
                normal = normal_form(text)
                key = digest_normal(normal)
                if normal and key not in seen:
                    seen.add(key)
                    new[key] = task, normal
            if new:
                tasks, normals = zip(*new.values(), strict=True)
                writer.write_batch(pa.record_batch([pa.array(tasks), pa.array(normals, pa.large_string())], _TABLE))
                chars.append(np.fromiter(new, dtype=np.uint64, count=len(new)))
                bands.append(band_hashes(normals))
                characters += sum(map(len, normals))
    digests_E = np.concatenate([np.zeros(0, np.uint64), *chars])
    bands_EB = np.concatenate([np.zeros((0, BANDS), np.uint64), *bands])
    _save_sorted(folder, "exact", digests_E, np.arange(len(digests_E)))
    _save_sorted(folder, "bands", _numbered(bands_EB), np.repeat(np.arange(len(bands_EB)), BANDS))
    stride = -(-characters // MOST_RUNS) or 1
    np.save(folder / "stride.npy", np.array(stride))
    hashes, owners, start = [], [], 0
    with pa.memory_map(str(folder / "texts.arrow")) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            normals = reader.get_batch(number).column("text").to_pylist()
            found, places = distinct_runs(*text_runs(normals, stride))
            hashes.append(found)
            owners.append(places.astype(np.int32) + start)
            start += len(normals)
    hashes_R = np.concatenate([np.zeros(0, np.uint64), *hashes])
    owners_R = np.concatenate([np.zeros(0, np.int32), *owners])
    np.save(folder / "counts.npy", np.bincount(owners_R, minlength=len(digests_E)))
    bits = max(10, int(np.ceil(np.log2(max(len(hashes_R), 1) * BITS))))
    there = np.zeros(1 << bits, dtype=bool)
    there[hashes_R & np.uint64((1 << bits) - 1)] = True
    np.save(folder / "filter.npy", np.packbits(there, bitorder="little"))
    _save_sorted(folder, "runs", hashes_R, owners_R)
    return len(digests_E)


class EvaluationIndex:
    """The index that `build_index` wrote, memory-mapped; `match` is a plain function of a batch of texts."""

    def __init__(self, folder: Path, config: DecontaminationConfig) -> None:
        self.folder, self.config = folder, config
        self.exact, self.exact_of = self._pair("exact")
        self.bands, self.bands_of = self._pair("bands")
        self.runs, self.runs_of = self._pair("runs")
        self.counts_E = np.load(folder / "counts.npy", mmap_mode="r")
        self.filter = np.load(folder / "filter.npy", mmap_mode="r")
        self.stride = int(np.load(folder / "stride.npy"))

    def _pair(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return tuple(np.load(self.folder / f"{name}-{part}.npy", mmap_mode="r") for part in ("keys", "rows"))

    @cached_property
    def _texts(self) -> pa.Table:
        return pa.ipc.open_file(pa.memory_map(str(self.folder / "texts.arrow"))).read_all()

    def match(self, normal: Sequence[str], digests_N: np.ndarray, bands_NB: np.ndarray) -> tuple[dict[int, Match], int]:
        """The texts of a batch that repeat an evaluation text, and how many equal one but are too short to count.

        Args:
            normal: normal forms.
            digests_N: their digests.
            bands_NB: their bands.
        """
        found: dict[int, Match] = {}
        if not len(self.exact) or not normal:
            return found, 0
        short = {row for row, text in enumerate(normal) if _is_short(text, self.config.least_chars)}
        at, others = _lookup(self.exact, self.exact_of, digests_N)
        for row, other in zip(at.tolist(), others.tolist(), strict=True):
            if row not in short:
                found.setdefault(row, self._say(_EXACT, other))
        for row, other in self._in_runs(normal):
            if row not in short:
                found.setdefault(row, self._say(_RUNS, other))
        for row, other in self._near(normal, bands_NB):
            if row not in short:
                found.setdefault(row, self._say(_NEAR, other))
        return found, len(short.intersection(at.tolist()))

    def _say(self, how: str, row: int) -> Match:
        return Match(how, str(self._texts["task"][row]), str(self._texts["text"][row])[:SHOWN_CHARS])

    def _in_runs(self, normal: Sequence[str]) -> list[tuple[int, int]]:
        all_R, owners_R = text_runs(normal, self.stride)
        place = all_R & np.uint64(8 * len(self.filter) - 1)
        maybe = (self.filter[(place >> np.uint64(3)).astype(np.int64)] & _bit(place)) > 0
        # Few are left, and in order the search walks through the file instead of jumping.
        hashes_R, owner_R = distinct_runs(all_R[maybe], owners_R[maybe])
        at, others = _lookup(self.runs, self.runs_of, hashes_R)
        if not len(at):
            return []
        pairs, counts = np.unique(np.column_stack([owner_R[at], others]), axis=0, return_counts=True)
        covered_N = np.bincount(owner_R[np.unique(at)], minlength=len(normal))
        asked_R = (covered_N > 0)[owners_R]  # a text that says everything twice has no more runs than one that does not
        totals_N = np.bincount(distinct_runs(all_R[asked_R], owners_R[asked_R])[1], minlength=len(normal))
        mine = covered_N[pairs[:, 0]] >= self.config.share * totals_N[pairs[:, 0]]
        theirs = counts >= self.config.share * self.counts_E[pairs[:, 1]]
        # The evaluation text it shares most with is the one that is named.
        order = np.argsort(-counts, kind="stable")
        return [(row, other) for row, other in pairs[order[(mine | theirs)[order]]].tolist()]

    def _near(self, normal: Sequence[str], bands_NB: np.ndarray) -> list[tuple[int, int]]:
        at, others = _lookup(self.bands, self.bands_of, _numbered(bands_NB))
        if not len(at):
            return []
        pairs_C2 = np.unique(np.column_stack([at // BANDS, others]), axis=0)
        offset = len(normal)

        def texts(rows: np.ndarray) -> list[str]:
            mine, theirs = rows[rows < offset], rows[rows >= offset] - offset
            return [normal[row] for row in mine] + [str(self._texts["text"][row]) for row in theirs.tolist()]

        close = similarities(pairs_C2 + np.array([0, offset]), texts) >= self.config.threshold
        return [(row, other) for row, other in pairs_C2[close].tolist()]


def _is_short(normal: str, least: int) -> bool:
    if len(normal) >= least:
        return False
    dense = sum(any(low <= code <= high for low, high in _DENSE) for code in map(ord, normal))
    return len(normal) + dense < least


def text_runs(normal: Sequence[str], stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, text of each) of the long runs of texts in normal form; one in `stride`, chosen by hash.

    A run is of the short kind where more than a third of its own characters are of a script without spaces. What a run
    is depends on nothing around it, so that an English passage is found at the end of a Chinese text too.
    """
    codes = encode(normal)
    if not len(codes.codes):
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    owner = np.repeat(np.arange(len(normal)), codes.ends_N - codes.starts_N)
    dense = np.zeros(len(codes.codes), dtype=bool)
    for low, high in _DENSE:
        dense |= (codes.codes >= low) & (codes.codes <= high)
    before = np.append(np.int32(0), np.cumsum(dense, dtype=np.int32))
    left = codes.ends_N[owner] - np.arange(len(owner))
    hashes, owners = [], []
    for length, short in ((RUN, False), (SHORT_RUN, True)):
        if short and not before[-1]:
            continue
        hashed = runs(codes, length)
        keep = ((before[length:] - before[:-length]) * 3 > length) == short
        keep &= left[: len(hashed)] >= length
        if stride > 1:
            keep &= (hashed >> np.uint64(32)) % np.uint64(stride) == 0
        hashes.append(hashed[keep])
        owners.append(owner[: len(hashed)][keep])
    return np.concatenate([np.zeros(0, np.uint64), *hashes]), np.concatenate([np.zeros(0, np.int64), *owners])


def distinct_runs(hashes_R: np.ndarray, owner_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each run of a text once, sorted by hash."""
    order = np.lexsort((owner_R, hashes_R))
    hashes_R, owner_R = hashes_R[order], owner_R[order]
    first = np.ones(len(hashes_R), dtype=bool)
    first[1:] = (hashes_R[1:] != hashes_R[:-1]) | (owner_R[1:] != owner_R[:-1])
    return hashes_R[first], owner_R[first]


def _lookup(keys: np.ndarray, rows: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(position in `wanted`, row) for every sorted key that equals a wanted one."""
    begin = np.searchsorted(keys, wanted)
    there = np.flatnonzero(keys[np.minimum(begin, len(keys) - 1)] == wanted) if len(keys) else begin[:0]
    begin = begin[there]
    counts = np.searchsorted(keys, wanted[there], side="right") - begin
    at = np.repeat(there, counts)
    inside = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
    return at, rows[np.repeat(begin, counts) + inside]


def _numbered(bands_NB: np.ndarray) -> np.ndarray:
    """Bands as one key each that holds its number too, row by row: uint64 [N * B]."""
    return (bands_NB * np.uint64(BANDS) + np.arange(BANDS, dtype=np.uint64)).ravel()


def _bit(place: np.ndarray) -> np.ndarray:
    return np.left_shift(np.uint8(1), (place & np.uint64(7)).astype(np.uint8))


def _save_sorted(folder: Path, name: str, keys: np.ndarray, rows: np.ndarray) -> None:
    """Keys in order with their rows; of a key that stands in very many texts, only the first of them."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    order = order[np.append(np.ones(MOST_ROWS, bool), ordered[MOST_ROWS:] != ordered[:-MOST_ROWS])[: len(order)]]
    np.save(folder / f"{name}-keys.npy", keys[order])
    np.save(folder / f"{name}-rows.npy", rows[order])


def _batches(texts: Iterable[tuple[str, str]]) -> Iterable[list[tuple[str, str]]]:
    batch, size = [], 0
    for task, text in texts:
        batch.append((task, text))
        size += len(text)
        if len(batch) >= BATCH_TEXTS or size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    yield batch

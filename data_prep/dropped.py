"""What became of every row: dropped.parquet for people, fates.parquet for machines, and the answer for one row.

dropped.parquet   source, row, place, reason, detail, query, positives, negatives: one for every row not used
fates.parquet     source, row, fate, example: one for every usable row; `example` is its row in `examples`, or -1
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.assemble import DUPLICATE, FATES, NEAR_DUPLICATE, SPOILT, Selection
from data_prep.rows import Row, Tally

DROPPED, FATES_FILE = "dropped.parquet", "fates.parquet"
SAMPLES, SAMPLE_CHARS = 5, 200
"""Rows shown for each reason, and so much of each text."""
WRITTEN_ROWS, WRITTEN_CHARS = 5_000, 16_000_000
_TEXTS = pa.list_(pa.large_string())
_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("row", pa.int64()),
        ("place", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("query", pa.large_string()),
        ("positives", _TEXTS),
        ("negatives", _TEXTS),
    ]
)


class Drops:
    """Writes dropped.parquet while rows are dropped, and keeps a few of each reason to look at."""

    def __init__(self, folder: Path) -> None:
        self._writer = pq.ParquetWriter(folder / DROPPED, _SCHEMA, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._chars = 0
        self.samples: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # Where the pass fails the whole folder goes, and a second error would hide the first.
        with contextlib.nullcontext() if kind is None else contextlib.suppress(OSError):
            self._flush()
            self._writer.close()

    def add(self, source: str, number: int, place: str, reason: str, detail: str = "", row: Row | None = None) -> None:
        """One row that goes."""
        texts = Row("") if row is None else row
        values = {"source": source, "row": number, "place": place, "reason": reason, "detail": detail}
        values |= {"query": texts.query, "positives": list(texts.positives), "negatives": list(texts.negatives)}
        self._rows.append(values)
        self._chars += sum(map(len, texts.texts()))
        shown = self.samples[reason]
        if len(shown) < SAMPLES and len({sample["source"] for sample in shown} - {source}) >= len(shown) // 2:
            shown.append({**values, "query": _cut(texts.query), "positives": [_cut(t) for t in texts.positives[:1]]})
            del shown[-1]["negatives"]
        if len(self._rows) >= WRITTEN_ROWS or self._chars >= WRITTEN_CHARS:
            self._flush()

    def bad_records(self, source: str, tally: Tally) -> None:
        """The records that were no rows, taken from the tally."""
        for number, place, reason in tally.pending:
            self.add(source, number, place, reason)
        tally.pending.clear()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=_SCHEMA))
        self._rows, self._chars = [], 0

    def repeats(self, selection: Selection, names: Sequence[str]) -> None:
        """The rows that repeat another one or what is held out."""
        sources, numbers = selection.sources_M, np.asarray(selection.assembly.numbers)
        gone = np.flatnonzero(np.isin(selection.fate_M, (DUPLICATE, NEAR_DUPLICATE, SPOILT)))
        for example, texts in zip(gone.tolist(), selection.rows_of(gone), strict=True):
            of = int(selection.of_M[example])
            detail = f"of row {numbers[of]} of {names[sources[of]]}" if of >= 0 else ""
            row = Row(texts["query"], tuple(texts["positives"]), tuple(texts["negatives"]))
            reason = FATES[selection.fate_M[example]]
            self.add(names[sources[example]], int(numbers[example]), "", reason, detail, row)


def write_fates(folder: Path, selection: Selection, names: Sequence[str]) -> None:
    """Write fates.parquet."""
    examples = np.where(selection.kept_M, np.cumsum(selection.kept_M) - 1, -1)
    columns = {
        "source": pa.DictionaryArray.from_arrays(pa.array(selection.sources_M), pa.array(names)),
        "row": pa.array(np.asarray(selection.assembly.numbers)),
        "fate": pa.DictionaryArray.from_arrays(pa.array(selection.fate_M), pa.array(["kept", *FATES[1:]])),
        "example": pa.array(examples),
    }
    pq.write_table(pa.table(columns), folder / FATES_FILE, compression="zstd")


class Fate(NamedTuple):
    """What happened to a row of a source."""

    source: str
    row: int
    fate: str
    """`kept`, `held out`, or why it was dropped."""
    detail: str = ""
    place: str = ""
    example: int = -1
    query: str = ""
    positives: tuple[str, ...] = ()


def explain(folder: Path, wanted: str) -> Fate:
    """What happened to a row, named `SOURCE:NUMBER`, `NUMBER` (where there is one source), or by its place.

    Raises:
        ValueError: no such source or row.
    """
    fates = pq.read_table(folder / FATES_FILE)
    names = fates["source"].combine_chunks().dictionary.to_pylist()
    source, _, number = wanted.rpartition(":")
    for values in _matching(folder / DROPPED, ("place",), (wanted,)):
        return _dropped(values)
    source = names[0] if not source and len(names) == 1 else source
    if source not in names or not number.isdigit():
        raise ValueError(
            f"{wanted}: no dropped row has this place; name a row as SOURCE:NUMBER, sources: {', '.join(names)}"
        )
    for values in _matching(folder / DROPPED, ("source", "row"), (source, int(number))):
        return _dropped(values)
    found = fates.filter((pc.field("source") == source) & (pc.field("row") == int(number))).to_pylist()
    if not found:
        last = pc.max(fates.filter(pc.field("source") == source)["row"]).as_py()
        raise ValueError(f"{wanted}: source {source!r} has no row {number}; its last usable one is {last}")
    return Fate(source, int(number), found[0]["fate"], example=found[0]["example"])


def _matching(path: Path, columns: Iterable[str], values: Iterable[Any]) -> Iterator[dict[str, Any]]:
    filters = [(column, "=", value) for column, value in zip(columns, values, strict=True)]
    yield from pq.read_table(path, filters=filters).to_pylist()


def _dropped(values: dict[str, Any]) -> Fate:
    texts = values["query"], tuple(values["positives"])
    return Fate(values["source"], values["row"], values["reason"], values["detail"], values["place"], -1, *texts)


def _cut(text: str) -> str:
    return text if len(text) <= SAMPLE_CHARS else f"{text[:SAMPLE_CHARS]}…"

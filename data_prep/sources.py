"""Where text comes from: the settings of each kind of source, and its rows checked one by one.

A column mapping says what a row is: `query` and `positive` (and `negative`, `score`, `group`) make a pair, `text` alone
a text that the student learns to place where the teacher does, without a positive.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from data_prep.documents import READ, Pairing, pairs_of
from data_prep.readers import (
    Reader,
    Record,
    csv_reader,
    datasets_reader,
    find_files,
    read_hub,
    read_jsonl,
    read_parquet,
)
from embedding.config import Config

SHOWN = 3
"""Places named for each reason a row was dropped."""


class Row(NamedTuple):
    """A row as it goes into the tables. No positives: a single text."""

    query: str
    positives: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    score: float | None = None
    group: str | None = None
    lang: str = ""


class Tally:
    """What happened to the rows of a source."""

    def __init__(self) -> None:
        self.read = 0
        self.dropped: Counter[str] = Counter()
        self.places: defaultdict[str, list[str]] = defaultdict(list)
        """The first few places of each reason."""

    def drop(self, reason: str, place: str = "", rows: int = 1) -> None:
        """Count rows dropped for a reason."""
        self.dropped[reason] += rows
        if place and len(self.places[reason]) < SHOWN:
            self.places[reason].append(place)

    def report(self) -> str:
        """The drops in words: ``2 rows: 'answer' is empty (faq.jsonl:17, faq.jsonl:20)``."""
        parts = []
        for reason, count in self.dropped.most_common():
            places = ", ".join(self.places[reason]) + (", …" if count > len(self.places[reason]) else "")
            parts.append(f"{count} row{'s' * (count > 1)}: {reason} ({places})")
        return "; ".join(parts)


class _Source(Config):
    """What every source has."""

    name: str | None = Field(default=None, pattern=r"^[\w.-]+$")
    """In the summary, the mixture and the held-out tasks; by default the name of the file."""
    instruction: str = ""
    """One sentence that tells what is asked for; put before every query through the model's template."""
    limit: int | None = Field(default=None, ge=1)
    """Stop after this many usable rows."""
    symmetric: bool = False
    """Both sides are queries and get the instruction (similarity, paraphrase, translation)."""
    hold_out: bool = True
    """Whether a share of this source becomes evaluation data."""


class _Columns(_Source):
    """The mapping of columns to what they mean, shared by all sources that have columns."""

    query: str | None = None
    positive: str | None = None
    """A column of strings, or of lists of strings."""
    negative: str | None = None
    """As `positive`; rows may have none."""
    text: str | None = None
    """The column of single texts, instead of `query` and `positive`."""
    score: str | None = None
    """A graded pair: how close query and positive are."""
    group: str | None = None
    """Rows with the same value are never each other's negatives (same label, same source document)."""
    lang: str | None = None
    on_error: Literal["stop", "drop"] = "stop"
    """What a bad row does: stop with a message that names it, or be dropped and counted."""

    @model_validator(mode="after")
    def _one_mapping(self) -> Self:
        pair, single = (self.query, self.positive), self.text
        if single is not None and any((*pair, self.negative, self.score)):
            raise ValueError("`text` is for single texts; give either `text`, or `query` and `positive`")
        if single is None and not all(pair):
            raise ValueError("name the columns: `query` and `positive` for pairs, or `text` for single texts")
        return self

    def columns(self) -> list[str]:
        """The columns to read."""
        named = (self.query, self.positive, self.negative, self.text, self.score, self.group, self.lang)
        return list(dict.fromkeys(column for column in named if column))


class _Files(_Columns):
    path: str = Field(min_length=1)
    """A file, or a pattern such as `data/*.jsonl`; `~` and `$VARIABLE` are expanded."""

    def label(self) -> str:
        """The source's name."""
        return self.name or Path(self.path).stem.replace("*", "all")

    def files(self) -> list[Path]:
        """The files, sorted; folders as the files in them (for content hashes)."""
        found = find_files(self.path)
        return sorted(file for path in found for file in (path.rglob("*") if path.is_dir() else [path]))

    def _reader(self) -> Reader:
        raise NotImplementedError

    def records(self) -> Iterator[Record]:
        """The rows of all files, in the order of the files' names."""
        for path in find_files(self.path):
            yield from self._reader()(path, self.columns())


class JsonlSource(_Files):
    """One JSON object on each line."""

    kind: Literal["jsonl"]

    def _reader(self) -> Reader:
        return read_jsonl


class CsvSource(_Files):
    """Comma- or tab-separated text with a header row."""

    kind: Literal["csv"]
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Default: a tab for .tsv, else a comma."""
    quotes: bool = True
    """Whether `"` quotes a field; many TSV files use it as an ordinary character."""

    def _reader(self) -> Reader:
        return csv_reader(self.delimiter, self.quotes)


class ParquetSource(_Files):
    """Parquet files."""

    kind: Literal["parquet"]

    def _reader(self) -> Reader:
        return read_parquet


class DatasetsSource(_Files):
    """A folder written by `save_to_disk` of the `datasets` library."""

    kind: Literal["datasets"]
    split: str | None = None

    def _reader(self) -> Reader:
        return datasets_reader(self.split)


class HubSource(_Columns):
    """A data set on the Hugging Face hub, streamed. Pin a revision: without one the data may change under you."""

    kind: Literal["hub"]
    repository: str = Field(min_length=1)
    subset: str | None = None
    split: str = "train"
    revision: str | None = None

    def label(self) -> str:
        """The source's name."""
        return self.name or self.repository.rstrip("/").rsplit("/", 1)[-1]

    def records(self) -> Iterator[Record]:
        """The rows of the split."""
        return read_hub(self.repository, self.subset, self.split, self.revision, self.columns())


class DocumentsSource(_Files):
    """Pairs that documents hold without anybody's labels (`data_prep.documents`): a file, a pattern such as
    `docs/**/*.md`, or a folder with everything in it that is text, Markdown, HTML or Python.

    A file that holds no pair or cannot be read is dropped and counted. Needs `pip install 'eyas[documents]'`.
    """

    kind: Literal["documents"]
    pairs: list[Pairing] = Field(default=["heading", "title", "context", "docstring"], min_length=1)
    """heading -> section, title -> beginning, sentence -> its passage, docstring -> code."""
    query: Literal["query"] = "query"
    positive: Literal["positive"] = "positive"
    group: Literal["group"] = "group"
    on_error: Literal["stop", "drop"] = "drop"

    def _reader(self) -> Reader:
        return lambda path, _: self._pairs(path)

    def records(self) -> Iterator[Record]:
        """The pairs of all files, in the order of the files' names."""
        named = [path for path in self.files() if path.is_file()]
        read = [path for path in named if path.suffix.lower() in READ]
        if not read:
            raise ValueError(f"{self.path}: {len(named)} files, and none that ends in {', '.join(sorted(READ))}")
        for path in read:
            yield from self._pairs(path)

    def _pairs(self, path: Path) -> Iterator[Record]:
        found = 0
        try:
            for pair in pairs_of(path, path.read_text(encoding="utf-8-sig"), self.pairs):
                found += 1
                values = {"query": pair.query, "positive": pair.positive, "group": str(path)}
                yield Record(f"{path} ({pair.where})", values)
        except UnicodeDecodeError:
            yield Record(str(path), {}, "not UTF-8")
            return
        except (SyntaxError, ValueError, RecursionError):
            yield Record(str(path), {}, "source code that does not parse")
            return
        if not found:
            yield Record(str(path), {}, "no pair in the document")


class DocstringsSource(_Source):
    """Summary line -> rest of the docstring, from the standard library and the installed packages.

    `limit` takes a deterministic sample; None takes all, about 40,000 pairs in a machine learning environment.
    """

    kind: Literal["docstrings"] = "docstrings"
    instruction: str = "Given the first line of a docstring, retrieve the rest of the docstring"
    seed: int = 0

    def label(self) -> str:
        """The source's name."""
        return self.name or "docstrings"


ColumnSource = JsonlSource | CsvSource | ParquetSource | DatasetsSource | HubSource | DocumentsSource
Source = Annotated[ColumnSource | DocstringsSource, Field(discriminator="kind")]


class _BadRow(ValueError):
    """A row that cannot be used, and why."""


def read_rows(source: ColumnSource, tally: Tally) -> Iterator[Row]:
    """The usable rows of a source; `tally` counts what was read and dropped.

    Raises:
        ValueError: a file that cannot be read; bad rows where `on_error` is stop (after reading on, so that one message
            names them all); no usable row.
    """
    yield from islice(_usable(source, tally), source.limit)
    what = f"{tally.dropped.total()} of {tally.read} rows cannot be used"
    if tally.dropped and source.on_error == "stop":
        raise ValueError(
            f"source {source.label()!r}: {what}: {tally.report()}; correct them, or set `on_error: drop`"
            " to have them dropped and counted"
        )
    if tally.dropped.total() == tally.read:
        raise ValueError(f"source {source.label()!r}: no usable row; {what}: {tally.report() or 'there are none'}")


def _usable(source: ColumnSource, tally: Tally) -> Iterator[Row]:
    convert = partial(_text_row if source.text else _pair_row, source)
    for record in source.records():
        tally.read += 1
        try:
            if record.problem:
                raise _BadRow(record.problem)
            row = convert(record.values)
        except _BadRow as bad:
            tally.drop(str(bad), record.place)
        else:
            yield row


def _text_row(source: ColumnSource, values: Any) -> Row:
    assert source.text is not None
    return Row(_text(values, source.text), group=_group(values, source.group), lang=_lang(values, source.lang))


def _pair_row(source: ColumnSource, values: Any) -> Row:
    assert source.query is not None
    assert source.positive is not None
    query, positives = _text(values, source.query), _texts(values, source.positive)
    if not positives:
        raise _BadRow(f"{source.positive!r} is an empty list")
    if query in positives and not source.symmetric:
        raise _BadRow(f"{source.positive!r} equals {source.query!r}")
    negatives = _texts(values, source.negative) if source.negative and _given(values, source.negative) else ()
    if not set(positives).isdisjoint(negatives):
        raise _BadRow(f"{source.negative!r} repeats {source.positive!r}")
    score = _score(values, source.score)
    return Row(query, positives, negatives, score, _group(values, source.group), _lang(values, source.lang))


def _text(values: Any, column: str) -> str:
    if column not in values:
        raise _BadRow(f"has no {column!r}")
    return _check(values[column], column)


def _check(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise _BadRow(f"{column!r} is {'null' if value is None else type(value).__name__}, expected text")
    if not value or value.isspace():
        raise _BadRow(f"{column!r} is empty")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _BadRow(f"{column!r} holds bytes that are not valid UTF-8") from None
    return value


def _texts(values: Any, column: str) -> tuple[str, ...]:
    value = values.get(column)
    if isinstance(value, list):
        return tuple(dict.fromkeys(_check(item, column) for item in value))
    return (_text(values, column),)


def _given(values: Any, column: str | None) -> bool:
    """Whether an optional column has a value in this row: an empty field is how CSV writes none."""
    return column is not None and values.get(column) not in (None, "")


def _score(values: Any, column: str | None) -> float | None:
    if not _given(values, column):
        return None
    try:
        score = float(values[column])
    except (TypeError, ValueError):
        raise _BadRow(f"{column!r} is not a number") from None
    if not math.isfinite(score):
        raise _BadRow(f"{column!r} is not a finite number")
    return score


def _group(values: Any, column: str | None) -> str | None:
    if not _given(values, column):
        return None
    value = values[column]
    if isinstance(value, list | dict):
        raise _BadRow(f"{column!r} is {type(value).__name__}, expected text or a number")
    return str(value)


def _lang(values: Any, column: str | None) -> str:
    return _check(values[column], column) if column and _given(values, column) else ""

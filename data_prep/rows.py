"""A record of any source, checked and made a training row.

A column mapping says what a row is: `query` and `positive` (and `negative`, `score`, `group`) make a pair; `text` alone
a text that the student learns to place where the teacher does, without a positive; `text` and `label` a text whose
positive is another one of the same label.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Self

from pydantic import model_validator

from embedding.config import Config

SHOWN = 3
"""Places named for each reason a row was dropped."""


class Record(NamedTuple):
    """What a reader gives: where a row stands, and its values or what is wrong with it."""

    place: str
    values: Any
    """A mapping of columns to values."""
    problem: str = ""


class Row(NamedTuple):
    """A row as it goes into the tables. No positives: a single text."""

    query: str
    positives: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    score: float | None = None
    group: str | None = None
    lang: str = ""
    instruction: str = ""
    """Of this row alone; "": the source's."""
    positive_lang: str = ""
    """The language of positives and negatives, where it is another one than `lang`."""

    def texts(self) -> tuple[str, ...]:
        """All its texts: the query, the positives, the negatives."""
        return (self.query, *self.positives, *self.negatives)


class Numbered(NamedTuple):
    """A row with its number in the source, counted from 1 over all that was read, and its place."""

    number: int
    place: str
    row: Row


class BadRecord(NamedTuple):
    """A record that is no row."""

    number: int
    place: str
    reason: str


def printable(place: str) -> str:
    """A path as text that can be written: not every file has a name in UTF-8."""
    return place.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Tally:
    """What happened to the rows of a source."""

    def __init__(self) -> None:
        self.read = 0
        self.dropped: Counter[str] = Counter()
        self.places: defaultdict[str, list[str]] = defaultdict(list)
        """The first few places of each reason."""
        self.pending: list[BadRecord] = []
        """Every row dropped since somebody last took this list away."""

    def drop(self, reason: str, place: str, number: int) -> None:
        """Count a row dropped for a reason."""
        self.dropped[reason] += 1
        self.pending.append(BadRecord(number, place, reason))
        if len(self.places[reason]) < SHOWN:
            self.places[reason].append(place)

    def report(self) -> str:
        """The drops in words: ``2 rows: 'answer' is empty (faq.jsonl:17, faq.jsonl:20)``."""
        parts = []
        for reason, count in self.dropped.most_common():
            places = ", ".join(self.places[reason]) + (", …" if count > len(self.places[reason]) else "")
            parts.append(f"{count} row{'s' * (count > 1)}: {reason} ({places})")
        return "; ".join(parts)


class Mapping(Config):
    """Which column means what."""

    query: str | None = None
    positive: str | None = None
    """A column of strings, or of lists of strings."""
    negative: str | list[str] | None = None
    """As `positive`, or several such columns; rows may have none."""
    text: str | None = None
    """The column of single texts, instead of `query` and `positive`."""
    label: str | None = None
    """With `text`: a text's positive is another text of the same label of the same source, both with the instruction,
    and texts of one label are never each other's negatives."""
    score: str | None = None
    """A graded pair: how close query and positive are."""
    group: str | None = None
    """Rows with the same value are never each other's negatives (same label, same source document)."""
    lang: str | None = None
    """The column of the language code, of the query where `positive_lang` is there too."""
    positive_lang: str | None = None
    instruction_column: str | None = None
    """Each row's own instruction; rows without one get the source's."""
    language: str = ""
    """The language code of rows whose columns give none."""
    positive_language: str = ""
    """Of positives and negatives, where it is another one (bitext)."""
    on_error: Literal["stop", "drop"] = "stop"
    """What a bad row does: stop with a message that names it, or be dropped and counted."""

    @model_validator(mode="after")
    def _one_mapping(self) -> Self:
        pair, single = (self.query, self.positive), self.text
        if single is not None and any((*pair, self.negative, self.score)):
            raise ValueError("`text` is for single texts; give either `text`, or `query` and `positive`")
        if single is None and not all(pair):
            raise ValueError("name the columns: `query` and `positive` for pairs, or `text` for single texts")
        if self.label is not None and (single is None or self.group is not None):
            raise ValueError("`label` goes with `text`, and is itself the group; leave `group` out")
        return self

    def negative_columns(self) -> list[str]:
        """The columns of negatives."""
        return [self.negative] if isinstance(self.negative, str) else list(self.negative or ())

    def required_columns(self) -> list[str]:
        """The columns that every row must have."""
        return [column for column in (self.query, self.positive, self.text, self.label) if column]

    def columns(self) -> list[str]:
        """The columns to read."""
        named = (*self.required_columns(), *self.negative_columns(), self.score, self.group)
        named += (self.lang, self.positive_lang, self.instruction_column)
        return list(dict.fromkeys(column for column in named if column))


class BadRow(ValueError):
    """A row that cannot be used, and why."""


def to_row(mapping: Mapping, values: Any, symmetric: bool) -> Row:
    """The row of a record's values.

    Raises:
        BadRow: a value is missing, of another type, empty, no valid Unicode, or contradicts another.
    """
    lang = _word(values, mapping.lang) or mapping.language
    instruction = _word(values, mapping.instruction_column)
    if mapping.text is not None:
        group = _group(values, mapping.label) if mapping.label else _group(values, mapping.group)
        if mapping.label and group is None:
            raise BadRow(f"{mapping.label!r} is empty")
        return Row(_text(values, mapping.text), group=group, lang=lang, instruction=instruction)
    assert mapping.query is not None
    assert mapping.positive is not None
    query, positives = _text(values, mapping.query), _texts(values, mapping.positive)
    if not positives:
        raise BadRow(f"{mapping.positive!r} is an empty list")
    if query in positives and not symmetric:
        raise BadRow(f"{mapping.positive!r} equals {mapping.query!r}")
    negatives: dict[str, None] = {}
    for column in mapping.negative_columns():
        if _given(values, column):
            negatives |= dict.fromkeys(_texts(values, column))
            if not negatives.keys().isdisjoint(positives):
                raise BadRow(f"{column!r} repeats {mapping.positive!r}")
    score = _score(values, mapping.score)
    other = _word(values, mapping.positive_lang) or mapping.positive_language
    return Row(query, positives, tuple(negatives), score, _group(values, mapping.group), lang, instruction, other)


def same_label(rows: Iterator[Numbered], tally: Tally, judged: Callable[[Row], bool]) -> Iterator[Numbered]:
    """Pair each text with the one before it of the same label; the first of a label with its last.

    So every text is asked once and answers once, and two texts a label are held in memory. A text that is alone in its
    label is dropped and counted. One that is `judged` unfit stays by itself, for whoever drops it and says why: paired
    it would take another with it.
    """
    first: dict[str, Numbered] = {}
    last: dict[str, Row] = {}

    def paired(found: Numbered, other: Row) -> Numbered:
        return found._replace(row=found.row._replace(positives=(other.query,), positive_lang=other.lang))

    for found in rows:
        label = found.row.group
        assert label is not None
        if judged(found.row):
            yield found
            continue
        if label in last and last[label].query != found.row.query:
            yield paired(found, last[label])
        elif label in last:
            tally.drop("duplicate", found.place, found.number)
            continue
        else:
            first[label] = found
        last[label] = found.row
    for label, found in first.items():
        if last[label].query == found.row.query:
            alone = last[label] is found.row
            tally.drop("the only text of its label" if alone else "duplicate", found.place, found.number)
        else:
            yield paired(found, last[label])


def _text(values: Any, column: str) -> str:
    if column not in values:
        raise BadRow(f"has no {column!r}")
    return _check(values[column], column)


def _check(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{column!r} is {'null' if value is None else type(value).__name__}, expected text")
    if not value or value.isspace():
        raise BadRow(f"{column!r} is empty")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadRow(f"{column!r} holds bytes that are not valid UTF-8") from None
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
    except (TypeError, ValueError, OverflowError):
        raise BadRow(f"{column!r} is not a number") from None
    if not math.isfinite(score):
        raise BadRow(f"{column!r} is not a finite number")
    return score


def _group(values: Any, column: str | None) -> str | None:
    if not _given(values, column):
        return None
    value = values[column]
    if isinstance(value, float) and math.isnan(value):  # how a table of numbers writes none
        return None
    if isinstance(value, list | dict):
        raise BadRow(f"{column!r} is {type(value).__name__}, expected text or a number")
    return _check(str(value), str(column))


def _word(values: Any, column: str | None) -> str:
    return _check(values[column], column) if column and _given(values, column) else ""

"""Where text comes from: the settings of each kind of source, and its usable rows."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data_prep.beir import beir_files, read_beir
from data_prep.documents import OTHER_KIND, PYTHON, READ, Pairing, pairs_of
from data_prep.filters import FilterConfig, apply_filters
from data_prep.mteb_tasks import read_task, task_folder, task_settings
from data_prep.readers import (
    COMPRESSED,
    Reader,
    Unreadable,
    check_columns,
    csv_reader,
    datasets_reader,
    find_files,
    read_hub,
    read_jsonl,
    read_parquet,
    visible_files,
)
from data_prep.rows import BadRow, Mapping, Numbered, Record, Row, Tally, printable, same_label, to_row
from embedding.config import Config


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
    """Whether a share of this source becomes evaluation data. Labelled texts never do."""
    licence: str = ""
    """Such as `CC-BY-4.0`; shown on the data card, and what `data.licences` chooses by."""
    near_duplicates: bool = True
    """Whether rows may go as near-duplicates, where the recipe looks for them. Not those of source code and other text
    made from templates: what differs by a word there is another thing."""
    filters: FilterConfig | None = None
    """Instead of `data.filters`: source code and single words want others than prose."""


class _Columns(_Source, Mapping, ABC):
    """A source that has columns: what every source has, and the mapping."""

    @property
    def both_sides(self) -> bool:
        """Whether positives get the instruction too."""
        return self.symmetric or self.label is not None

    @abstractmethod
    def title(self) -> str:
        """The source's name."""

    @abstractmethod
    def records(self) -> Iterator[Record]:
        """What the source holds, in order."""


class _Files(_Columns):
    path: str = Field(min_length=1)
    """A file, or a pattern such as `data/*.jsonl`; `~` and `$VARIABLE` are expanded. JSONL and CSV may be compressed
    with gzip, zstandard, bzip2 or xz."""

    def title(self) -> str:
        """The source's name."""
        return self.name or _stem(self.path)

    def files(self) -> list[Path]:
        """The files, sorted; folders as the files in them, hidden ones left out (an output being written is one)."""
        found = find_files(self.path)
        return sorted(file for path in found for file in (visible_files(path) if path.is_dir() else [path]))

    @abstractmethod
    def _reader(self) -> Reader:
        """What reads a file."""

    def records(self) -> Iterator[Record]:
        """The rows of all files, in the order of the files' names. A file that is of no use stops the pass, or with
        `on_error: drop` is one bad row."""
        for path in find_files(self.path):
            try:
                yield from self._reader()(path, self.columns())
            except Unreadable as error:
                if self.on_error == "stop":
                    raise
                yield Record(str(error), {}, "a file that cannot be read")


class JsonlSource(_Files):
    """One JSON object on each line."""

    kind: Literal["jsonl"]

    def _reader(self) -> Reader:
        return lambda path, _: read_jsonl(path, self.required_columns())

    def records(self) -> Iterator[Record]:
        """The rows of all files, in the order of the files' names.

        Raises:
            ValueError: an optional column that no row of any file has.
        """
        self._check_optional()
        yield from super().records()

    def _check_optional(self) -> None:
        """Rows may lack an optional column, so it may first occur in any of them: read until each has occurred. Mostly
        that is the first row; and a misspelt one is refused before a row is taken, wherever `limit` would end."""
        missing = [column for column in self.columns() if column not in self.required_columns()]
        known: dict[str, None] = {}
        records = super().records()
        while missing and (record := next(records, None)) is not None:
            known |= dict.fromkeys(record.values)
            missing = [column for column in missing if column not in record.values]
        if known:  # no row at all is another complaint
            check_columns(self.path, missing, list(known))


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

    def title(self) -> str:
        """The source's name."""
        return self.name or self.repository.rstrip("/").rsplit("/", 1)[-1]

    def records(self) -> Iterator[Record]:
        """The rows of the split."""
        return read_hub(self.repository, self.subset, self.split, self.revision, self.columns())


class BeirSource(_Columns):
    """A folder in the layout of BEIR: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv; or the same as Parquet.

    A row is a query with all its relevant documents; documents judged not relevant (score 0 or less) are its negatives.
    """

    kind: Literal["beir"]
    path: str = Field(min_length=1)
    split: str = "train"
    query: Literal["query"] = "query"
    positive: Literal["positive"] = "positive"
    negative: Literal["negative"] = "negative"

    def title(self) -> str:
        """The source's name."""
        return self.name or Path(self.path).name

    def files(self) -> list[Path]:
        """Corpus, queries and relevance judgements."""
        return list(beir_files(self.path, self.split))

    def records(self) -> Iterator[Record]:
        """The judged queries, in the order of the judgements."""
        return read_beir(*beir_files(self.path, self.split))


class MtebSource(_Columns):
    """A training split of one of mteb's own tasks (`data_prep.mteb_tasks`). Columns, instruction and the commit of the
    data set are the task's; an instruction or a revision that is given here comes first. Needs `pip install
    'eyas[eval]'`.

    Classification gives labelled texts, STS graded pairs, pair classification its pairs of the same meaning, bitext
    mining translations, retrieval and reranking judged queries.
    """

    kind: Literal["mteb"]
    task: str
    """As mteb calls it."""
    split: str = "train"
    subset: str | None = None
    """Of a task with several: the language or pair of languages."""
    revision: str
    mirror: str | None = None
    """A folder of copies of the hub's data sets, `mirror/OWNER/NAME`; None: the hub."""

    @model_validator(mode="before")
    @classmethod
    def _from_the_task(cls, values: Any) -> Any:
        known = isinstance(values, dict) and isinstance(values.get("task"), str)
        return task_settings(values["task"]) | values if known else values

    def title(self) -> str:
        """The source's name."""
        return self.name or self.task

    def files(self) -> list[Path]:
        """The files of the copy; none of the hub's."""
        folder = task_folder(self.task, self.mirror)
        return [] if folder is None else visible_files(folder)

    def records(self) -> Iterator[Record]:
        """The rows of the split."""
        return read_task(self.task, self.split, self.subset, self.revision, self.mirror)


class DocumentsSource(_Files):
    """Pairs that documents hold without anybody's labels (`data_prep.documents`): a file, a pattern such as
    `docs/**/*.md`, or a folder with everything in it that is text, Markdown, HTML or Python.

    A file of another kind, that holds no pair, or that cannot be read is dropped and counted. Needs
    `pip install 'eyas[documents]'`.
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
        if not any(path.suffix.lower() in READ for path in named):
            raise ValueError(f"{self.path}: {len(named)} files, and none that ends in {', '.join(sorted(READ))}")
        for path in named:
            if path.suffix.lower() in READ:
                yield from self._pairs(path)
            elif (
                self.on_error == "drop"
            ):  # whoever wants to stop at a bad file has pictures beside the text all the same
                yield Record(str(path), {}, OTHER_KIND)

    def _pairs(self, path: Path) -> Iterator[Record]:
        found = 0
        try:
            for pair in pairs_of(path, path.read_text(encoding="utf-8-sig"), self.pairs):
                found += 1
                values = {"query": pair.query, "positive": pair.positive, "group": printable(str(path))}
                yield Record(f"{path} ({pair.where})", values)
        except UnicodeDecodeError:
            yield Record(str(path), {}, "not UTF-8")
            return
        except OSError as error:
            yield Record(f"{path} ({error.strerror})", {}, "a file that cannot be read")
            return
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: code nested too deeply
            code = path.suffix.lower() in PYTHON
            yield Record(str(path), {}, "source code that does not parse" if code else "text that cannot be read")
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
    """Decides which modules a `limit` takes; what is held out is the same for every seed."""

    @property
    def both_sides(self) -> bool:
        """Whether positives get the instruction too."""
        return self.symmetric

    def title(self) -> str:
        """The source's name."""
        return self.name or "docstrings"


ColumnSource = (
    JsonlSource | CsvSource | ParquetSource | DatasetsSource | HubSource | BeirSource | MtebSource | DocumentsSource
)
Source = Annotated[ColumnSource | DocstringsSource, Field(discriminator="kind")]


def read_rows(source: ColumnSource, tally: Tally) -> Iterator[Row]:
    """The usable rows of a source; `tally` counts what was read and dropped.

    Raises:
        ValueError: a file that cannot be read; bad rows where `on_error` is stop (after reading on, so that one message
            names them all); no usable row.
    """
    for found in numbered_rows(source, tally):
        yield found.row


def numbered_rows(source: ColumnSource, tally: Tally, filters: FilterConfig | None = None) -> Iterator[Numbered]:
    """`read_rows`, each row with its number and place. `filters`: what is to come, which pairs of one label mind."""
    rows = _usable(source, tally)
    if source.label:
        rows = same_label(rows, tally, lambda row: filters is not None and bool(apply_filters(row, filters).reason))
    yield from islice(rows, source.limit)
    what = f"{tally.dropped.total()} of {tally.read} rows cannot be used"
    if any(reason not in HARMLESS for reason in tally.dropped) and source.on_error == "stop":
        raise ValueError(
            f"source {source.title()!r}: {what}: {tally.report()}; correct them, or set `on_error: drop`"
            " to have them dropped and counted"
        )
    if tally.dropped.total() == tally.read:
        raise ValueError(f"source {source.title()!r}: no usable row; {what}: {tally.report() or 'there are none'}")


HARMLESS = {"duplicate", "the only text of its label"}
"""What is dropped without being an error in the data."""


def _usable(source: ColumnSource, tally: Tally) -> Iterator[Numbered]:
    for record in source.records():
        tally.read += 1
        place = printable(record.place)
        try:
            if record.problem:
                raise BadRow(record.problem)
            row = to_row(source, record.values, source.symmetric)
        except BadRow as bad:
            tally.drop(str(bad), place, tally.read)
        else:
            yield Numbered(tally.read, place, row)


def _stem(path: str) -> str:
    """The name of a file without its endings: `faq` of `faq.jsonl.gz`."""
    name = Path(path).name
    if name in ("", ".."):  # of the working folder, or one above it
        name = Path(path).resolve().name
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).stem.replace("*", "all")

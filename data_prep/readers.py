"""Files and data sets as a stream of records, each with its place, so that every complaint can name file and row.

A reader never stops at a bad row: the row comes as a record with a `problem`, and `data_prep.sources` decides.
What makes a whole file useless (missing, compressed, not the format, a column that does not exist) raises at once.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from glob import glob, has_magic
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi

from data_prep.rows import Record
from embedding.config import suggest
from embedding.files import expanded
from embedding.hub import HUB_ERRORS

PEEK = 100
"""Rows looked at to learn which columns a JSONL file has."""
BATCH_ROWS = 1_000
# The module's own limit of 131,072 characters a field is below the length of an ordinary document.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
"""Endings of files that are unpacked while they are read; what they are is known by their first bytes."""
_OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x28\xb5\x2f\xfd": lambda path: io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")),
}
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)
"""What a compressed file raises where it is cut off or changed."""
CUT_OFF = "damaged here, what follows is lost"
SWALLOWED = "in a quote that closes lines later, inside a field; `quotes: false` where quotes are ordinary characters"
_MAGIC = {
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"PAR1": "a Parquet file; use kind: parquet",
}


class Unreadable(ValueError):
    """A file that is of no use as a whole: empty, damaged, another format."""


UNREADABLE: tuple[type[BaseException], ...] = (*HUB_ERRORS, ValueError)
"""What reading a data set of the hub raises."""

Reader = Callable[[Path, Sequence[str]], Iterator[Record]]


def find_files(pattern: str) -> list[Path]:
    """The files of a path or a glob pattern, sorted; `~` and `$VARIABLE` are expanded.

    Raises:
        ValueError: an unset variable, a missing file, or a pattern that matches none.
    """
    try:
        name = expanded(pattern)
    except ValueError as error:
        raise ValueError(f"{pattern}: {error}") from None
    if not has_magic(name) or Path(name).exists():
        if not Path(name).exists():
            beside = sorted(p.name for p in Path(name).parent.glob("*")) if Path(name).parent.is_dir() else []
            hint = suggest(Path(name).name, beside) if beside else ""
            raise ValueError(f"{name}: no such file or folder{hint if 'did you mean' in hint else ''}")
        return [Path(name)]
    files = sorted(Path(found) for found in glob(name, recursive=True) if Path(found).is_file())  # noqa: PTH207
    if not files:
        raise ValueError(f"{name}: no file matches this pattern")
    return files


def visible_files(folder: Path) -> list[Path]:
    """Everything below a folder, sorted, but what is hidden or in a hidden folder."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def check_columns(place: str, wanted: Sequence[str], existing: Sequence[str]) -> None:
    """Raise a ValueError that names the missing column, close ones and those that exist."""
    for column in wanted:
        if column not in existing:
            close = suggest(column, existing)
            close = close if "did you mean" in close else ""
            raise ValueError(f"{place}: no column {column!r}{close or ';'} columns: {', '.join(map(str, existing))}")


def _check_once(path: Path, columns: Sequence[str], existing: Sequence[str]) -> None:
    twice = sorted(column for column in columns if existing.count(column) > 1)
    if twice:
        raise ValueError(f"{path}: the header names the column {twice[0]!r} twice; rename one")


def read_jsonl(path: Path, columns: Sequence[str]) -> Iterator[Record]:
    """One JSON object on each line; blank lines are no rows.

    Args:
        columns: those that the first PEEK rows must have between them. A row has all its values whatever is named here.
    """
    _check_text_file(path)
    records = _json_lines(path)
    first = list(islice(records, PEEK))
    known = list(dict.fromkeys(key for record in first for key in record.values))
    if known:
        check_columns(str(path), columns, known)
    yield from chain(first, records)


def _json_lines(path: Path) -> Iterator[Record]:
    number = 0
    with open_bytes(path) as file:
        while True:
            try:
                line = file.readline()
            except DAMAGE as error:
                yield Record(f"{path}:{number + 1} ({_line(error)})", {}, CUT_OFF)
                return
            if not line:
                return
            number += 1
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                values = json.loads(line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8"))
            except json.JSONDecodeError as error:
                yield Record(f"{place} (column {error.colno}: {error.msg.removesuffix(' at')})", {}, "malformed JSON")
            except UnicodeDecodeError as error:
                yield Record(f"{place} (byte 0x{line[error.start]:02x} at position {error.start})", {}, "not UTF-8")
            except RecursionError:
                yield Record(f"{place} (nested too deeply)", {}, "malformed JSON")
            except ValueError as error:  # such as a number of thousands of digits
                yield Record(f"{place} ({_line(error)})", {}, "malformed JSON")
            else:
                if isinstance(values, dict):
                    yield Record(place, values)
                else:
                    yield Record(f"{place} ({type(values).__name__})", {}, "not one JSON object on each line")


def csv_reader(delimiter: str | None, quotes: bool) -> Reader:
    """A reader of delimited text with a header row; None: tab for .tsv and .tab, comma otherwise."""

    def read_csv(path: Path, columns: Sequence[str]) -> Iterator[Record]:
        _check_text_file(path)
        inner = path.with_suffix("") if path.suffix in COMPRESSED else path
        separator = delimiter or ("\t" if inner.suffix in {".tsv", ".tab"} else ",")
        # Bytes that are not UTF-8 become lone surrogates here, which the check of each text reports with its row.
        with io.TextIOWrapper(open_bytes(path), "utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.reader(
                file, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE, strict=True
            )
            try:
                header = next(rows, [])
            except (*DAMAGE, csv.Error) as error:
                raise Unreadable(f"{path}: no header can be read ({_line(error)}); write or fetch it again") from None
            check_columns(str(path), columns, header)
            _check_once(path, columns, header)
            yield from _csv_rows(path, rows, header)

    return read_csv


def _csv_rows(path: Path, rows: Any, header: list[str]) -> Iterator[Record]:
    while True:
        start = rows.line_num + 1
        place = f"{path}:{start}"
        try:
            fields = next(rows)
        except StopIteration:
            return
        except DAMAGE as error:
            yield Record(f"{place} ({_line(error)})", {}, CUT_OFF)
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):  # it swallowed the rest of the file: not one bad row
                raise ValueError(
                    f"{place}: a quote opens here and never closes; close it, or set `quotes: false` where quotes"
                    " are ordinary characters"
                ) from None
            if rows.line_num == start:
                yield Record(f"{place} ({error})", {}, "malformed row")
            else:  # it ran on through rows that are lost with it: each counts
                for line in range(start, rows.line_num + 1):
                    yield Record(f"{path}:{line} (lines {start} to {rows.line_num})", {}, SWALLOWED)
            continue
        if not fields:
            continue
        if len(fields) != len(header):
            last = f", to line {rows.line_num}" if rows.line_num > start else ""
            found = f"{len(fields)} of {len(header)}{last}"
            yield Record(f"{place} ({found})", {}, "other number of fields than the header")
        else:
            yield Record(place, dict(zip(header, fields, strict=True)))


def read_parquet(path: Path, columns: Sequence[str]) -> Iterator[Record]:
    """The named columns of a Parquet file; rows are counted from 1."""
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise Unreadable(f"{path}: not a readable Parquet file ({_line(error)}); write or fetch it again") from None
    with file:
        check_columns(str(path), columns, file.schema_arrow.names)
        _check_once(path, columns, file.schema_arrow.names)
        batches = file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns))
        yield from _table_rows(path, batches)


def _table_rows(path: Path, batches: Iterator[Any]) -> Iterator[Record]:
    """The rows of batches or tables of Arrow, counted from 1."""
    number = 0
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            yield Record(f"{path} row {number + 1} ({_line(error)})", {}, CUT_OFF)
            return
        if batch is None:
            return
        for place, values in enumerate(_values(batch), start=number + 1):
            problem = "a value that cannot be read" if isinstance(values, Exception) else ""
            where = f"{path} row {place}"
            yield Record(f"{where} ({_line(values)})", {}, problem) if problem else Record(where, values)
        number += batch.num_rows


def _values(batch: Any) -> list[Any]:
    """The rows of a batch; in place of one that cannot be made values of Python (bytes that are no UTF-8 in a column of
    text, a date outside of the calendar), what is wrong with it."""
    try:
        found: list[Any] = batch.to_pylist()
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [error]
        middle = batch.num_rows // 2
        return _values(batch.slice(0, middle)) + _values(batch.slice(middle))
    return found


def datasets_reader(split: str | None) -> Reader:
    """A reader of a folder written by `save_to_disk`; `split` picks one of a folder with several."""

    def read_folder(path: Path, columns: Sequence[str]) -> Iterator[Record]:
        import datasets

        try:
            data = datasets.load_from_disk(str(path))
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise Unreadable(f"{path}: not a folder that datasets' save_to_disk wrote ({_line(error)})") from None
        if isinstance(data, datasets.DatasetDict):
            if split not in data:
                raise ValueError(f"{path}: has the splits {', '.join(data)}; set `split` to one of them")
            data = data[split]
        elif split is not None:
            raise ValueError(f"{path}: has no splits; leave `split` out")
        check_columns(str(path), columns, data.column_names)
        yield from _table_rows(path, data.select_columns(list(columns)).with_format("arrow").iter(BATCH_ROWS))

    return read_folder


def read_hub(
    repository: str, subset: str | None, split: str, revision: str | None, columns: Sequence[str]
) -> Iterator[Record]:
    """The rows of a data set on the hub, streamed: only what is read is fetched."""
    place = "/".join(filter(None, (repository, subset, split)))
    rows = _hub_rows(place, repository, name=subset, split=split, revision=revision)
    for number, values in enumerate(rows, start=1):
        if number == 1:
            check_columns(place, columns, list(values))
        yield Record(f"{place} row {number}", values)


def _hub_rows(place: str, repository: str, **settings: str | None) -> Iterator[dict[str, Any]]:
    import datasets

    errors: tuple[type[BaseException], ...] = (*UNREADABLE, datasets.exceptions.DatasetsError)
    read = 0
    try:
        for values in datasets.load_dataset(repository, streaming=True, **settings):
            yield values
            read += 1
    except errors as error:
        raise ValueError(f"{place}: cannot read row {read + 1} from the hub: {_line(error)}") from None


def hub_commit(repository: str, revision: str | None) -> str:
    """The commit that a revision of a data set means now.

    Raises:
        ValueError: the hub does not know it or cannot be reached; a full commit is not asked for.
    """
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    try:
        return str(HfApi().dataset_info(repository, revision=revision).sha)
    except UNREADABLE as error:
        raise ValueError(
            f"{repository}: the hub did not say which commit {revision or 'the newest revision'} is"
            f" ({_line(error)}); go online, or pin `revision` to a commit of 40 digits"
        ) from None


def open_bytes(path: Path) -> Any:
    """A binary stream of a file's content, unpacked where it is compressed."""
    with path.open("rb") as file:
        head = file.read(8)
    opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
    return path.open("rb") if opener is None else opener(path)


def _check_text_file(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name a file, or a pattern such as {path}/*")
    try:
        with open_bytes(path) as file:
            head = file.read(4)
    except DAMAGE as error:
        reason = getattr(error, "strerror", None) or _line(error)
        raise Unreadable(f"{path}: cannot be read ({reason})") from None
    if not head:
        raise Unreadable(f"{path}: the file is empty")
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            raise Unreadable(f"{path}: expected UTF-8 text, found {what}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]

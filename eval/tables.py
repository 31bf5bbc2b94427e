"""Reading the tables of an evaluation folder, with the checks that turn bad data into one clear sentence."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

Shape = Literal["text", "texts", "number", "label"]

_FITS: dict[Shape, tuple[Callable[[Any], bool], str]] = {
    "text": (lambda t: pa.types.is_string(t) or pa.types.is_large_string(t), "text"),
    "texts": (
        lambda t: (
            (pa.types.is_list(t) or pa.types.is_large_list(t))
            and (pa.types.is_string(t.value_type) or pa.types.is_large_string(t.value_type))
        ),
        "a list of texts",
    ),
    "number": (lambda t: pa.types.is_integer(t) or pa.types.is_floating(t), "a number"),
    "label": (
        lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_integer(t),
        "text or an integer",
    ),
}


def read_table(path: Path, columns: Mapping[str, Shape], optional: Mapping[str, Shape] | None = None) -> pa.Table:
    """The named columns of a Parquet file; optional ones only where the file has them.

    Raises:
        ValueError: the file is missing or no Parquet, has no rows, lacks a column (the existing ones are named), or a
            column has the wrong type or a missing value (the row is named).
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        found = pq.read_schema(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file ({error})") from None
    missing = [name for name in columns if name not in found.names]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(map(repr, missing))}; columns: {', '.join(found.names)}")
    wanted = dict(columns) | {name: shape for name, shape in (optional or {}).items() if name in found.names}
    table = pq.read_table(path, columns=list(wanted))
    if table.num_rows == 0:
        raise ValueError(f"{path}: no rows")
    for name, shape in wanted.items():
        fits, expected = _FITS[shape]
        if not fits(table.schema.field(name).type):
            raise ValueError(f"{path}: column {name!r} is {table.schema.field(name).type}, expected {expected}")
        if name in columns and table[name].null_count:
            row = table[name].is_null().to_pylist().index(True)
            raise ValueError(f"{path}: row {row}: column {name!r} has no value, expected {expected}")
    return table


def texts(table: pa.Table, column: str) -> list[str]:
    """A text column as Python strings; a missing value of an optional column is empty text."""
    return [value or "" for value in table[column].to_pylist()]


def labels(values: Iterable[Any]) -> list[str]:
    """Labels as text, so that integer and string labels are handled alike."""
    return [str(value) for value in values]


def some(values: Collection[str], n: int = 3) -> str:
    """The first few values for an error message."""
    shown = sorted(values)[:n]
    return ", ".join(map(repr, shown)) + (f" and {len(values) - n} more" if len(values) > n else "")

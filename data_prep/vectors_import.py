"""Vectors that somebody else computed: Parquet files of text and vector into a store of an `imported` teacher.

Shapes: N rows, E width of the vectors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.teacher import Imported, ImportedConfig, teacher_identity
from data_prep.vectors import VectorStore, first_rows
from embedding.files import content_keys, fingerprint
from embedding.instruction import Role

SHARD_TEXTS = 2_048


@dataclass(frozen=True)
class ImportReport:
    """What an import did."""

    store: Path
    width: int
    imported: int
    there: int
    """Rows whose text had a vector already, in the store or in an earlier row."""


def import_vectors(
    config: ImportedConfig,
    files: Sequence[Path],
    stores: Path,
    *,
    text: str = "text",
    vector: str = "vector",
    role: Role = "document",
    task: str = "",
) -> ImportReport:
    """Take the vectors of Parquet files into the teacher's store below `stores`, each scaled to unit length.

    Every file is looked at before anything is written; rows are read a shard at a time. A text that has a vector keeps
    it.

    Args:
        text, vector: the columns; `vector` holds lists of numbers, all of one length.
        role, task: how the texts were prompted (`teacher.template` says how), for all rows of these files.

    Raises:
        ValueError: a file or column is not there or broken; a row without text, or whose vector is null, of another
            width, not finite or zero (file and row). Shards before that row are kept.
    """
    if config.store.pca:
        raise ValueError("teacher.store.pca: vectors are imported as they are; leave it out")
    widths = {file: _check(file, text, vector) for file in files}
    known = {file: width for file, width in widths.items() if width is not None}
    if not known:
        raise ValueError(f"{', '.join(map(str, files))}: no rows to import")
    width = next(iter(known.values()))
    identity = teacher_identity(config, Imported(config))
    store = VectorStore.open(stores / fingerprint(identity), identity, width)
    prompt = config.template.prompt(role, task)
    imported = there = 0
    for file in known:
        for at, texts, vectors_NE in _rows(file, text, vector, width):
            keys_N2 = content_keys([prompt] * len(texts), texts)
            fresh = first_rows(keys_N2)
            fresh = fresh[store.missing(keys_N2[fresh])]
            imported += len(fresh)
            there += len(texts) - len(fresh)
            try:
                store.append(keys_N2[fresh], vectors_NE[fresh])
            except ValueError as error:
                raise ValueError(f"{file}, rows {at} to {at + len(texts) - 1}: {error}") from None
    return ImportReport(store.folder, width, imported, there)


def _check(file: Path, text: str, vector: str) -> int | None:
    """The width of a file's vectors; None where it has no rows."""
    try:
        schema = pq.read_schema(file)
        rows = pq.read_metadata(file).num_rows
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{file}: not a Parquet file ({str(error).splitlines()[0]})") from None
    for name, kinds in ((text, "text"), (vector, "lists of numbers")):
        if name not in schema.names:
            raise ValueError(
                f"{file}: no column {name!r} of {kinds}; it has {', '.join(schema.names)}: name the right ones with "
                "--text and --vector"
            )
    kind = schema.field(text).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"{file}: column {text!r} holds {kind}, expected text")
    kind = schema.field(vector).type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise ValueError(f"{file}: column {vector!r} holds {kind}, expected lists of numbers")
    if not rows:
        return None
    first = next(pq.ParquetFile(file).iter_batches(batch_size=1, columns=[vector]))[0][0].as_py()
    if not first:
        raise ValueError(f"{file}, row 0: no vector")
    return len(first)


def _rows(file: Path, text: str, vector: str, width: int) -> Iterator[tuple[int, list[str], np.ndarray]]:
    """(the first row's number, texts, unit vectors float32 [n, E]) of at most a shard's rows at a time."""
    start = 0
    for batch in pq.ParquetFile(file).iter_batches(batch_size=SHARD_TEXTS, columns=[text, vector]):
        texts, lists = batch.column(text), batch.column(vector)
        _refuse(file, start, texts.is_null().to_numpy(zero_copy_only=False), "no text")
        lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        wrong = lengths != width
        _refuse(file, start, wrong, lambda row, n=lengths: f"a vector of {n[row]} numbers, expected {width}")
        numbers = lists.flatten().cast(pa.float32(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False)
        vectors_NE = numbers.reshape(len(batch), width)
        norms_N1 = np.linalg.norm(vectors_NE, axis=1, keepdims=True)
        _refuse(file, start, ~np.isfinite(norms_N1[:, 0]) | (norms_N1[:, 0] == 0), "a vector that holds NaN or is zero")
        yield start, texts.to_pylist(), vectors_NE / norms_N1
        start += len(batch)


def _refuse(file: Path, start: int, wrong_N: np.ndarray, what: object) -> None:
    bad = np.flatnonzero(wrong_N)
    if len(bad):
        said = what(int(bad[0])) if callable(what) else what
        more = f" (and {len(bad) - 1} more among the next {len(wrong_N)})" if len(bad) > 1 else ""
        raise ValueError(f"{file}, row {start + bad[0]}: {said}{more}; mend or drop it")

"""A shard of vectors: an Arrow file whose name holds its number of rows and its checksum, and whose columns are read
in place.

    ROWS-DIGEST.arrow    key_hi, key_lo uint64; vector: a list of E float16, or of E int8 with a float32 column `scale`

Shapes: N rows, E width of the vectors.
"""

import hashlib
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa

from embedding.files import sync_folder, whole_file

Stored = Literal["float16", "int8"]
"""How the numbers of a vector are stored: 2 bytes each, or 1 byte and a scale for each vector."""
INT8_MOST = 127
SUFFIX = ".arrow"


class Shard(NamedTuple):
    """The columns of one shard, views of its memory map."""

    high_N: np.ndarray
    low_N: np.ndarray
    """The halves of the keys: uint64 [N] (fixed-length byte strings would drop trailing zeros)."""
    vectors_NE: np.ndarray
    """float16 or int8."""
    scale_N: np.ndarray | None
    """float32; what an int8 vector is multiplied with."""

    @classmethod
    def map(cls, path: Path) -> Self:
        """Map a shard's file; nothing is read until it is touched, and no file descriptor stays open.

        Raises:
            OSError, pyarrow.ArrowInvalid: the file cannot be mapped, or is no whole Arrow file of one batch.
        """
        with pa.memory_map(str(path)) as file:
            batches = pa.ipc.open_stream(file).read_all().to_batches()
        if len(batches) != 1:
            raise pa.ArrowInvalid(f"{path}: expected one batch, found {len(batches)}")
        table = batches[0]  # columns of a table are joined from their chunks, which copies even a single one
        vectors = table["vector"]
        scale = table["scale"].to_numpy() if "scale" in table.schema.names else None
        high, low = table["key_hi"].to_numpy(), table["key_lo"].to_numpy()
        return cls(high, low, vectors.values.to_numpy().reshape(-1, vectors.type.list_size), scale)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of rows: float32 [n, E]."""
        found: np.ndarray = self.vectors_NE[rows].astype(np.float32)
        if self.scale_N is not None:
            found *= self.scale_N[rows, None]
        return found


def quantize(vectors_NE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8, each vector with its own scale: q = round(x / s), s = max |x| / 127. int8 [N, E], float32 [N].

    The error of a number is at most s / 2.
    """
    scale_N = np.abs(vectors_NE).max(axis=1).astype(np.float32) / INT8_MOST
    scale_N[scale_N == 0] = 1.0
    return np.rint(vectors_NE / scale_N[:, None]).astype(np.int8), scale_N


def shard_bytes(keys_N2: np.ndarray, vectors_NE: np.ndarray, stored: Stored) -> pa.Buffer:
    """The bytes of a shard's file.

    Raises:
        ValueError: a vector is not finite, or too large for float16.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        half_NE = np.ascontiguousarray(vectors_NE, dtype=np.float16)
    bad = np.flatnonzero(~np.isfinite(half_NE).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(half_NE)} vectors hold NaN or values beyond float16 (first: {bad[0]}); the"
            " teacher is broken or its dtype too narrow: try `dtype: float32`"
        )
    columns = {"key_hi": pa.array(keys_N2[:, 0]), "key_lo": pa.array(keys_N2[:, 1])}
    if stored == "int8":
        half_NE, scale_N = quantize(np.asarray(vectors_NE, dtype=np.float32))
        columns["scale"] = pa.array(scale_N)
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(half_NE.reshape(-1)), half_NE.shape[1])
    batch = pa.record_batch(list(columns.values()), names=list(columns))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def write_shard(folder: Path, rows: int, data: pa.Buffer) -> Path:
    """Write a shard aside, fsync it, and rename it to the name that holds its checksum; durable when this returns.

    Raises:
        OSError: it cannot be written, as on a full disk; nothing is left of it then.
    """
    path = folder / f"{rows}-{digest(data)}{SUFFIX}"
    try:
        with whole_file(path) as aside:
            aside.write_bytes(data)
        sync_folder(folder)
    except OSError as error:
        raise OSError(
            f"{folder}: cannot write {rows} vectors ({data.size / 1e6:.1f} MB): {error.strerror}; what was finished is "
            "kept: mend it and run the same command again"
        ) from error
    return path


def intact(path: Path, name: str = "") -> bool:
    """Whether a shard's bytes have the checksum of its name; `name`: the one it had, without an ending, where it lies
    under another."""
    return digest(path.read_bytes()) == (name or path.stem).split("-")[-1]


def rows_of(path: Path) -> int:
    """The number of rows that a shard's name says."""
    return int(path.stem.split("-")[0])


def digest(data: pa.Buffer | bytes) -> str:
    """BLAKE2b-128 (RFC 7693) of a file's bytes, in hex."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()

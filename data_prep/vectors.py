"""The store of teacher vectors: content-addressed shards that any number of writers add to, read without a copy.

    manifest.json                     the teacher's identity, its fingerprint, the width
    shards/ROWS-DIGEST.arrow          key_hi, key_lo uint64; vector: a list of E float16; DIGEST is of the file's bytes
    damaged/                          shards whose bytes no longer have the digest in their name

A shard is written aside, fsynced and renamed to a name that holds its own checksum: it is there whole or not at all,
and two writers of the same vectors write the same file. Nothing else is shared, so there is nothing to lock.

Shapes: N keys, E width of the teacher's vectors.
"""

import hashlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from embedding.files import MANIFEST, differences, read_manifest, sync_folder, write_manifest

SHARDS, DAMAGED = "shards", "damaged"


class VectorStore:
    """Vectors by content key. Positions are rows of this opened store: they change when it is opened again."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], width: int, set_aside: list[str]) -> None:
        self.folder = folder
        self.identity = dict(identity)
        self.width = width
        self.set_aside = set_aside
        """Damaged shards found on opening, as they are called in `damaged/`; their vectors count as missing."""
        self._vectors: list[np.ndarray] = []
        """A view of each shard's file: float16 [rows, E]."""
        self._keys: list[np.ndarray] = []
        self._index: _Index | None = None

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any], width: int, *, verify: bool = True) -> Self:
        """Open the store of one teacher, or begin it.

        Args:
            identity: every fact that determines a vector, as JSON values.
            verify: check the bytes of every shard; a damaged one is set aside. Reads the whole store once.

        Raises:
            ValueError: the folder is the store of another teacher or width; names each field that differs.
        """
        manifest = read_manifest(folder)
        if manifest is None:
            if folder.is_dir() and any(folder.glob(f"{SHARDS}/*.arrow")):
                raise ValueError(f"{folder}: has shards but no {MANIFEST}, so nobody knows their teacher; delete it")
            (folder / SHARDS).mkdir(parents=True, exist_ok=True)
            write_manifest(folder, identity, width=width)
            manifest = read_manifest(folder)
            assert manifest is not None
        changed = differences({**identity, "width": width}, {**manifest["made_from"], "width": manifest["width"]})
        if changed:
            raise ValueError(f"{folder}: the store of another teacher: {'; '.join(changed)}; use another folder")
        store = cls(folder, identity, width, [])
        for path in sorted((folder / SHARDS).glob("*.arrow")):
            store._add_file(path, verify)
        return store

    def __len__(self) -> int:
        """Vectors that can be read; a key that two writers both computed counts once."""
        return len(self._indexed().high)

    def missing(self, keys_N2: np.ndarray) -> np.ndarray:
        """Which keys have no vector yet: bool [N]."""
        return self.locate(keys_N2) < 0

    def locate(self, keys_N2: np.ndarray) -> np.ndarray:
        """The position of each key, for `read`: int64 [N]; -1 where it is missing."""
        index = self._indexed()
        positions_N = np.full(len(keys_N2), -1, dtype=np.int64)
        high_N, low_N = np.ascontiguousarray(keys_N2[:, 0]), keys_N2[:, 1]
        place_N = np.searchsorted(index.high, high_N)
        open_N = np.arange(len(keys_N2))
        # Sorted by the high half alone: two keys that share it are as good as never seen, so this loop runs once.
        while len(open_N):
            open_N = open_N[place_N[open_N] < len(index.high)]
            open_N = open_N[index.high[place_N[open_N]] == high_N[open_N]]
            hit = index.low[place_N[open_N]] == low_N[open_N]
            positions_N[open_N[hit]] = index.position[place_N[open_N[hit]]]
            open_N = open_N[~hit]
            place_N[open_N] += 1
        return positions_N

    def read(self, positions_N: np.ndarray) -> np.ndarray:
        """The vectors at positions that `locate` gave: float32 [N, E]."""
        starts = self._indexed().starts
        assert len(positions_N) == 0 or (positions_N.min() >= 0 and positions_N.max() < starts[-1])
        out_NE = np.empty((len(positions_N), self.width), dtype=np.float32)
        shards_N = np.searchsorted(starts, positions_N, side="right") - 1
        for shard in np.unique(shards_N):
            mine = np.flatnonzero(shards_N == shard)
            out_NE[mine] = self._vectors[shard][positions_N[mine] - starts[shard]]
        return out_NE

    def rows(self, keys_N2: np.ndarray) -> np.ndarray:
        """The vectors of keys: float32 [N, E].

        Raises:
            ValueError: a key has no vector.
        """
        positions_N = self.locate(keys_N2)
        absent = int((positions_N < 0).sum())
        if absent:
            raise ValueError(
                f"{self.folder}: {absent} of {len(keys_N2)} texts have no vector; run the embed step first"
            )
        return self.read(positions_N)

    def append(self, keys_N2: np.ndarray, vectors_NE: np.ndarray) -> None:
        """Write one shard, durable when this returns.

        Raises:
            ValueError: another width, or a vector that is not finite in float16; nothing is written then.
        """
        if vectors_NE.shape != (len(keys_N2), self.width):
            raise ValueError(f"vectors of shape {vectors_NE.shape}: expected {(len(keys_N2), self.width)}")
        with np.errstate(over="ignore"):
            half_NE = np.ascontiguousarray(vectors_NE, dtype=np.float16)
        bad = np.flatnonzero(~np.isfinite(half_NE).all(axis=1))
        if len(bad):
            raise ValueError(
                f"{len(bad)} of {len(half_NE)} vectors hold NaN or values beyond float16 (first: {bad[0]}); the"
                " teacher is broken or its dtype too narrow: try `dtype: float32`"
            )
        if not len(keys_N2):
            return
        data = _shard_bytes(keys_N2, half_NE)
        path = self.folder / SHARDS / f"{len(keys_N2)}-{_digest(data)}.arrow"
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(path.parent)
        self._add(_map(path))

    def _add_file(self, path: Path, verify: bool) -> None:
        try:
            intact = not verify or _digest(path.read_bytes()) == path.stem.split("-")[-1]
            table = _map(path) if intact else None
        except (OSError, pa.ArrowInvalid):
            table = None
        if table is None or table.num_rows != int(path.stem.split("-")[0]):
            damaged = self.folder / DAMAGED / f"{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}"
            damaged.parent.mkdir(exist_ok=True)
            path.rename(damaged)
            self.set_aside.append(damaged.name)
        else:
            self._add(table)

    def _add(self, table: pa.Table) -> None:
        self._keys.append(np.column_stack([table["key_hi"].to_numpy(), table["key_lo"].to_numpy()]))
        vectors = table["vector"].combine_chunks()
        self._vectors.append(vectors.values.to_numpy().reshape(-1, self.width))
        self._index = None

    def _indexed(self) -> "_Index":
        if self._index is None:
            self._index = _Index.of(self._keys)
        return self._index


class _Index(NamedTuple):
    """All keys, sorted, each once: 24 bytes a key."""

    high: np.ndarray
    low: np.ndarray
    position: np.ndarray
    """int64: the key's row among all rows of all shards."""
    starts: np.ndarray
    """int64 [shards + 1]: the position of each shard's first row."""

    @classmethod
    def of(cls, shards: list[np.ndarray]) -> Self:
        keys = np.concatenate([np.zeros((0, 2), np.uint64), *shards])
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        keys = keys[order]
        first = np.ones(len(keys), dtype=bool)
        first[1:] = (keys[1:] != keys[:-1]).any(axis=1)
        starts = np.cumsum([0, *(len(shard) for shard in shards)])
        return cls(keys[first, 0].copy(), keys[first, 1].copy(), order[first], starts)


def _shard_bytes(keys_N2: np.ndarray, half_NE: np.ndarray) -> bytes:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(half_NE.reshape(-1)), half_NE.shape[1])
    columns = [pa.array(keys_N2[:, 0]), pa.array(keys_N2[:, 1]), vectors]
    batch = pa.record_batch(columns, names=["key_hi", "key_lo", "vector"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def _map(path: Path) -> pa.Table:
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()

"""The store of teacher vectors: content-addressed shards that any number of writers add to, read without a copy.

    manifest.json                     the teacher's identity, its fingerprint, the width
    shards/ROWS-DIGEST.arrow          keys and vectors (`data_prep.shards`); DIGEST is of the file's bytes
    checked.json                      size and time of the shards whose bytes had their digest; others are read again
    reduction.safetensors             the map to fewer numbers (`data_prep.reduce`), where the recipe asks for one
    damaged/                          shards whose bytes no longer have the digest in their name

A shard is written aside, fsynced and renamed to a name that holds its own checksum: it is there whole or not at all,
and two writers of the same vectors write the same file. Nothing else is shared, so there is nothing to lock.

Shapes: N keys, E width of the stored vectors.
"""

import errno
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from data_prep.shards import SUFFIX, Shard, Stored, intact, rows_of, shard_bytes, write_shard
from embedding.files import MANIFEST, differences, read_json, read_manifest, stamp, write_json, write_manifest

SHARDS, DAMAGED, CHECKED = "shards", "damaged", "checked.json"
LOOKUP_KEYS = 1 << 20
"""Keys looked up at a time: bounds the memory of a lookup."""
MACHINE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM)
"""Errors of a machine that has no more of something, or forbids it: no sign of damage."""
ABANDONED_SECONDS = 3_600.0
"""A file that a writer had aside for so long belongs to nobody: writing a shard takes seconds."""


def shard_files(store: Path) -> list[Path]:
    """The finished shards of a store, by name."""
    return sorted((store / SHARDS).glob(f"[!.]*{SUFFIX}"))


class VectorStore:
    """Vectors by content key. Positions are rows of this opened store: they change when it is opened again."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], width: int) -> None:
        self.folder = folder
        self.identity = dict(identity)
        self.width = width
        self.stored: Stored = stored_as(identity)
        self.set_aside: list[str] = []
        """Damaged shards found on opening, as they are called in `damaged/`; their vectors count as missing."""
        self._shards: list[Shard] = []
        self._names: set[str] = set()
        self._starts = np.zeros(1, dtype=np.int64)
        """The position of each shard's first row, and of the end: [shards + 1]."""
        self._indexes: list[_Index] = []
        """Of consecutive shards, the first ones the largest: to sort all keys again for every shard that comes would
        take longer than to embed one, so indexes are merged only with those of their own size."""
        self._lock = threading.Lock()
        """One thread may append while another looks up."""

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any], width: int, *, verify: bool = True) -> Self:
        """Open the store of one teacher, or begin it.

        Args:
            identity: every fact that determines a vector, as JSON values.
            verify: check the bytes of every shard that is new or changed since it was last checked; a damaged one is
                set aside.

        Raises:
            ValueError: the folder is the store of another teacher or width; names each field that differs.
        """
        manifest = read_manifest(folder)
        if manifest is None:
            if folder.is_dir() and any(folder.glob(f"{SHARDS}/*{SUFFIX}")):
                raise ValueError(f"{folder}: has shards but no {MANIFEST}, so nobody knows their teacher; delete it")
            (folder / SHARDS).mkdir(parents=True, exist_ok=True)
            write_manifest(folder, identity, width=width)
            manifest = read_manifest(folder)
            assert manifest is not None
        changed = differences({**identity, "width": width}, {**manifest["made_from"], "width": manifest["width"]})
        if changed:
            raise ValueError(f"{folder}: the store of another teacher: {'; '.join(changed)}; use another folder")
        store = cls(folder, identity, width)
        store._load(verify)
        return store

    @classmethod
    def existing(cls, folder: Path, *, verify: bool = True) -> Self:
        """Open a store that is there, whosever it is.

        Raises:
            ValueError: there is no store at `folder`.
        """
        manifest = read_manifest(folder)
        if manifest is None or not {"made_from", "width"} <= set(manifest):
            raise ValueError(f"{folder}: no store of vectors (no {MANIFEST} with a teacher and a width)")
        return cls.open(folder, manifest["made_from"], manifest["width"], verify=verify)

    def __len__(self) -> int:
        """Vectors that can be read; a key that two writers both computed counts once."""
        indexes = self._indexed()
        repeated = (int((_found(indexes[:i], index.keys()) >= 0).sum()) for i, index in enumerate(indexes) if i)
        return sum(len(index.high) for index in indexes) - sum(repeated)

    @property
    def index_bytes(self) -> int:
        """Memory of the index of keys: 16 bytes a vector."""
        return sum(index.high.nbytes + index.position.nbytes for index in self._indexed())

    @property
    def vector_bytes(self) -> int:
        """Bytes of one vector with its key in a shard."""
        return 16 + (self.width + 4 if self.stored == "int8" else 2 * self.width)

    def refresh(self) -> int:
        """Take in the shards that other writers have finished since; returns how many. Their bytes are not checked
        again before the store is opened the next time."""
        before = len(self._shards)
        for path in shard_files(self.folder):
            if path.name not in self._names:
                self._take(path, check=False)
        return len(self._shards) - before

    def missing(self, keys_N2: np.ndarray) -> np.ndarray:
        """Which keys have no vector yet: bool [N]."""
        return self.locate(keys_N2) < 0

    def locate(self, keys_N2: np.ndarray) -> np.ndarray:
        """The position of each key, for `read`: int64 [N]; -1 where it is missing."""
        positions_N = np.empty(len(keys_N2), dtype=np.int64)
        for start in range(0, len(keys_N2), LOOKUP_KEYS):
            positions_N[start : start + LOOKUP_KEYS] = self._locate(keys_N2[start : start + LOOKUP_KEYS])
        return positions_N

    def read(self, positions_N: np.ndarray) -> np.ndarray:
        """The vectors at positions that `locate` gave: float32 [N, E]."""
        starts = self._starts
        assert len(positions_N) == 0 or (positions_N.min() >= 0 and positions_N.max() < starts[-1])
        out_NE = np.empty((len(positions_N), self.width), dtype=np.float32)
        for shard, mine, rows in _by_shard(positions_N, starts):
            out_NE[mine] = self._shards[shard].read(rows)
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
            OSError: the disk is full or gone; nothing is left of the shard then.
        """
        if vectors_NE.shape != (len(keys_N2), self.width):
            raise ValueError(f"vectors of shape {vectors_NE.shape}: expected {(len(keys_N2), self.width)}")
        if not len(keys_N2):
            return
        data = shard_bytes(keys_N2, vectors_NE, self.stored)
        path = write_shard(self.folder / SHARDS, len(keys_N2), data)
        self._add(path.name, Shard.map(path))

    def shards(self) -> Iterator[Shard]:
        """The shards, in the order of positions."""
        yield from self._shards

    def abandoned(self) -> list[Path]:
        """Unfinished files that a killed writer left."""
        old = time.time() - ABANDONED_SECONDS
        return [path for path in (self.folder / SHARDS).glob(f".*{SUFFIX}.*") if path.stat().st_mtime < old]

    # ---------------------------------------------------------------------------------------------------- the shards

    def _load(self, verify: bool) -> None:
        record = self.folder / CHECKED
        before = dict(read_json(record)) if record.is_file() else {}
        now: dict[str, list[int]] = {}
        for path in shard_files(self.folder):
            try:
                found = stamp(path)
            except FileNotFoundError:
                continue  # another process found it damaged meanwhile, and set it aside
            if self._take(path, check=verify and before.get(path.name) != found) and verify:
                now[path.name] = found
        # A store that several share may be read-only; then it is simply checked again.
        if verify and now != before and os.access(self.folder, os.W_OK):
            write_json(record, now)

    def _take(self, path: Path, check: bool) -> bool:
        """Add a file, or set it aside where it is damaged; returns whether it is sound."""
        try:
            shard = Shard.map(path) if not check or intact(path) else None
        except (KeyError, pa.ArrowInvalid):
            shard = None
        except OSError as error:
            if error.errno in MACHINE:  # nothing is wrong with the shard
                said = (
                    f"{os.strerror(error.errno)}; {len(self._shards):,} shards are open, each a map (vm.max_map_count)"
                )
                raise OSError(error.errno, said, str(path)) from error
            shard = None
        if shard is not None and len(shard.high_N) == rows_of(path) and shard.vectors_NE.shape[1] == self.width:
            self._add(path.name, shard)
            return True
        damaged = self.folder / DAMAGED / f"{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}"
        damaged.parent.mkdir(exist_ok=True)
        try:
            path.rename(damaged)
        except FileNotFoundError:
            return False  # another process has found it too, and set it aside
        self.set_aside.append(damaged.name)
        return False

    def _add(self, name: str, shard: Shard) -> None:
        with self._lock:
            if name not in self._names:
                self._names.add(name)
                self._shards.append(shard)
                self._starts = np.append(self._starts, self._starts[-1] + len(shard.high_N))

    # ----------------------------------------------------------------------------------------------------- the index

    def _indexed(self) -> "list[_Index]":
        with self._lock:
            done = sum(len(index.shards) for index in self._indexes)
            if done < len(self._shards):
                new = _Index.of(self._shards[done:], self._starts[done:])
                while self._indexes and 2 * len(new.high) >= len(self._indexes[-1].high):
                    done -= len(self._indexes.pop().shards)
                    new = _Index.of(self._shards[done:], self._starts[done:])
                self._indexes.append(new)
            return list(self._indexes)

    def _locate(self, keys_N2: np.ndarray) -> np.ndarray:
        return _found(self._indexed(), keys_N2)


class _Index(NamedTuple):
    """The keys of some shards, sorted by their high half, each key once. 16 bytes a key; the low half is read from the
    shards."""

    shards: list[Shard]
    starts: np.ndarray
    """int64 [shards + 1]: the position of each shard's first row."""
    high: np.ndarray
    position: np.ndarray
    """int64: the key's row among all rows of all shards of the store."""

    @classmethod
    def of(cls, shards: list[Shard], starts: np.ndarray) -> Self:
        high = np.concatenate([np.zeros(0, np.uint64), *(shard.high_N for shard in shards)])
        order = np.argsort(high, kind="stable")
        high, order = high[order], order + starts[0]
        same = high[1:] == high[:-1]
        if same.any():  # a key that two writers computed (or, hardly ever, two keys with one high half)
            shared = np.flatnonzero(np.append(same, False) | np.append(False, same))
            low = _lows(shards, order[shared], starts)
            within = np.lexsort((low, high[shared]))
            order[shared], low = order[shared][within], low[within]
            keep = np.ones(len(high), dtype=bool)
            keep[shared[1:]] = (low[1:] != low[:-1]) | (high[shared[1:]] != high[shared[:-1]])
            high, order = high[keep], order[keep]
        return cls(shards, starts, high, order)

    def keys(self) -> np.ndarray:
        """uint64 [N, 2]."""
        return np.column_stack([self.high, _lows(self.shards, self.position, self.starts)])

    def locate(self, keys_N2: np.ndarray) -> np.ndarray:
        """The positions of keys: int64 [N]; -1 where it has them not."""
        found_N = np.full(len(keys_N2), -1, dtype=np.int64)
        high_N, low_N = np.ascontiguousarray(keys_N2[:, 0]), keys_N2[:, 1]
        place_N = np.searchsorted(self.high, high_N)
        open_N = np.arange(len(keys_N2))
        # Sorted by the high half alone: two keys that share it are as good as never seen, so this loop runs once.
        while len(open_N):
            open_N = open_N[place_N[open_N] < len(self.high)]
            open_N = open_N[self.high[place_N[open_N]] == high_N[open_N]]
            positions = self.position[place_N[open_N]]
            hit = _lows(self.shards, positions, self.starts) == low_N[open_N]
            found_N[open_N[hit]] = positions[hit]
            open_N = open_N[~hit]
            place_N[open_N] += 1
        return found_N


def _found(indexes: Sequence[_Index], keys_N2: np.ndarray) -> np.ndarray:
    """The positions of keys: int64 [N]; -1 where no index has them."""
    found_N = np.full(len(keys_N2), -1, dtype=np.int64)
    for index in indexes:
        left_N = np.flatnonzero(found_N < 0)
        found_N[left_N] = index.locate(keys_N2[left_N])
    return found_N


def _lows(shards: list[Shard], positions_N: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The low halves of the keys at positions: uint64 [N]."""
    out_N = np.empty(len(positions_N), dtype=np.uint64)
    for shard, mine, rows in _by_shard(positions_N, starts):
        out_N[mine] = shards[shard].low_N[rows]
    return out_N


def _by_shard(positions_N: np.ndarray, starts: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(shard, which of the positions lie in it, their rows in it), the rows ascending."""
    order = np.argsort(positions_N, kind="stable")
    ordered = positions_N[order]
    shards = np.searchsorted(starts, ordered, side="right") - 1
    begins = np.flatnonzero(np.diff(shards, prepend=-1))
    for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), len(ordered)], strict=False):
        shard = int(shards[begin])
        yield shard, order[begin:end], ordered[begin:end] - starts[shard]


def first_rows(keys_N2: np.ndarray) -> np.ndarray:
    """The first row of each distinct key, ascending: int64 [distinct]."""
    order = np.argsort(keys_N2[:, 0], kind="stable")
    high = keys_N2[order, 0]
    same = np.flatnonzero(high[1:] == high[:-1])
    first = np.ones(len(keys_N2), dtype=bool)
    if len(same):
        shared = np.union1d(same, same + 1)
        rows = order[shared]
        within = np.lexsort((rows, keys_N2[rows, 1], keys_N2[rows, 0]))
        rows = rows[within]
        first[rows[1:][(keys_N2[rows[1:]] == keys_N2[rows[:-1]]).all(axis=1)]] = False
    return np.flatnonzero(first)


def stored_as(identity: Mapping[str, Any]) -> Stored:
    """How a store of this identity keeps its numbers."""
    stored: Stored = identity.get("store", {}).get("dtype", "float16")
    return stored

"""Looking after stores of vectors: what is in one, whether its bytes are sound, and mending it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.reduce import FILE, Reduction
from data_prep.shards import SUFFIX, intact, rows_of
from data_prep.vectors import CHECKED, DAMAGED, SHARDS, VectorStore, shard_files
from embedding.files import read_manifest


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds."""

    folder: Path
    identity: dict[str, Any]
    width: int
    dtype: str
    vectors: int
    shards: int
    size: int
    """Bytes of the shards."""
    damaged: int
    """Shards that were set aside."""
    abandoned: int
    """Files that killed writers left."""
    reduction: Reduction | None


class Verified(NamedTuple):
    """The result of reading every byte of a store."""

    shards: int
    damaged: list[Path]
    """Shards whose bytes do not have the checksum of their name."""
    vectors_lost: int
    """Rows that the names of the damaged shards say."""


class Repaired(NamedTuple):
    """What a repair did."""

    set_aside: list[str]
    restored: list[str]
    """Shards that lay among the damaged ones and are sound: a disk or network that failed for a while."""
    unread: int
    """Those among them that could not be read."""
    removed: int
    """Files that killed writers had left."""
    vectors: int
    """Vectors that can be read now."""


def find_stores(folder: Path) -> list[Path]:
    """The store at `folder`, or all stores right below it.

    Raises:
        ValueError: there is none.
    """
    found = [path for path in [folder, *sorted(folder.glob("*"))] if _is_store(path)]
    if not found:
        raise ValueError(f"{folder}: no store of vectors here or right below; runs keep theirs in runs/cache/vectors")
    return found[:1] if found[0] == folder else found


def _is_store(folder: Path) -> bool:
    return (folder / SHARDS).is_dir() and "width" in (read_manifest(folder) or {})


def rows_stored(folder: Path) -> int:
    """Rows in the shards of a store, as their names say; 0 where there is none."""
    return sum(rows_of(path) for path in shard_files(folder))


def describe(folder: Path) -> StoreInfo:
    """What the store at `folder` holds, without reading its vectors.

    Raises:
        ValueError: there is no store.
    """
    store = VectorStore.existing(folder, verify=False)
    files = shard_files(folder)
    return StoreInfo(
        folder=folder,
        identity=store.identity,
        width=store.width,
        dtype=store.stored,
        vectors=len(store),
        shards=len(files),
        size=sum(path.stat().st_size for path in files),
        damaged=len(list((folder / DAMAGED).glob(f"*{SUFFIX}"))),
        abandoned=len(store.abandoned()),
        reduction=Reduction.load(folder) if (folder / FILE).is_file() else None,
    )


def verify(folder: Path) -> Verified:
    """Read every byte of a store, whatever was checked before; nothing is changed.

    Raises:
        ValueError: there is no store.
    """
    if not _is_store(folder):
        raise ValueError(f"{folder}: no store of vectors")
    files = shard_files(folder)
    damaged = [path for path in files if not intact(path)]
    return Verified(len(files), damaged, sum(rows_of(path) for path in damaged))


def repair(folder: Path) -> Repaired:
    """Check every byte; set damaged shards aside, put back those that are sound after all, remove what killed writers
    left.

    Raises:
        ValueError: there is no store.
    """
    if not _is_store(folder):
        raise ValueError(f"{folder}: no store of vectors")
    restored, unread = [], 0
    for path in sorted((folder / DAMAGED).glob(f"*{SUFFIX}")):
        name, _, _ = path.stem.rpartition("-")  # called as before, with a random part at the end
        try:
            sound = intact(path, name)
        except OSError:
            unread += 1  # it cannot be read yet, or never
            continue
        if sound:
            path.rename(folder / SHARDS / f"{name}{SUFFIX}")
            restored.append(f"{name}{SUFFIX}")
    (folder / CHECKED).unlink(missing_ok=True)
    store = VectorStore.existing(folder)
    abandoned = store.abandoned()
    for path in abandoned:
        path.unlink(missing_ok=True)
    return Repaired(store.set_aside, restored, unread, len(abandoned), len(store))

"""Files that are whole or absent: atomic writes, manifests with the fingerprint of what made them, content keys."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import string
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

MANIFEST = "manifest.json"
ABANDONED = 7 * 24 * 3600
"""Seconds without a change after which nobody is thought to write a temporary folder any more."""


def fingerprint(value: Any) -> str:
    """16 hex digits of the SHA-256 of `value` as canonical JSON (sorted keys; paths as text, configs as mappings)."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:16]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot fingerprint a {type(value).__name__}")


def expanded(path: str) -> str:
    """A path as people write it, its `~` and `$VARIABLE` filled in.

    Raises:
        ValueError: a variable that is not set, or a `$` that begins no name.
    """
    try:
        return string.Template(os.path.expanduser(path)).substitute(os.environ)  # noqa: PTH111 - maybe a pattern
    except KeyError as error:
        raise ValueError(f"the environment variable {error.args[0]} is not set; export it") from None
    except ValueError:
        raise ValueError("a `$` that begins no variable name; write `$$` for the character") from None


def write_text(path: Path, text: str) -> None:
    """Write `text` aside, fsync, and rename onto `path`: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")
    sync_folder(path.parent)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write aside; when the block ends it is fsynced and renamed onto `path`, and gone where the block fails.
    Durable once its folder is synced too (`sync_folder`)."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON; configs and paths become mappings and text."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: the file is not valid JSON.
        FileNotFoundError: there is no such file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); delete it to have it made again") from None


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a training's log (metrics.jsonl), by step: those of a stage that was taken over were noted before
    those that were done again. A last line without its end is being written, or a kill cut it short: it is left out.

    Raises:
        ValueError: a line is not valid JSON.
        FileNotFoundError: there is no such file.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if line.endswith("\n"):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number} is not valid JSON ({error})") from None
    return sorted(found, key=lambda line: int(line["step"]))


@contextlib.contextmanager
def new_folder(path: Path, made_from: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """A temporary folder beside `path` that, when the block ends well, is fsynced and renamed onto `path`.

    An older folder at `path` is replaced only then. When the block raises, the temporary folder is removed; that of a
    process that was killed is removed by the next one here, a week later. Any number of processes may do this at the
    same time.

    Args:
        made_from: what the block's manifest says. A folder that another process has made from the same meanwhile stays,
            since it may be in use by now, and the one of this block is dropped. None: the last one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    aside.mkdir()
    try:
        yield aside
        for file in sorted(aside.rglob("*")):
            sync_folder(file) if file.is_dir() else _sync_file(file)
        sync_folder(aside)
        _put(aside, path, made_from)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _remove_abandoned(path: Path) -> None:
    """Remove temporary folders of `path` in which nothing was written for ABANDONED seconds."""
    for left in path.parent.glob(f".{escape(path.name)}.{'[0-9a-f]' * 8}*"):
        with contextlib.suppress(OSError):  # its writer ends just now
            newest = max(part.lstat().st_mtime for part in (left, *left.rglob("*")))
            if time.time() - newest > ABANDONED:
                shutil.rmtree(left)


def _put(aside: Path, path: Path, made_from: Mapping[str, Any] | None) -> None:
    """Rename `aside` onto `path`, out of the way of what lies there unless that is to stay; see `new_folder`."""
    replaced = []
    while True:
        try:
            aside.rename(path)  # asked of the file system, not before: of two writers that see no folder one is later
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if made_from is not None and made_before(path, made_from) is not None:
            break
        old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
        with contextlib.suppress(FileNotFoundError):  # another writer has taken it away
            path.rename(old)
            replaced.append(old)
    for old in replaced:
        shutil.rmtree(old)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make a folder's entries (creations, renames) durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: Path) -> list[int]:
    """[bytes, nanoseconds of the last change] of a file: what tells that it changed where reading it takes too long."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def stamps(folder: Path) -> dict[str, list[int]]:
    """The `stamp` of every file under a folder, by its path within."""
    return {str(path.relative_to(folder)): stamp(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def write_manifest(folder: Path, made_from: Mapping[str, Any], **facts: Any) -> None:
    """Write `folder/manifest.json`: what made the folder, its fingerprint, and any facts about the result."""
    write_json(folder / MANIFEST, {"fingerprint": fingerprint(made_from), "made_from": dict(made_from), **facts})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None where there is none."""
    path = folder / MANIFEST
    return dict(read_json(path)) if path.is_file() else None


def made_before(folder: Path, made_from: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of a folder that was made from just this; else None."""
    manifest = read_manifest(folder)
    return manifest if manifest is not None and manifest["fingerprint"] == fingerprint(made_from) else None


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """One line for each value that differs, its place dotted: ``stages.0.learning_rate: expected 0.1, found 0.2``."""
    return list(_differences("", expected, found))


def _differences(place: str, want: Any, have: Any) -> Iterator[str]:
    below = f"{place}." if place else ""
    if isinstance(want, Mapping) and isinstance(have, Mapping):
        for key in sorted({*want, *have}):
            yield from _differences(f"{below}{key}", want.get(key), have.get(key))
    elif isinstance(want, list | tuple) and isinstance(have, list | tuple) and len(want) == len(have):
        for position, (one, other) in enumerate(zip(want, have, strict=True)):
            yield from _differences(f"{below}{position}", one, other)
    elif _canonical(want) != _canonical(have):
        yield f"{place}: expected {_canonical(want)}, found {_canonical(have)}"


def content_key(*parts: str) -> bytes:
    """BLAKE2b-128 (RFC 7693) of the parts, each preceded by its length, so that no two splits share a key."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


def content_keys(prompts: Iterable[str], texts: Iterable[str]) -> np.ndarray:
    """The content keys of (prompt, text) pairs as uint64 [N, 2]: equal rows are equal pairs."""
    data = b"".join(content_key(prompt, text) for prompt, text in zip(prompts, texts, strict=True))
    return np.frombuffer(data, dtype="<u8").reshape(-1, 2)


def in_bytes(size: float) -> str:
    """A number of bytes in the unit that suits it, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"

"""Stores of vectors to and from another place: a folder (a shared disk, a mounted bucket) or a repository of the hub.

Shards are named by their checksum, so only those that the other side lacks are sent, and each is checked on arrival.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from data_prep.reduce import FILE
from data_prep.shards import SUFFIX, intact, rows_of
from data_prep.vectors import SHARDS, VectorStore, shard_files
from embedding.files import MANIFEST, differences, read_json, read_manifest, sha256_file, sync_folder, whole_file
from embedding.hub import HUB_ERRORS

HUB = "hf://"
"""What a place on the hub begins with: hf://USER/NAME, a repository of the data set kind."""
KEPT = [MANIFEST, FILE, f"{SHARDS}/*{SUFFIX}"]


class Copied(NamedTuple):
    """What a copy did."""

    place: str
    """The store on the other side."""
    shards: int
    vectors: int
    """Rows in the shards that were sent."""
    there: int
    """Shards that were there already."""
    damaged: list[str]
    """Shards that were left out, or set aside after their arrival, since their bytes are not what their name says."""


def push(store: Path, place: str, *, private: bool = True) -> Copied:
    """Send a store to `hf://USER/NAME`, or to its own folder below a folder.

    Raises:
        ValueError: no store; the store of another teacher or reduction is there; or the hub refuses.
        OSError: it cannot be written there. What has arrived stays.
    """
    manifest = _manifest(store)
    if not place.startswith(HUB):
        return copy_store(store, Path(place) / manifest["fingerprint"])
    repository, api = place.removeprefix(HUB), HfApi()
    sound, damaged = _sound(store)
    try:
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        there = set(api.list_repo_files(repository, repo_type="dataset"))
        if MANIFEST in there:
            _same_store(place, manifest, read_json(_file_of_hub(api, repository, MANIFEST)))
        if FILE in there:
            _same_reduction(place, store, _file_of_hub(api, repository, FILE))
        new = [path for path in sound if f"{SHARDS}/{path.name}" not in there]
        api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=store,
            allow_patterns=[MANIFEST, FILE, *(f"{SHARDS}/{path.name}" for path in new)],
            commit_message=f"{len(new)} shards of vectors",
        )
    except HUB_ERRORS as error:
        raise _hub_error(place, error) from None
    return Copied(place, len(new), sum(map(rows_of, new)), len(sound) - len(new), damaged)


def pull(place: str, stores: Path) -> Copied:
    """Fetch a store from `hf://USER/NAME`, or from its folder, into its own folder below `stores`.

    Raises:
        ValueError: no store there, another one or another reduction in its place here, or the hub does not give it.
        OSError: it cannot be written here. What has arrived stays.
    """
    if not place.startswith(HUB):
        source = Path(place)
        return copy_store(source, stores / _manifest(source)["fingerprint"])
    repository, api = place.removeprefix(HUB), HfApi()
    try:
        manifest = read_json(_file_of_hub(api, repository, MANIFEST))
        target = stores / str(manifest["fingerprint"])
        _same_store(str(target), manifest, read_manifest(target))
        if (target / FILE).is_file() and FILE in api.list_repo_files(repository, repo_type="dataset"):
            _same_reduction(str(target), target, _file_of_hub(api, repository, FILE))
        before = {path.name for path in shard_files(target)}
        api.snapshot_download(repository, repo_type="dataset", local_dir=target, allow_patterns=KEPT)
    except HUB_ERRORS as error:
        raise _hub_error(place, error) from None
    shutil.rmtree(target / ".cache", ignore_errors=True)
    store = VectorStore.existing(target)
    new = [path for path in shard_files(target) if path.name not in before]
    return Copied(str(target), len(new), sum(map(rows_of, new)), len(before), store.set_aside)


def copy_store(source: Path, target: Path) -> Copied:
    """Copy what `target` lacks of a store; each shard is checked before and appears whole.

    Raises:
        ValueError: `source` is no store, or `target` is the store of another teacher or reduction.
        OSError: `target` cannot be written.
    """
    manifest = _manifest(source)
    if source.resolve() == target.resolve():
        raise ValueError(f"{target}: source and target are the same folder")
    _same_store(str(target), manifest, read_manifest(target))
    if (target / FILE).is_file():
        _same_reduction(str(target), source, target / FILE)
    (target / SHARDS).mkdir(parents=True, exist_ok=True)
    for name in (FILE, MANIFEST):
        if (source / name).is_file() and not (target / name).is_file():
            with whole_file(target / name) as aside:
                shutil.copyfile(source / name, aside)
    sound, damaged = _sound(source)
    new = [path for path in sound if not (target / SHARDS / path.name).is_file()]
    for path in new:
        with whole_file(target / SHARDS / path.name) as aside:
            shutil.copyfile(path, aside)
    sync_folder(target / SHARDS)
    return Copied(str(target), len(new), sum(map(rows_of, new)), len(sound) - len(new), damaged)


def _manifest(store: Path) -> dict[str, Any]:
    manifest = read_manifest(store)
    if manifest is None or "width" not in manifest or not (store / SHARDS).is_dir():
        raise ValueError(f"{store}: no store of vectors (expected {MANIFEST} and {SHARDS}/)")
    return manifest


def _same_store(place: str, ours: dict[str, Any], theirs: dict[str, Any] | None) -> None:
    if theirs is None:
        return
    changed = differences(ours, theirs)
    if changed:
        raise ValueError(f"{place}: another store is there: {'; '.join(changed)}; choose another place")


def _same_reduction(place: str, store: Path, other: Path) -> None:
    """The axes are fitted to the texts that came first, which a store's fingerprint does not tell: two stores with one
    fingerprint may hold numbers that mean different things."""
    if (store / FILE).is_file() and sha256_file(store / FILE) != sha256_file(other):
        raise ValueError(
            f"{place}: its {FILE} is another one, fitted to other texts, so its numbers mean something else; choose "
            "another place, or pull that store before the first `eyas embed`"
        )


def _file_of_hub(api: HfApi, repository: str, name: str) -> Path:
    return Path(api.hf_hub_download(repository, name, repo_type="dataset"))


def _sound(store: Path) -> tuple[list[Path], list[str]]:
    """(sound shards, names of damaged ones)."""
    files = shard_files(store)
    damaged = {path.name for path in files if not intact(path)}
    return [path for path in files if path.name not in damaged], sorted(damaged)


def _hub_error(place: str, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:
        return error  # the disk
    gone = isinstance(error, RepositoryNotFoundError)
    advice = "no such repository, or no right to it: see `hf auth login`" if gone else "see `hf auth login`"
    return ValueError(f"{place}: the hub refuses or cannot be reached ({str(error).splitlines()[0]}); {advice}")

import errno
import multiprocessing
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

from data_prep.shards import Shard
from data_prep.vectors import VectorStore
from embedding.files import content_keys

WIDTH = 16
TEACHER = {"model": "a", "template": {"query": "", "document": ""}, "max_tokens": 128}


def some_keys(names: range) -> np.ndarray:
    return content_keys([""] * len(names), [f"text {name}" for name in names])


def some_vectors(names: range) -> np.ndarray:
    rows = [np.random.default_rng(name).standard_normal(WIDTH) for name in names]
    return np.array(rows, dtype=np.float32).reshape(-1, WIDTH)


def add(folder: Path, names: range) -> None:
    VectorStore.open(folder, TEACHER, WIDTH).append(some_keys(names), some_vectors(names))


def test_what_is_stored_is_read_back_by_key(tmp_path: Path) -> None:
    for start in range(0, 50, 10):
        add(tmp_path / "store", range(start, start + 10))
    store = VectorStore.open(tmp_path / "store", TEACHER, WIDTH)
    assert len(store) == 50
    wanted = np.random.default_rng(0).permutation(60)
    keys = some_keys(range(60))[wanted]
    assert (store.missing(keys) == (wanted >= 50)).all()
    known = keys[wanted < 50]
    expected = some_vectors(range(60))[wanted[wanted < 50]].astype(np.float16)
    assert (store.rows(known) == expected).all()
    assert store.rows(known).dtype == np.float32
    with pytest.raises(ValueError, match="10 of 60 texts have no vector; run the embed step"):
        store.rows(keys)


def test_an_empty_store(tmp_path: Path) -> None:
    store = VectorStore.open(tmp_path / "store", TEACHER, WIDTH)
    assert (len(store), store.missing(some_keys(range(3))).tolist()) == (0, [True] * 3)
    assert store.rows(some_keys(range(0))).shape == (0, WIDTH)
    store.append(some_keys(range(0)), some_vectors(range(0)))
    assert not list((tmp_path / "store" / "shards").iterdir())


def test_keys_that_share_their_high_half(tmp_path: Path) -> None:
    keys = np.array([[7, 3], [7, 1], [7, 2], [8, 2], [6, 2]], dtype=np.uint64)
    store = VectorStore.open(tmp_path / "store", TEACHER, WIDTH)
    store.append(keys, some_vectors(range(5)))
    asked = np.array([[7, 2], [7, 4], [8, 1], [7, 1], [6, 2], [2**64 - 1, 0]], dtype=np.uint64)
    assert store.locate(asked).tolist() == [2, -1, -1, 1, 4, -1]


def test_appended_vectors_are_there_at_once(tmp_path: Path) -> None:
    store = VectorStore.open(tmp_path / "store", TEACHER, WIDTH)
    for start in (0, 10):
        store.append(some_keys(range(start, start + 10)), some_vectors(range(start, start + 10)))
        assert not store.missing(some_keys(range(start + 10))).any()


def test_shards_are_ordinary_arrow_files(tmp_path: Path) -> None:
    add(tmp_path / "store", range(5))
    shard = next((tmp_path / "store" / "shards").iterdir())
    rows = datasets.Dataset.from_file(str(shard))
    assert rows.column_names == ["key_hi", "key_lo", "vector"]
    assert rows[2]["key_lo"] == int(some_keys(range(5))[2, 1])
    assert rows[2]["vector"] == some_vectors(range(5))[2].astype(np.float16).tolist()


def test_many_writers_of_the_same_and_of_different_texts(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    tasks = [(folder, range(start, start + 20)) for start in (0, 10, 20, 0, 20)]
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.starmap(add, tasks)
    store = VectorStore.open(folder, TEACHER, WIDTH)
    assert len(store) == 40
    assert (store.rows(some_keys(range(40))) == some_vectors(range(40)).astype(np.float16)).all()
    assert len(list((folder / "shards").iterdir())) == 3


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_shard_is_set_aside_and_the_rest_stays(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "store"
    for start in (0, 10, 20):
        add(folder, range(start, start + 10))
    victim = sorted((folder / "shards").iterdir())[1]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes({"truncate": data[: len(data) // 2], "flip": data, "empty": b""}[damage])
    store = VectorStore.open(folder, TEACHER, WIDTH)
    assert len(store) == 20
    assert len(store.set_aside) == 1
    assert [path.name for path in (folder / "damaged").iterdir()] == store.set_aside
    lost = range(30)[np.flatnonzero(store.missing(some_keys(range(30))))[0] :][:10]
    store.append(some_keys(lost), some_vectors(lost))
    again = VectorStore.open(folder, TEACHER, WIDTH)
    assert not again.set_aside
    assert (again.rows(some_keys(range(30))) == some_vectors(range(30)).astype(np.float16)).all()


def test_a_shard_that_was_not_finished_is_not_seen(tmp_path: Path) -> None:
    add(tmp_path / "store", range(5))
    shard = next((tmp_path / "store" / "shards").iterdir())
    shard.with_name(f".{shard.name}.0123abcd").write_bytes(shard.read_bytes()[:50])
    store = VectorStore.open(tmp_path / "store", TEACHER, WIDTH)
    assert (len(store), store.set_aside) == (5, [])


def test_the_store_of_another_teacher_is_refused(tmp_path: Path) -> None:
    add(tmp_path / "store", range(5))
    other = {**TEACHER, "template": {"query": "query: ", "document": ""}}
    with pytest.raises(ValueError, match=r'another teacher: template\.query: expected "query: ", found ""'):
        VectorStore.open(tmp_path / "store", other, WIDTH)
    with pytest.raises(ValueError, match="width: expected 8, found 16"):
        VectorStore.open(tmp_path / "store", TEACHER, 8)
    (tmp_path / "store" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="nobody knows their teacher"):
        VectorStore.open(tmp_path / "store", TEACHER, WIDTH)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_vectors_that_float16_cannot_hold_are_refused(tmp_path: Path, value: float) -> None:
    store = VectorStore.open(tmp_path / "store", TEACHER, WIDTH)
    vectors = some_vectors(range(5))
    vectors[3, 2] = value
    with pytest.raises(ValueError, match=r"1 of 5 vectors hold NaN .*\(first: 3\)"):
        store.append(some_keys(range(5)), vectors)
    with pytest.raises(ValueError, match=r"shape \(5, 8\): expected \(5, 16\)"):
        store.append(some_keys(range(5)), vectors[:, :8])
    assert not list((tmp_path / "store" / "shards").iterdir())


def test_rows_are_views_of_the_file(tmp_path: Path) -> None:
    add(tmp_path / "store", range(5))
    store = VectorStore.open(tmp_path / "store", TEACHER, WIDTH)
    columns = [column for shard in store.shards() for column in (shard.vectors_NE, shard.high_N, shard.low_N)]
    assert columns
    assert not any(column.flags.owndata or column.flags.writeable for column in columns)


def test_opening_a_store_copies_no_vector(tmp_path: Path) -> None:
    store = VectorStore.open(tmp_path / "store", TEACHER, 512)
    keys, vectors = some_keys(range(2_000)), np.ones((2_000, 512), dtype=np.float32)
    before = pa.total_allocated_bytes()
    store.append(keys, vectors)
    again = VectorStore.open(tmp_path / "store", TEACHER, 512)
    assert again.rows(keys[:3]).tolist() == vectors[:3].tolist()
    assert pa.total_allocated_bytes() - before < vectors.nbytes // 2 // 10


def test_shards_that_come_one_by_one_are_found_as_if_they_had_come_at_once(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    store = VectorStore.open(tmp_path / "store", TEACHER, WIDTH)
    names: set[int] = set()
    for _ in range(60):
        start = int(random.integers(0, 300))
        some = range(start, start + int(random.integers(1, 40)))
        store.append(some_keys(some), some_vectors(some))
        names |= set(some)
        assert len(store) == len(names)
        asked = some_keys(range(400))
        assert (~store.missing(asked)).nonzero()[0].tolist() == sorted(names)
    sizes = [len(index.high) for index in store._indexed()]
    assert all(a > 2 * b for a, b in pairwise(sizes)), sizes
    there = range(min(names), min(names) + 1)
    assert (store.rows(some_keys(there)) == some_vectors(there).astype(np.float16)).all()
    again = VectorStore.open(tmp_path / "store", TEACHER, WIDTH)
    known = sorted(names)
    expected = np.concatenate([some_vectors(range(name, name + 1)) for name in known]).astype(np.float16)
    for opened in (store, again):
        assert (opened.rows(np.concatenate([some_keys(range(n, n + 1)) for n in known])) == expected).all()


def test_a_machine_that_can_map_no_more_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path / "store", range(5))

    def full(path: Path) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(Shard, "map", full)
    with pytest.raises(OSError, match="0 shards are open, each a map"):
        VectorStore.open(tmp_path / "store", TEACHER, WIDTH)
    monkeypatch.undo()
    assert len(VectorStore.open(tmp_path / "store", TEACHER, WIDTH)) == 5


def test_a_key_takes_16_bytes_of_memory(tmp_path: Path) -> None:
    store = VectorStore.open(tmp_path / "store", TEACHER, 2)
    keys = np.random.default_rng(0).integers(0, 2**64, (200_000, 2), dtype=np.uint64)
    for at in range(0, len(keys), 50_000):
        store.append(keys[at : at + 50_000], np.ones((50_000, 2), dtype=np.float32))
    again = VectorStore.open(tmp_path / "store", TEACHER, 2)
    assert again.index_bytes == 16 * len(keys)
    assert (again.locate(keys) >= 0).all()

import errno
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.shards import Shard, digest, intact, quantize, rows_of, shard_bytes, write_shard


def some(rows: int, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    return rng.integers(0, 2**64, (rows, 2), dtype=np.uint64), rng.standard_normal((rows, width)).astype(np.float32)


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4), min_size=1, max_size=20),
)
def test_the_error_of_int8_is_at_most_half_a_step(values: list[list[float]]) -> None:
    vectors = np.array(values, dtype=np.float32)
    codes, scale = quantize(vectors)
    assert codes.dtype == np.int8
    step = np.abs(vectors).max(axis=1, keepdims=True).astype(np.float64) / 127
    assert (np.abs(codes * scale[:, None].astype(np.float64) - vectors) <= step / 2 * 1.001 + 1e-30).all()


@pytest.mark.parametrize("stored, tolerance", [("float16", 2e-3), ("int8", 2e-2)])
def test_a_shard_is_read_back_in_any_order(tmp_path: Path, stored: str, tolerance: float) -> None:
    keys, vectors = some(50)
    path = write_shard(tmp_path, 50, shard_bytes(keys, vectors, stored))
    assert rows_of(path) == 50
    assert intact(path)
    shard = Shard.map(path)
    assert (np.column_stack([shard.high_N, shard.low_N]) == keys).all()
    rows = np.random.default_rng(0).integers(0, 50, 200)
    np.testing.assert_allclose(shard.read(rows), vectors[rows], atol=tolerance)
    assert shard.read(rows).dtype == np.float32
    table = datasets.Dataset.from_file(str(path))
    assert table.column_names == ["key_hi", "key_lo", *(["scale"] if stored == "int8" else []), "vector"]


def test_two_writers_of_the_same_vectors_write_the_same_file(tmp_path: Path) -> None:
    paths = {write_shard(tmp_path, 5, shard_bytes(*some(5), "float16")) for _ in range(2)}
    assert len(paths) == len(list(tmp_path.iterdir())) == 1
    assert digest(paths.pop().read_bytes()) in next(tmp_path.iterdir()).name


@pytest.mark.parametrize("place", [0, 100, -1])
def test_any_flipped_bit_is_seen(tmp_path: Path, place: int) -> None:
    path = write_shard(tmp_path, 5, shard_bytes(*some(5), "int8"))
    data = bytearray(path.read_bytes())
    data[place] ^= 16
    path.write_bytes(data)
    assert not intact(path)


@pytest.mark.parametrize("stored", ["float16", "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_what_float16_cannot_hold_is_refused(stored: str, value: float) -> None:
    keys, vectors = some(5)
    vectors[3, 2] = value
    with pytest.raises(ValueError, match=r"1 of 5 vectors hold NaN .*first: 3"):
        shard_bytes(keys, vectors, stored)


def test_a_full_disk_leaves_nothing_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write 5 vectors .*No space left.*run the same command again"):
        write_shard(tmp_path, 5, shard_bytes(*some(5), "float16"))
    assert not list(tmp_path.iterdir())

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import units as room
from data_prep.units import Rota, Share, cut_units, launched_share
from data_prep.vectors import VectorStore
from embedding.files import content_keys

LAUNCHERS = ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_ID",
             "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP")  # fmt: skip


@pytest.fixture(autouse=True)
def _not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "variables, share",
    [
        ({}, Share(0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, Share(3, 8)),
        ({"RANK": "3", "WORLD_SIZE": "8", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Share(3, 8)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, Share(1, 4)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "5"}, Share(3, 5)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "14",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_PROCID": "1",
                "SLURM_NTASKS": "2",
            },
            Share(5, 6),
        ),
    ],
)
def test_the_launchers_share(variables: dict[str, str], share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched_share() == share


def test_a_share_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "8")
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ValueError, match="process 8 of 8: expected a number from 0 below it"):
        launched_share()


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(0, 5_000), max_size=300), world=st.integers(1, 8))
def test_units_are_the_texts_in_order_and_bounded(sizes: list[int], world: int) -> None:
    size_N = np.array(sizes, dtype=np.int32)
    units = cut_units(size_N, world)
    assert [at for unit in units for at in range(unit.start, unit.stop)] == list(range(len(sizes)))
    assert all(unit.stop > unit.start for unit in units)
    most = sum(sizes) // (room.SMALLEST_UNITS * world) + 1
    for unit in units:
        # A unit ends with the text that reaches its size.
        assert world == 1 or int(size_N[unit].sum()) <= most + max(sizes)


def test_several_processes_get_work_of_about_equal_size() -> None:
    size_N = np.random.default_rng(0).lognormal(5, 1.5, 200_000).astype(np.int32)
    size_N[1_000] = 10_000_000  # a book among them
    units = cut_units(size_N, 8)
    work = [sum(int(size_N[unit].sum()) for unit in units[rank::8]) for rank in range(8)]
    book = int(size_N.max())
    assert max(work) - book < 1.1 * (sum(work) - book) / 8
    assert max(unit.stop - unit.start for unit in units) <= room.UNIT_TEXTS


def keys(names: range) -> np.ndarray:
    return content_keys([""] * len(names), [str(name) for name in names])


def rota(folder: Path, share: Share, count: int = 40, unit: int = 10) -> Rota:
    store = VectorStore.open(folder, {"model": "a"}, 2)
    return Rota(store, keys(range(count)), [slice(at, at + unit) for at in range(0, count, unit)], share)


def compute(folder: Path, names: range) -> None:
    VectorStore.open(folder, {"model": "a"}, 2).append(keys(names), np.ones((len(names), 2), dtype=np.float32))


def test_alone_a_process_takes_every_unit_once(tmp_path: Path) -> None:
    assert list(rota(tmp_path / "s", Share())) == [0, 1, 2, 3]


def test_what_others_finish_is_not_taken(tmp_path: Path) -> None:
    mine = iter(rota(tmp_path / "s", Share(0, 2)))
    assert [next(mine), next(mine)] == [0, 2]
    compute(tmp_path / "s", range(40))
    assert list(mine) == []


def test_the_last_units_of_others_are_taken_and_those_of_a_dead_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(room, "PATIENCE_SECONDS", 0.3)
    mine = iter(rota(tmp_path / "s", Share(0, 2)))
    assert [next(mine), next(mine)] == [0, 2]
    for names in (range(10), range(20, 30)):
        compute(tmp_path / "s", names)
    assert next(mine) == 3  # the other has two left: it will come to its last one latest
    compute(tmp_path / "s", range(30, 40))
    begun = time.monotonic()
    assert next(mine) == 1  # it may be at work on its last one, but nothing comes
    assert time.monotonic() - begun >= 0.3
    compute(tmp_path / "s", range(10, 20))
    assert list(mine) == []


def test_a_slow_process_is_given_the_time_of_its_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(room, "PATIENCE_SECONDS", 0.0)
    given_ = rota(tmp_path / "s", Share(1, 2), count=20)
    mine = iter(given_)
    assert next(mine) == 1
    compute(tmp_path / "s", range(10, 20))
    given_.longest_shard = 0.2
    begun = time.monotonic()
    assert next(mine) == 0
    assert time.monotonic() - begun >= 0.2 * room.PATIENCE_SHARDS

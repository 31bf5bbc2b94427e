"""The pass in several real processes on one store: shared, killed, picked up."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.processes import start
from data_prep import embed, units
from data_prep.embed import embed_texts
from data_prep.reduce import FILE, Reduction, StoreConfig
from data_prep.tables import Texts
from data_prep.teacher import TeacherConfig, vector_keys
from data_prep.units import Share
from data_prep.vectors import VectorStore
from embedding.embedder import Embedder
from embedding.files import read_json, write_json
from tests.data_prep.test_embed import make_texts

PAIRS = [(f"How does {verb} a {noun} work?", f"To {verb} the {noun}, be patient. " * length)
         for verb in ("open", "close", "move", "paint") for noun in ("door", "file", "window", "valve", "ship", "rope")
         for length in (1, 3, 6, 12)]  # fmt: skip
SHARD = 6
PATIENCE = 600
"""Seconds: a busy machine is slow, not broken."""
pytestmark = pytest.mark.timeout(1_800)


def work(data: str, stores: str, rank: int, world: int, pca: int | None = None) -> None:
    """One process's pass; leaves what it did beside the stores."""
    embed.SHARD_TEXTS = SHARD
    units.POLL_SECONDS, units.PATIENCE_SECONDS = 0.05, 1.0
    config = TeacherConfig(max_tokens=48, store=StoreConfig(pca=pca, pca_sample=100))
    report = embed_texts(config, Texts.load(Path(data)), Path(stores), progress=False, share=Share(rank, world))
    done = {"computed": report.computed, "reused": report.reused, "store": report.store.name}
    write_json(Path(stores, f"rank-{rank}.json"), done)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_texts(folder, PAIRS)
    return folder / "data" / "texts"


def shards(stores: Path) -> list[Path]:
    return list(stores.glob("*/shards/[!.]*.arrow"))


def wait(until: Callable[[], object], process: BaseProcess) -> None:
    while not until():
        assert process.is_alive(), "it ended before it could be stopped"
        time.sleep(0.002)


def check(stores: Path, texts: Texts, teacher: Embedder) -> None:
    """Every vector is there, once, and right."""
    store = VectorStore.existing(next(stores.glob("*/manifest.json")).parent)
    assert not store.set_aside
    found = store.rows(vector_keys(texts, teacher.template))
    np.testing.assert_allclose(found, teacher.encode(texts.texts.to_pylist()), atol=1e-3)
    assert len(store) == len(texts)


def test_each_process_computes_its_share(data: Path, teacher: Embedder, tmp_path: Path) -> None:
    world = 3
    running = [start(work, str(data), str(tmp_path), rank, world) for rank in range(world)]
    for process in running:
        process.join(PATIENCE)
        assert process.exitcode == 0
    texts = Texts.load(data)
    check(tmp_path, texts, teacher)
    done = [read_json(tmp_path / f"rank-{rank}.json") for rank in range(world)]
    # Two that meet in one unit write the same file; what both computed is less than what one has.
    assert len(texts) <= sum(one["computed"] for one in done) < 1.5 * len(texts)
    assert all(one["computed"] for one in done)


def test_the_share_of_a_killed_process_and_of_one_that_never_came_is_picked_up(
    data: Path, teacher: Embedder, tmp_path: Path
) -> None:
    texts = Texts.load(data)
    victim = start(work, str(data), str(tmp_path), 1, 3)  # 0 and 2 are not there yet
    wait(lambda: len(shards(tmp_path)) >= 2, victim)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    kept = sum(int(path.name.split("-")[0]) for path in shards(tmp_path))
    assert 0 < kept < len(texts)
    other = start(work, str(data), str(tmp_path), 0, 3)  # and 2 never comes
    other.join(PATIENCE)
    assert other.exitcode == 0
    check(tmp_path, texts, teacher)
    assert read_json(tmp_path / "rank-0.json")["computed"] == len(texts) - kept


def test_a_stopped_process_that_wakes_again_disturbs_nothing(data: Path, teacher: Embedder, tmp_path: Path) -> None:
    sleeper = start(work, str(data), str(tmp_path), 1, 2)
    wait(lambda: len(shards(tmp_path)) >= 1, sleeper)
    assert sleeper.pid is not None
    os.kill(sleeper.pid, signal.SIGSTOP)
    try:
        other = start(work, str(data), str(tmp_path), 0, 2)
        other.join(PATIENCE)
        assert other.exitcode == 0
    finally:
        os.kill(sleeper.pid, signal.SIGCONT)
    sleeper.join(PATIENCE)
    assert sleeper.exitcode == 0
    check(tmp_path, Texts.load(data), teacher)


def test_one_process_fits_the_reduction_and_the_others_use_it(data: Path, teacher: Embedder, tmp_path: Path) -> None:
    running = [start(work, str(data), str(tmp_path), rank, 2, 24) for rank in range(2)]
    for process in running:
        process.join(PATIENCE)
        assert process.exitcode == 0
    stores = {read_json(tmp_path / f"rank-{rank}.json")["store"] for rank in range(2)}
    assert len(stores) == 1
    texts = Texts.load(data)
    alone = embed_texts(
        TeacherConfig(max_tokens=48, store=StoreConfig(pca=24, pca_sample=100)),
        texts,
        tmp_path / "alone",
        progress=False,
        embedder=teacher,
    )
    keys = vector_keys(texts, teacher.template)
    found, expected = (VectorStore.existing(path).rows(keys) for path in (tmp_path / stores.pop(), alone.store))
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_fit_that_is_killed_goes_on_with_the_sample_it_has(data: Path, teacher: Embedder, tmp_path: Path) -> None:
    victim = start(work, str(data), str(tmp_path), 0, 1, 24)
    wait(lambda: len(shards(tmp_path)) >= 3, victim)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    assert not list(tmp_path.glob(f"*/{FILE}")), "it was killed too late"
    kept = sum(int(path.name.split("-")[0]) for path in shards(tmp_path))
    assert kept >= 3 * SHARD
    again = start(work, str(data), str(tmp_path), 0, 1, 24)
    again.join(PATIENCE)
    assert again.exitcode == 0
    done, texts = read_json(tmp_path / "rank-0.json"), Texts.load(data)
    assert (done["computed"], done["reused"]) == (len(texts) - kept, kept)
    store = VectorStore.existing(tmp_path / done["store"])
    expected = Reduction.load(store.folder).apply(teacher.encode(texts.texts.to_pylist()))
    np.testing.assert_allclose(store.rows(vector_keys(texts, teacher.template)), expected, atol=2e-3)

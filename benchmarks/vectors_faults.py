"""Kill, cut, flip, fill: every teacher vector is there once and equal to an undisturbed pass.

    python -m benchmarks.vectors_faults [--kills 20] [--pairs 400] [--seed 0] [--smoke]

all-MiniLM-L6-v2 embeds docstrings. One pass goes undisturbed. The same pass, by two writers on one store, is then
disturbed: at random moments one of them is killed (SIGKILL), while it starts, computes, or has a shard half written,
and started again; between the kills a shard is truncated and a byte of another is flipped. The store of a third pass
lies on a small file system (tmpfs where this process may mount one, else a limit on the size of its files) that
fills: the pass ends with a message and a non-zero code, and goes on once there is room.

Prints one JSON line last; keys `kills`, `lost` (vectors that are missing), `wrong` (vectors that differ
from the undisturbed pass by more than 2e-3, the rounding of float16 on both sides), `full_disk` (how it was filled).
"""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.common import arguments, report, say
from benchmarks.pairs import TEACHER, docstring_pairs, ranking_rows
from benchmarks.processes import start
from data_prep import embed, units
from data_prep.assemble import write_rows
from data_prep.embed import embed_texts
from data_prep.tables import Texts
from data_prep.teacher import TeacherConfig, vector_keys
from data_prep.units import Share
from data_prep.vectors import VectorStore
from data_prep.vectors_care import repair, verify
from embedding.instruction import BARE

WRITERS = 2
SHARD_TEXTS = 8
TOLERANCE = 2e-3
DISK_SHARE = 0.5
"""The small file system has room for so much of the store."""
FAILED = 3


def write_texts(folder: Path, pairs: int) -> Path:
    """Both sides of so many docstrings as a table of texts."""
    write_rows(((row, 0, "") for row in ranking_rows(docstring_pairs(pairs))), folder, ["docstrings"])
    return folder / "texts"


def embed_share(texts: str, stores: str, rank: int, world: int, largest_file: int = 0) -> None:
    """One writer's pass to its end; the exit code is FAILED where it ends with one of our messages."""
    embed.SHARD_TEXTS = SHARD_TEXTS
    units.POLL_SECONDS, units.PATIENCE_SECONDS = 0.1, 2.0
    if largest_file:  # the closest to a full disk without one: a write beyond it fails
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    config = TeacherConfig(model=TEACHER, max_tokens=64)
    try:
        embed_texts(config, Texts.load(Path(texts)), Path(stores), progress=False, share=Share(rank, world))
    except OSError as error:
        say(f"writer {rank}: {error}")
        sys.exit(FAILED)


def run_writers(texts: Path, stores: Path, world: int = WRITERS, largest_file: int = 0) -> list[int | None]:
    """Let `world` writers come to their ends; their exit codes."""
    writers = [start(embed_share, str(texts), str(stores), rank, world, largest_file) for rank in range(world)]
    for writer in writers:
        writer.join()
    return [writer.exitcode for writer in writers]


def shards(stores: Path) -> list[Path]:
    """The finished shards."""
    return sorted(stores.glob("*/shards/[!.]*.arrow"))


def open_store(stores: Path) -> VectorStore:
    """The one store below `stores`."""
    return VectorStore.existing(next(stores.glob("*/manifest.json")).parent)


class Writers:
    """Writers that are started again whenever they end, until they are asked to stop."""

    def __init__(self, texts: Path, stores: Path) -> None:
        self.texts, self.stores = texts, stores
        self.running: list[BaseProcess] = [self._start(rank) for rank in range(WRITERS)]

    def _start(self, rank: int) -> BaseProcess:
        return start(embed_share, str(self.texts), str(self.stores), rank, WRITERS)

    def kill(self, rank: int) -> bool:
        """Kill one and start it again; False where it had ended by itself."""
        writer = self.running[rank]
        alive = writer.is_alive() and writer.pid is not None
        if alive:
            assert writer.pid is not None
            os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        killed = alive and writer.exitcode == -signal.SIGKILL
        self.running[rank] = self._start(rank)
        return killed

    def stop(self) -> None:
        """Kill them all."""
        for writer in self.running:
            writer.kill()
            writer.join()


def disturb(texts: Path, stores: Path, kills: int, chance: random.Random) -> dict[str, Any]:
    """Kill writers `kills` times; a truncated and a flipped shard in between. What was hit, and how."""
    total = len(Texts.load(texts))
    done = {"kills": 0, "aimed": 0, "undone": 0}
    writers = Writers(texts, stores)
    try:
        while done["kills"] < kills:
            target = len(shards(stores)) + chance.randint(0, 2)
            aside = chance.random() < 0.5
            until = time.monotonic() + chance.uniform(0.5, 6.0)
            while time.monotonic() < until and len(shards(stores)) < target:
                time.sleep(0.001)
            until = time.monotonic() + 6.0
            while aside and time.monotonic() < until:  # inside the write of a shard, seen from outside
                if list(stores.glob("*/shards/.*.arrow.*")):
                    done["aimed"] += 1
                    break
            done["kills"] += writers.kill(chance.randrange(WRITERS))
            if sum(int(path.name.split("-")[0]) for path in shards(stores)) > 0.7 * total:
                # It must not be finished before the kills are: take half of it away, as a lost disk would.
                for path in shards(stores)[::2]:
                    path.unlink(missing_ok=True)
                    done["undone"] += 1
    finally:
        writers.stop()
    return done


def damage(stores: Path) -> None:
    """Truncate one shard and flip a byte of another."""
    cut, flipped = shards(stores)[:2]
    os.truncate(cut, cut.stat().st_size * 2 // 3)
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 64
    flipped.write_bytes(data)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """Mount a tmpfs of so many bytes; False where this process may not."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(words, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_the_disk(texts: Path, folder: Path, size: int) -> tuple[Path, str]:
    """A pass on a disk that fills, then one with room again; where the store is, and how the disk was filled.

    Raises:
        AssertionError: the first did not fail with a message, or left something unfinished.
    """
    with small_disk(folder / "small", int(size * DISK_SHARE)) as mounted:
        stores = folder / ("small" if mounted else "limited")
        limit = 0 if mounted else 4_096
        codes = run_writers(texts, stores, 1, limit)
        assert codes == [FAILED], f"a full disk gave the exit codes {codes}"
        kept = len(shards(stores))
        assert not list(stores.glob("*/shards/.*")), "a full disk left an unfinished shard"
        say(f"full disk: {kept} shards were kept")
        if mounted:
            subprocess.run(["mount", "-o", f"remount,size={size * 4}", str(stores)], check=True)
        assert run_writers(texts, stores, 1) == [0]
        assert len(shards(stores)) >= kept
        if mounted:
            subprocess.run(["cp", "-r", str(stores), str(folder / "copied")], check=True)
    return folder / ("copied" if mounted else "limited"), "tmpfs" if mounted else "file size limit"


def compare(stores: Path, texts: Texts, expected: np.ndarray) -> tuple[int, int]:
    """(vectors missing, vectors that differ)."""
    store = open_store(stores)
    keys = vector_keys(texts, BARE)
    missing = store.missing(keys)
    differ = np.abs(store.rows(keys[~missing]) - expected[~missing]).max(axis=1, initial=0) > TOLERANCE
    return int(missing.sum()), int(differ.sum())


def main() -> None:
    """Everything above, in turn."""
    options = arguments(__doc__)
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--pairs", type=int, default=400, help="docstrings, each with two texts")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--smoke", action="store_true", help="two kills on few texts, to see that it works")
    given = options.parse_args()
    kills, pairs = (2, 60) if given.smoke else (given.kills, given.pairs)
    with TemporaryDirectory() as name:
        folder = Path(name)
        path = write_texts(folder / "data", pairs)
        texts = Texts.load(path)
        begun = time.perf_counter()
        assert run_writers(path, folder / "undisturbed", 1) == [0]
        say(f"undisturbed: {len(texts)} texts in {time.perf_counter() - begun:.0f} s")
        expected = open_store(folder / "undisturbed").rows(vector_keys(texts, BARE))
        size = sum(shard.stat().st_size for shard in shards(folder / "undisturbed"))

        disturbed = folder / "disturbed"
        hits = disturb(path, disturbed, kills, random.Random(given.seed))
        say(f"{hits['kills']} kills, {hits['aimed']} of them while a shard was being written")
        damage(disturbed)
        store_folder = next(disturbed.glob("*/manifest.json")).parent
        found = verify(store_folder)
        assert len(found.damaged) == 2, f"{len(found.damaged)} damaged shards were found, 2 were made"
        assert run_writers(path, disturbed) == [0, 0]
        set_aside = len(list((store_folder / "damaged").iterdir()))
        lost, wrong = compare(disturbed, texts, expected)
        assert not verify(store_folder).damaged
        for left in store_folder.glob("shards/.*"):  # as after an hour: nobody is at work on them
            os.utime(left, (0, 0))
        removed = repair(store_folder).removed

        small, how = fill_the_disk(path, folder, size)
        lost_full, wrong_full = compare(small, texts, expected)
    report(
        {
            "benchmark": "vectors_faults",
            "texts": len(texts),
            **hits,
            "damaged_found": set_aside,
            "unfinished_removed": removed,
            "full_disk": how,
            "lost": lost + lost_full,
            "wrong": wrong + wrong_full,
        },
        save=given.save,
    )


if __name__ == "__main__":
    main()

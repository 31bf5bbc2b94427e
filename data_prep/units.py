"""How the texts are cut into units of work, and which process takes which: by size, without a word between them.

Every process cuts the same units from the same table. It does its own share first and then what the others have not
done, so that a process that died, or an array task that never started, holds nothing up.
"""

import os
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from data_prep.refused import Refusals
from data_prep.tables import Texts
from data_prep.vectors import VectorStore

UNIT_TEXTS = 65_536
UNIT_BYTES = 16 << 20
"""Texts and their bytes in a unit, at most. Bytes stand for tokens: they are known without tokenizing everything, and
their ratio hardly differs between units of thousands of texts."""
SMALLEST_UNITS = 32
"""Units for each process, at least, where there are several: the last ones even out what differs in speed."""
POLL_SECONDS = 1.0
PATIENCE_SECONDS = 10.0
"""A unit that another process may be working on is left to it while the store grows, and for so long after."""
PATIENCE_SHARDS = 3
"""Or for the time of so many of our own shards, where that is longer."""


class Share(NamedTuple):
    """This process among those that embed the same texts."""

    rank: int = 0
    world: int = 1


def launched_share() -> Share:
    """The share that the launcher gave this process: torchrun or accelerate (RANK, WORLD_SIZE), else Slurm (its task
    in the job, times the job's place in an array), else all of it.

    Raises:
        ValueError: the variables do not fit together.
    """
    env = os.environ
    if "WORLD_SIZE" in env:
        share = Share(int(env.get("RANK", "0")), int(env["WORLD_SIZE"]))
    else:
        rank, world = int(env.get("SLURM_PROCID", "0")), int(env.get("SLURM_NTASKS", "1"))
        if "SLURM_ARRAY_TASK_COUNT" in env:
            step = int(env.get("SLURM_ARRAY_TASK_STEP", "1"))
            place = (int(env["SLURM_ARRAY_TASK_ID"]) - int(env["SLURM_ARRAY_TASK_MIN"])) // step
            rank, world = place * world + rank, int(env["SLURM_ARRAY_TASK_COUNT"]) * world
        share = Share(rank, world)
    if not 0 <= share.rank < share.world:
        raise ValueError(f"launched as process {share.rank} of {share.world}: expected a number from 0 below it")
    return share


def text_bytes(texts: Texts) -> np.ndarray:
    """The bytes of each text, without its prompt: int32 [N]."""
    sizes: np.ndarray = pc.binary_length(texts.texts).to_numpy()
    return sizes


def cut_units(size_N: np.ndarray, world: int = 1) -> list[slice]:
    """Runs of consecutive texts of about equal size in bytes."""
    total = int(size_N.sum(dtype=np.int64)) + len(size_N)
    most = min(UNIT_BYTES, max(1, total // (SMALLEST_UNITS * world))) if world > 1 else UNIT_BYTES
    units = []
    for begin in range(0, len(size_N), UNIT_TEXTS):
        ends = np.cumsum(size_N[begin : begin + UNIT_TEXTS], dtype=np.int64)
        cuts = [*(np.flatnonzero(np.diff(ends // most)) + 1).tolist(), len(ends)]
        units += [slice(begin + a, begin + b) for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
    return units


class Rota:
    """Which unit this process takes next."""

    def __init__(self, store: VectorStore, keys_N2: np.ndarray, units: Sequence[slice], share: Share) -> None:
        self.store, self.keys_N2, self.units, self.share = store, keys_N2, units, share
        self.refusals = Refusals(store.folder)
        self.own = list(range(share.rank, len(units), share.world))
        self.longest_shard = 0.0
        """Seconds; the pass keeps it up to date."""

    def __iter__(self) -> Iterator[int]:
        """Our own units, then those that others leave undone; ends when every text has its vector or was refused."""
        yield from self.own
        if self.share.world > 1:
            yield from self._left()

    def _left(self) -> Iterator[int]:
        open_units = [unit for unit in range(len(self.units)) if unit not in set(self.own)]
        grew = time.monotonic()
        while True:
            if self.store.refresh():
                grew = time.monotonic()
            open_units = [unit for unit in open_units if self._lacks(self.keys_N2[self.units[unit]])]
            if not open_units:
                return
            owners: dict[int, list[int]] = {}
            for unit in open_units:
                owners.setdefault(unit % self.share.world, []).append(unit)
            # An owner goes from its first unit to its last, so its last is the one it will come to latest.
            last = [mine[-1] for mine in owners.values() if len(mine) > 1]
            patience = max(PATIENCE_SECONDS, PATIENCE_SHARDS * self.longest_shard)
            if not last and time.monotonic() - grew > patience:
                last = open_units
            if last:
                yield last[self.share.rank % len(last)]
            else:
                time.sleep(POLL_SECONDS)

    def _lacks(self, keys_n2: np.ndarray) -> bool:
        absent_m2 = keys_n2[self.store.missing(keys_n2)]
        return len(absent_m2) > 0 and not self.refusals.among(absent_m2).all()

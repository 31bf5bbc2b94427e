"""Texts that a teacher's server does not take: recorded beside the shards, so that the pass goes on without them.

    refused/KEY.json    one for each: what the server said

Any number of processes write here. A text whose vector comes after all, since the server's limit was raised, is
forgotten.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from embedding.files import read_json, write_json

FOLDER = "refused"
TOLD = 3
"""So many stand in a message; all are in the folder."""


class Refusals:
    """The refused texts of one store, by content key."""

    def __init__(self, store: Path) -> None:
        self.folder = store / FOLDER

    def add(self, key_2: np.ndarray, said: str) -> None:
        """Record a text with what the server says of it."""
        write_json(self._path(key_2), {"said": said})

    def said(self, key_2: np.ndarray) -> str:
        """What the server said of a recorded text."""
        return str(read_json(self._path(key_2))["said"])

    def among(self, keys_N2: np.ndarray) -> np.ndarray:
        """Which keys are recorded: bool [N]."""
        found_N = np.zeros(len(keys_N2), dtype=bool)
        for path in self._files():
            high, low = int(path.stem[:16], 16), int(path.stem[16:], 16)
            found_N |= (keys_N2[:, 0] == high) & (keys_N2[:, 1] == low)
        return found_N

    def forget(self, keys_N2: np.ndarray) -> None:
        """These have their vectors now."""
        if self.folder.is_dir():
            for key_2 in keys_N2[self.among(keys_N2)]:
                self._path(key_2).unlink(missing_ok=True)

    def require_none(self, keys_N2: np.ndarray, rows_N: np.ndarray, texts: int) -> None:
        """Say which of the texts without a vector, rows `rows_N` of `texts`, were refused.

        Raises:
            ValueError: there are some.
        """
        at = np.flatnonzero(self.among(keys_N2))
        if len(at):
            told = [f"text {rows_N[i]}: {self.said(keys_N2[i])}" for i in at[:TOLD]]
            raise ValueError(
                f"{len(at):,} of {texts:,} texts were refused and have no vector; the others have theirs in "
                f"{self.folder.parent}. {'; '.join(told)}{'; …' if len(at) > TOLD else ''} (each is in {self.folder}). "
                "Take them out of the data, or cut what is sent with teacher.max_bytes, which begins a new store"
            )

    def _files(self) -> Iterator[Path]:
        return self.folder.glob("[!.]*.json")

    def _path(self, key_2: np.ndarray) -> Path:
        return self.folder / f"{int(key_2[0]):016x}{int(key_2[1]):016x}.json"

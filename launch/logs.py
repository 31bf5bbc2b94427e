"""What each process of a run says, kept in the run folder: `logs/rank-0.log`, `logs/rank-1.log`, …"""

import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from launch.runs import now, scrubbed

REDRAWN = re.compile(r"\x1b\[[0-9;?]*[AKJ]")
"""Moves of the cursor: text with these is a progress bar, drawn over and over; metrics.jsonl has what it says."""
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class RankLog:
    """The log of one process. Nothing is written before `begin`: a run that only skips leaves its folder as it is."""

    def __init__(self, path: Path, command: str) -> None:
        self.path = path
        self._waiting: list[str] | None = [f"--- {now()}  {command}\n"]
        self._file: TextIO | None = None

    def begin(self) -> None:
        """From now on it is kept, and what was said before."""
        if self._waiting is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8", buffering=1)
            waiting, self._waiting = self._waiting, None
            for text in waiting:
                self.note(text)

    def note(self, text: str) -> None:
        """Keep what was said, without colours, progress bars and secrets."""
        if REDRAWN.search(text):
            return
        if self._waiting is not None:
            self._waiting.append(text)
        elif self._file is not None:
            self._file.write(scrubbed(COLOURS.sub("", text)))

    def close(self) -> None:
        """No more to say."""
        if self._file is not None:
            self._file.close()
            self._file = None


class _Tee(io.TextIOBase):
    """Says everything twice: on the terminal and in the log."""

    def __init__(self, terminal: TextIO, log: RankLog) -> None:
        self._terminal, self._log = terminal, log

    def write(self, text: str) -> int:
        """On both."""
        self._log.note(text)
        return self._terminal.write(text)

    def flush(self) -> None:
        """The terminal; the log is written line by line."""
        self._terminal.flush()

    def isatty(self) -> bool:
        """As the terminal says."""
        return self._terminal.isatty()

    def fileno(self) -> int:
        """Of the terminal."""
        return self._terminal.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the terminal."""
        return self._terminal.encoding


@contextlib.contextmanager
def rank_log(folder: Path, rank: int, command: str, quiet: tuple[type[BaseException], ...] = ()) -> Iterator[RankLog]:
    """Keep what this process says in `folder/rank-K.log` until the block ends, and why it ended: a line for the errors
    of `quiet`, a traceback for others. Ranks other than 0 say it there only."""
    log = RankLog(folder / f"rank-{rank}.log", command)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        out, err = (sys.stdout, sys.stderr) if rank == 0 else (nowhere, nowhere)
        try:
            with contextlib.redirect_stdout(_Tee(out, log)), contextlib.redirect_stderr(_Tee(err, log)):
                yield log
        except BaseException as error:
            log.note(f"{type(error).__name__}: {error}\n" if isinstance(error, quiet) else traceback.format_exc())
            raise
        finally:
            log.close()

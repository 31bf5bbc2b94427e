"""Which steps of a run are finished: content-addressed records, and the seconds that each step took."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from embedding.files import differences, fingerprint, read_json, write_json
from launch.engine import LAUNCH
from launch.show import say

Result = dict[str, Any]
"""What a step says of itself, as JSON; `outputs` names the files and folders without which it is not finished."""


class Ledger:
    """Runs the steps of one run folder, each at most once for the same inputs.

    A step is finished when there is a record with the fingerprint of everything that determines its result, and its
    outputs are in place. The record is the last thing a step writes, so an interrupted step is simply not finished.
    Records lie in `run/steps/NAME.json`; those of steps that several runs can share are also kept in `cache/steps`,
    with their outputs told from the cache: it may be used from anywhere.
    """

    def __init__(
        self, run: Path, cache: Path, console: Console, on_work: Callable[[str], None] = lambda name: None
    ) -> None:
        """`on_work` is told the name of every step that is not skipped, before it begins."""
        self.on_work = on_work
        self.run = run
        self.cache = cache
        self.console = console
        self.seconds: dict[str, float] = {}

    def step(
        self,
        name: str,
        made_from: Mapping[str, Any],
        work: Callable[[], Result],
        *,
        share: bool = False,
        begun: bool = False,
    ) -> Result:
        """The result of the step `name`: taken from its record when nothing it was made from changed, else of `work`.

        Args:
            made_from: JSON facts that determine the result.
            work: does it; where it went on with what killed processes had begun, `seconds before` of its result says
                how long those had worked on it.
            share: whether other runs may reuse the result (its outputs lie outside the run folder).
            begun: the other ranks are at it already, so this one does its part though another run may have finished it
                meanwhile.
        """
        before = self.record(name)
        record, reason = (None, "") if begun else self._finished(name, made_from, share)
        if record is not None:
            self.say(name, f"skipped, finished before (took {record['seconds']:.1f} s)")
        else:
            self.say(name, f"again: {reason}" if reason else "…")
            self.on_work(name)
            begin = time.perf_counter()
            result = work()
            seconds = round(time.perf_counter() - begin + result.get("seconds before", 0.0), 3)
            record = {
                "fingerprint": fingerprint(made_from),
                "made_from": dict(made_from),
                "seconds": seconds,
                "result": result,
            }
            self.say(name, f"done in {seconds:.1f} s")
            if share:
                write_json(self._shared(name, record["fingerprint"]), _placed(record, self._told_from_cache))
        if record != before:
            write_json(self._path(name), record)
        self.seconds[name] = record["seconds"]
        if "train" in self.seconds or self.record("train") is None:  # else the times stay those of the finished run
            write_json(self.run / "timings.json", {**self.seconds, "total": round(sum(self.seconds.values()), 3)})
        return dict(record["result"])

    def due(self, name: str, made_from: Mapping[str, Any], *, share: bool = False) -> bool:
        """Whether the step of that name is still to be done, or to be done again."""
        return self._finished(name, made_from, share)[0] is None

    def record(self, name: str) -> dict[str, Any] | None:
        """The record of this run's last finished step of that name, whatever it was made from."""
        path = self._path(name)
        return dict(read_json(path)) if path.is_file() else None

    def forget(self, name: str) -> None:
        """From now on the step is not finished, for this run and for those that share its result."""
        record = self.record(name)
        if record is not None:
            self._shared(name, record["fingerprint"]).unlink(missing_ok=True)
            self._path(name).unlink()

    def restarted(self) -> bool:
        """Whether an earlier process of this launch began the training again already: --restart stands in the command
        that a launcher repeats, and counts once."""
        launch, mark = os.environ.get(LAUNCH), self.run / "steps" / "restart.json"
        return bool(launch) and mark.is_file() and read_json(mark) == launch

    def count_restart(self) -> None:
        """Note that the training begins anew in this launch."""
        write_json(self.run / "steps" / "restart.json", os.environ.get(LAUNCH))

    def say(self, name: str, text: str) -> None:
        """One line on the terminal about a step."""
        say(self.console, name, text)

    def _finished(self, name: str, made_from: Mapping[str, Any], share: bool) -> tuple[dict[str, Any] | None, str]:
        record, reason = _usable(self.record(name), made_from)
        common = self._shared(name, fingerprint(made_from))
        if record is None and share and common.is_file():
            return _usable(_placed(read_json(common), lambda path: self.cache / path), made_from)
        return record, reason

    def _shared(self, name: str, digest: str) -> Path:
        return self.cache / "steps" / f"{name}-{digest}.json"

    def _told_from_cache(self, path: Path) -> Path:
        return path.relative_to(self.cache) if path.is_relative_to(self.cache) else path.absolute()

    def _path(self, name: str) -> Path:
        return self.run / "steps" / f"{name}.json"


def _placed(record: Mapping[str, Any], place: Callable[[Path], Path]) -> dict[str, Any]:
    """A record with each of its outputs told otherwise."""
    result = record["result"]
    return {**record, "result": {**result, "outputs": [str(place(Path(path))) for path in result["outputs"]]}}


def _usable(record: dict[str, Any] | None, made_from: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The record when it may be reused; else why not ("" when there is none)."""
    if record is None:
        return None, ""
    if record["fingerprint"] != fingerprint(made_from):
        return None, "; ".join(differences(made_from, record["made_from"]))
    missing = [path for path in record["result"]["outputs"] if not Path(path).exists()]
    return (None, f"{', '.join(missing)} is gone") if missing else (record, "")

"""Which steps of a run are finished: content-addressed records, and the seconds that each step took."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from embedding.files import differences, fingerprint, read_json, write_json

Result = dict[str, Any]


class Ledger:
    """Runs the steps of one run folder, each at most once for the same inputs.

    A step is finished when there is a record with the fingerprint of everything that determines its result, and its
    outputs are in place. The record is the last thing a step writes, so an interrupted step is simply not finished.
    Records lie in `run/steps/NAME.json`; those of steps that several runs can share are also kept in `shared`.
    """

    def __init__(self, run: Path, shared: Path, console: Console) -> None:
        self.run = run
        self.shared = shared
        self.console = console
        self.seconds: dict[str, float] = {}

    def step(
        self,
        name: str,
        made_from: Mapping[str, Any],
        work: Callable[[], Result],
        outputs: Callable[[Result], Sequence[Path]],
        share: bool = False,
    ) -> Result:
        """The result of the step `name`: taken from its record when nothing it was made from changed, else of `work`.

        Args:
            made_from: JSON facts that determine the result.
            work: does the step and returns its JSON result.
            outputs: the files and folders that must exist for a result to be reused.
            share: whether other runs may reuse the result (its outputs lie outside the run folder).
        """
        own = self.run / "steps" / f"{name}.json"
        common = self.shared / f"{name}-{fingerprint(made_from)}.json"
        before = read_json(own) if own.is_file() else None
        record, reason = self._finished(before, made_from, outputs)
        if record is None and share and common.is_file():
            record, reason = self._finished(read_json(common), made_from, outputs)
        if record is not None:
            self._say(name, f"skipped, finished before (took {record['seconds']:.1f} s)")
        else:
            self._say(name, f"again: {reason}" if reason else "")
            begin = time.perf_counter()
            result = work()
            record = {
                "fingerprint": fingerprint(made_from),
                "made_from": dict(made_from),
                "seconds": round(time.perf_counter() - begin, 3),
                "result": result,
            }
            self._say(name, f"done in {record['seconds']:.1f} s")
            if share:
                write_json(common, record)
        if record != before:
            write_json(own, record)
        self.seconds[name] = record["seconds"]
        write_json(self.run / "timings.json", {**self.seconds, "total": round(sum(self.seconds.values()), 3)})
        return dict(record["result"])

    def _finished(
        self, record: Any, made_from: Mapping[str, Any], outputs: Callable[[Result], Sequence[Path]]
    ) -> tuple[dict[str, Any] | None, str]:
        """The record when it may be reused; else why not ("" when there is none)."""
        if record is None:
            return None, ""
        if record["fingerprint"] != fingerprint(made_from):
            return None, "; ".join(differences(made_from, record["made_from"]))
        missing = [str(path) for path in outputs(record["result"]) if not path.exists()]
        if missing:
            return None, f"{', '.join(missing)} is gone"
        return dict(record), ""

    def _say(self, name: str, text: str) -> None:
        self.console.print(f"[bold cyan]{name:>8}[/]  {escape(text)}", soft_wrap=True, highlight=False)

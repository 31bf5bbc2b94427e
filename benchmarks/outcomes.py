"""What single runs of an experiment gave, and several of them together.

Three depths and three seeds of an hour each are more than a machine is free for at a time. So a saved result holds its
runs one by one, each with the machine, the commit and the day it ran, and `--add` leaves those in it that are not run
again. Only such as were made from the same recipe and given the same minutes; others are counted and left out. What
the product did with the recipe may have changed in between: the commits tell, and whoever quotes a mean looks at them.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.common import machine, say, today
from embedding.files import read_json

Outcome = dict[str, Any]
"""What `outcome` finds, with `seed`, `steps`, `train_seconds` (of the steps), `start_seconds` (before them), `pace`,
`made_from` and `ran`."""


def outcome(card: Mapping[str, Any]) -> Outcome:
    """The figures of a finished run, from its scorecard: shares of the teacher, 0 to 1 (above, where it is better).

    `retention` is the mean over kinds, `untrained` that of the student before training; `mean` has Mean(TaskType) of
    teacher, untrained and student; `recovered` is the share of the gap between untrained and teacher that was closed.
    """
    kinds = card["kinds"].values()
    return {
        "retention": card["means"]["retention"],
        "kinds": card["retention"],
        "untrained": fmean(of["untrained"] / of["teacher"] for of in kinds if of["teacher"] > 0),
        "mean": {model: card["means"]["task_type"][model] for model in ("teacher", "untrained", "student")},
        "recovered": card["means"]["recovered"],
        "parameters": card["facts"]["parameters"],
    }


def ran() -> dict[str, Any]:
    """Where and when: to be called by the process that ran it."""
    here = machine()
    return {**{key: here[key] for key in ("processor", "threads", "commit", "torch")}, "day": today()}


def together(runs: Sequence[Outcome]) -> dict[str, Any]:
    """Several seeds of one recipe: means and standard deviation of what was kept, and what stands beside them."""
    runs = sorted(runs, key=lambda run: run["seed"])
    kinds = {kind: fmean(run["kinds"][kind] for run in runs) for kind in runs[0]["kinds"]}
    worst = min(kinds, key=lambda kind: kinds[kind])
    shares = [run["retention"] for run in runs]
    return {
        "retention": fmean(shares),
        "sd": stdev(shares) if len(shares) > 1 else None,
        "worst_kind": {"kind": worst, "retention": kinds[worst]},
        "untrained": fmean(run["untrained"] for run in runs),
        "kinds": kinds,
        "mean": {model: fmean(run["mean"][model] for run in runs) for model in ("teacher", "untrained", "student")},
        "parameters": runs[0]["parameters"],
        "seeds": [run["seed"] for run in runs],
        "runs": runs,
    }


def saved_runs(path: Path, student: str | None, made_from: str, besides: Collection[int]) -> list[Outcome]:
    """The runs that a saved result holds of a student (None: it has one only), but for the seeds in `besides`."""
    if not path.is_file():
        say(f"{path.name}: no saved result to add to")
        return []
    result = read_json(path)
    of = result if student is None else result["students"].get(student, {"runs": []})
    if "runs" not in of:
        say(f"{path.name}: does not hold its runs one by one, so none can be added")
        return []
    others = [run for run in of["runs"] if run["seed"] not in besides]
    same = [run for run in others if run["made_from"] == made_from]
    if others:
        what = f"{path.name}, {student}" if student else path.name
        say(f"{what}: {len(same)} saved runs added, {len(others) - len(same)} of another recipe or time left out")
    return same

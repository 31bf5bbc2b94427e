"""What `benchmarks.versus_st` keeps of one seed, and what several say together."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np

from eval.scorecard import Scorecard
from eval.study import Drawn, Trial, shared_tasks, verdict

STARTS = {"copied": "points_ahead", "folded": "points_ahead_same_start", "static": "points_ahead_same_start"}
"""The peer's starts, and what the difference from each is called."""
UNIT = 1e-3
"""Points in which the draws of a saved result are counted: a hundredth of what an interval is quoted in."""


def of_seed(trials: Mapping[str, Trial], around: Mapping[str, Scorecard]) -> dict[str, Any]:
    """What a result keeps of one seed: `sides`, each with points, kinds and, where it was trained, seconds; and
    `above`, how far the product is above the peer from each start with other items: the bootstrap's draws in UNIT,
    from which several seeds have an interval together.

    Raises:
        ValueError: some sides were measured on other items than the rest.
    """
    cards = {name: trial.card for name, trial in trials.items()} | dict(around)
    tasks = shared_tasks(cards["1"], cards.values())
    if apart := {task for card in cards.values() for task in card["tasks"]} - set(tasks):
        raise ValueError(f"not all sides were measured on the same items: {', '.join(sorted(apart))}")
    drawn = {name: Drawn.of(card, tasks) for name, card in cards.items()}
    sides: dict[str, Any] = {}
    for name, of in drawn.items():
        seconds = {"seconds": trials[name].seconds} if name in trials else {}
        kinds = {kind: 100 * score for kind, score in of.kinds.items()}
        sides[name] = {"points": 100 * of.score, "kinds": kinds, **seconds}
    above = {}
    for start in STARTS.keys() & trials.keys():
        redrawn_B = 100 * (drawn["1"].mean_B - drawn[start].mean_B)
        above[start] = np.rint(redrawn_B / UNIT).astype(int).tolist()
    return {"sides": sides, "above": above}


def together(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several seeds: what the benchmark prints. A share of the minutes that one of them left out is not in it."""
    runs = sorted(runs, key=lambda run: run["seed"])
    sides = {name: side for name, side in runs[0]["sides"].items() if all(name in run["sides"] for run in runs)}
    each = {name: [run["sides"][name]["points"] for run in runs] for name in sides}
    points = {name: fmean(of) for name, of in each.items()}
    kinds = {
        name: {kind: fmean(run["sides"][name]["kinds"][kind] for run in runs) for kind in side["kinds"]}
        for name, side in sides.items()
    }
    worst = {name: _worst(of, kinds["teacher"]) for name, of in kinds.items() if "teacher" in kinds}
    trained = [name for name, side in sides.items() if "seconds" in side]
    shares = sorted(float(name) for name in trained if name not in STARTS)
    first = next(start for start in STARTS if start in trained)
    found: dict[str, Any] = {}
    for start, key in STARTS.items():
        if start in trained:
            differences = [ours - theirs for ours, theirs in zip(each["1"], each[start], strict=True)]
            ahead = verdict(differences, UNIT * np.array([run["above"][start] for run in runs]))
            found[key] = ahead.difference
            found[f"{key}_interval"] = [ahead.difference - ahead.half, ahead.difference + ahead.half]
    return {
        **found,
        "time_to_same": next((share for share in shares if points[f"{share:g}"] >= points[first]), None),
        "points": points,
        "kinds": kinds,
        "worst_kind": worst,
        "sd": {name: stdev(of) if len(of) > 1 else None for name, of in each.items()},
        "each": each,
        "seconds": {name: fmean(run["sides"][name]["seconds"] for run in runs) for name in trained},
        "seeds": [run["seed"] for run in runs],
        "runs": runs,
    }


def _worst(kinds: Mapping[str, float], teacher: Mapping[str, float]) -> dict[str, Any]:
    """The kind of which least is kept of the teacher's score, and that share."""
    kept = {kind: score / teacher[kind] for kind, score in kinds.items()}
    kind = min(kept, key=lambda kind: kept[kind])
    return {"kind": kind, "retention": kept[kind]}

"""Seeds that were run one at a time are together what a study of all of them says."""

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.versus_peer import Setting, spread
from benchmarks.versus_seeds import UNIT, of_seed, together
from benchmarks.versus_st import beyond, further
from eval.study import Trial, study

ITEMS = 300


def card(shift: float, draw: int) -> dict[str, Any]:
    """Two kinds of tasks on the same items for every draw."""
    tasks, outcomes = {}, {}
    for at, kind in enumerate(("retrieval", "classification")):
        hard = np.random.default_rng(at).random(ITEMS)
        values = hard + shift + np.random.default_rng(10 * draw + at).normal(0, 0.05, ITEMS)
        tasks[f"{kind}/a"] = {"kind": kind, "metric": "any", "student": float(values.mean())}
        outcomes[f"{kind}/a"] = [{"values": values.tolist()}]
    return {"tasks": tasks, "outcomes": outcomes}


@pytest.mark.parametrize("seeds", [1, 3])
def test_seeds_joined_are_a_study_of_all(seeds: int) -> None:
    sides = {"copied": 0.0, "folded": 0.03, "0.5": 0.01, "1": 0.02}
    trials = {
        name: [Trial(seed, card(shift, 7 * at + seed), 60.0 + seed) for seed in range(seeds)]
        for at, (name, shift) in enumerate(sides.items())
    }
    runs = [
        {"seed": seed, **of_seed({name: of[seed] for name, of in trials.items()}, {"teacher": card(0.1, 99)})}
        for seed in reversed(range(seeds))
    ]
    found = together(json.loads(json.dumps(runs)))
    for start, key in (("copied", "points_ahead"), ("folded", "points_ahead_same_start")):
        rows = {row.name: row for row in study("all", start, {name: {} for name in sides}, trials, {}).rows}
        verdict = rows["1"].verdict
        assert verdict is not None
        assert found[key] == pytest.approx(100 * verdict.difference)
        low, high = found[f"{key}_interval"]
        assert (high - low) / 2 == pytest.approx(100 * verdict.half, abs=UNIT)
        for name, row in rows.items():
            assert found["points"][name] == pytest.approx(100 * row.mean)
            assert found["sd"][name] == (row.deviation and pytest.approx(100 * row.deviation))
            assert found["kinds"][name]["retrieval"] == pytest.approx(100 * row.kinds["retrieval"])
            assert found["seconds"][name] == row.seconds
    worst = {name: found["worst_kind"][name] for name in sides}
    for name, of in worst.items():
        kept = {kind: score / found["kinds"]["teacher"][kind] for kind, score in found["kinds"][name].items()}
        assert (of["kind"], of["retention"]) == (min(kept, key=lambda kind: kept[kind]), min(kept.values()))
    assert found["time_to_same"] == 0.5
    assert found["seeds"] == list(range(seeds))
    assert "teacher" not in found["seconds"]


def test_what_lies_outside_is_tried_while_the_best_lies_at_the_edge() -> None:
    assert beyond([1e-3, 3e-3], [1e-3, 3e-3], 3.0) == pytest.approx(9e-3)
    assert beyond([1e-4, 1e-3, 3e-3], [1e-4, 1e-3], 3.0) == pytest.approx(1e-4 / 3)
    assert beyond([1e-4, 1e-3, 3e-3], [1e-3], 3.0) is None


def test_rates_are_searched_before_batch_sizes_and_both_for_either_side() -> None:
    grid = [Setting(rate, size) for size in (32, 64, 128) for rate in (3e-4, 1e-3, 3e-3)]

    def found(best: Setting, *more: Setting) -> dict[Setting, float]:
        return {setting: float(setting == best) for setting in (*grid, *more)}

    sizes, inside, sixteen = (32, 64, 128), found(Setting(1e-3, 64)), Setting(1e-3, 16)
    assert further(inside, inside, sizes) == []
    assert further(inside, found(Setting(3e-3, 32)), sizes) == [Setting(3e-3 * 3, size) for size in sizes]
    assert further(found(Setting(1e-3, 128)), inside, sizes) == [Setting(1e-3, 256)]
    assert further(inside, found(Setting(1e-3, 32)), sizes) == [sixteen]
    assert further(found(Setting(1e-3, 64), sixteen), found(sixteen, sixteen), sizes) == [], "once"


def test_a_part_is_taken_from_everywhere() -> None:
    assert spread(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert spread(3, 5).tolist() == [0, 1, 2]


def test_sides_that_were_measured_on_other_items_are_not_compared() -> None:
    other = card(0.0, 0)
    del other["tasks"]["retrieval/a"]
    trials = {"1": Trial(0, card(0.1, 0), 1.0), "copied": Trial(0, other, 1.0)}
    with pytest.raises(ValueError, match="not all sides were measured on the same items: retrieval/a"):
        of_seed(trials, {})

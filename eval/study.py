"""Several variants, each trained with several seeds: which differences from the baseline are more than chance?

Shapes: B replicates, S seeds.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.stats import t  # type: ignore[import-untyped]

from eval.bootstrap import LEVEL, kind_replicates, mean_of_kinds, replicates
from eval.compare import same_items
from eval.scorecard import Scorecard

NORMAL = 1.959964
"""The half width of 95 % of a normal distribution, in standard deviations."""


@dataclass(frozen=True)
class Trial:
    """One run of a variant."""

    seed: int
    card: Scorecard
    seconds: float
    """Of its training."""


@dataclass(frozen=True)
class Verdict:
    """A variant against the baseline."""

    difference: float
    half: float
    """Half the width of the 95 % interval; infinite where nothing tells: one seed, and no task that notes its items."""
    seeds: int
    """Seeds that both have."""

    @property
    def sentence(self) -> str:
        """In words, in points of 100."""
        if math.isinf(self.half):
            return f"{100 * self.difference:+.1f} (one seed, and no task notes its items: chance is not known)"
        shown = f"{100 * self.difference:+.1f} ± {100 * self.half:.1f}"
        single = " (one seed: chance between trainings is not counted)" if self.seeds == 1 else ""
        if abs(self.difference) <= self.half:
            return f"no difference shown ({shown}){single}"
        return f"{shown}: {'better' if self.difference > 0 else 'worse'}{single}"


@dataclass(frozen=True)
class Row:
    """A variant: its scores, mean over the seeds."""

    name: str
    settings: Mapping[str, object]
    seeds: list[int]
    scores: list[float]
    """Mean(TaskType) of each seed."""
    kinds: dict[str, float]
    """Mean over the seeds of each kind of task."""
    seconds: float
    """Of a training, the mean over the seeds."""
    verdict: Verdict | None
    """None: the baseline itself, or no seed in common with it."""
    failed: dict[int, str] = field(default_factory=dict)
    """Seeds that ended badly, and how."""

    @property
    def mean(self) -> float:
        """Of the scores."""
        return float(np.mean(self.scores)) if self.scores else float("nan")

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the scores between seeds; None where there are fewer than two."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class Study:
    """The result of all variants."""

    name: str
    baseline: str
    rows: list[Row]
    tasks: list[str]
    """The tasks that every run was measured on, alike."""
    left_out: list[str]
    """Tasks that some run lacks, or measured on other items."""
    mixed: list[str] = field(default_factory=list)
    """Versions and devices that are not the same for all runs."""

    @property
    def kinds(self) -> list[str]:
        """The kinds of task."""
        return list(next(row.kinds for row in self.rows if row.name == self.baseline))


def study(
    name: str,
    baseline: str,
    settings: Mapping[str, Mapping[str, object]],
    trials: Mapping[str, Sequence[Trial]],
    failed: Mapping[str, Mapping[int, str]],
) -> Study:
    """Compare every variant with the baseline, over the tasks that all runs share.

    The difference is the mean over the seeds that both have; both trained with one seed see the same data in the same
    order. Its interval adds two kinds of chance, which do not depend on each other: which items the tasks happen to
    have (paired bootstrap, the same draw for both), and which seeds were drawn (Student's t over the differences of
    the S seeds, wide where there are few).

    Raises:
        ValueError: no run of the baseline is finished, or no task is in common.
    """
    if not trials.get(baseline):
        raise ValueError(f"no run of the baseline {baseline!r} is finished; nothing can be compared with it")
    cards = [trial.card for of in trials.values() for trial in of]
    tasks = shared_tasks(trials[baseline][0].card, cards)
    everything = {task for card in cards for task in card["tasks"]}
    base = {trial.seed: Drawn.of(trial.card, tasks) for trial in trials[baseline]}
    rows = []
    for variant, mine in trials.items():
        drawn = {trial.seed: Drawn.of(trial.card, tasks) for trial in mine}
        verdict = _verdict(drawn, base) if variant != baseline and set(drawn) & set(base) else None
        kinds = {
            kind: float(np.mean([of.kinds[kind] for of in drawn.values()]))
            for kind in next(iter(base.values())).kinds
            if drawn
        }
        rows.append(
            Row(
                name=variant,
                settings=settings[variant],
                seeds=list(drawn),
                scores=[of.score for of in drawn.values()],
                kinds=kinds,
                seconds=float(np.mean([trial.seconds for trial in mine])) if mine else float("nan"),
                verdict=verdict,
                failed=dict(failed.get(variant, {})),
            )
        )
    return Study(name, baseline, rows, tasks, sorted(everything - set(tasks)))


def shared_tasks(first: Scorecard, cards: Collection[Scorecard]) -> list[str]:
    """The tasks that all of them were measured on, alike.

    Raises:
        ValueError: there is none.
    """
    tasks = [task for task in first["tasks"] if all(same_items(task, first, card) for card in cards)]
    if not tasks:
        raise ValueError("no task is in common: the variants were evaluated on different suites")
    return tasks


def verdict(differences_S: Sequence[float], redrawn_SB: np.ndarray) -> Verdict:
    """The mean of the differences of S seeds, with the interval that `study` explains; `redrawn_SB`: with other items,
    the same draw for every seed."""
    half = NORMAL * float(redrawn_SB.mean(axis=0).std(ddof=1))
    seeds = len(differences_S)
    if seeds > 1:
        student = float(t.ppf((1 + LEVEL) / 2, seeds - 1))
        half = float(np.hypot(half, student * np.std(differences_S, ddof=1) / np.sqrt(seeds)))
    return Verdict(float(np.mean(differences_S)), half, seeds)


@dataclass(frozen=True)
class Drawn:
    """Scores of one run, and of its redrawn items."""

    score: float
    """Mean(TaskType)."""
    kinds: dict[str, float]
    mean_B: np.ndarray
    """Mean(TaskType) with other items, the same draws for every run on them."""
    noted: bool
    """Whether any task notes its items; else `mean_B` is `score` again and again."""

    @classmethod
    def of(cls, card: Scorecard, names: Sequence[str]) -> "Drawn":
        """Of these of its tasks."""
        scored = {
            name: {"kind": card["tasks"][name]["kind"], "score": card["tasks"][name]["student"]} for name in names
        }
        drawn = {name: replicates(scored[name]["kind"], card["outcomes"].get(name, [])) for name in names}
        exact = kind_replicates(scored, {})
        kinds = {kind: float(values_B[0]) for kind, values_B in exact.items()}
        noted = any(of is not None for of in drawn.values())
        mean_B = mean_of_kinds(kind_replicates(scored, drawn))
        return cls(float(np.mean(list(kinds.values()))), kinds, mean_B, noted)


def _verdict(mine: Mapping[int, Drawn], base: Mapping[int, Drawn]) -> Verdict:
    seeds = sorted(set(mine) & set(base))
    found = verdict(
        [mine[seed].score - base[seed].score for seed in seeds],
        np.stack([mine[seed].mean_B - base[seed].mean_B for seed in seeds]),
    )
    return found if len(seeds) > 1 or mine[seeds[0]].noted else replace(found, half=math.inf)

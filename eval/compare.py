"""Any number of runs side by side: which differences are more than chance?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eval.bootstrap import interval, kind_replicates, mean_of_kinds, replicates, within_noise
from eval.kinds import KIND_NAMES
from eval.scorecard import Scorecard, number
from eval.tables import some

Comparison = dict[str, Any]
"""JSON: {runs, tasks: {name: {kind, metric, runs: {run: cell}}}, mean: {run: cell}, left_out}; a cell is {score} and,
but for the first run, {difference, interval, noise}: against the first run, with its 95 % interval."""


def compare(cards: Mapping[str, Scorecard]) -> Comparison:
    """The students of several scorecards, task by task, each against the first.

    A difference whose paired bootstrap interval holds zero is noise. Tasks that not every card has, or that were
    measured on other items, are left out and named.

    Raises:
        ValueError: fewer than two cards, or no task in common.
    """
    if len(cards) < 2:
        raise ValueError(f"nothing to compare: {len(cards)} run given, at least two are needed")
    first, *others = cards
    everything = {name for card in cards.values() for name in card["tasks"]}
    common = [
        name for name in cards[first]["tasks"] if all(same_items(name, cards[first], cards[run]) for run in others)
    ]
    if not common:
        raise ValueError(f"no task in common: {'; '.join(f'{run} has {_names(card)}' for run, card in cards.items())}")
    drawn = {run: {name: _drawn(card, name) for name in common} for run, card in cards.items()}
    tasks: dict[str, dict[str, Any]] = {}
    for name in sorted(common, key=lambda n: (KIND_NAMES.index(cards[first]["tasks"][n]["kind"]), n)):
        cells = {
            run: _cell(
                card["tasks"][name]["student"],
                cards[first]["tasks"][name]["student"],
                drawn[run][name],
                drawn[first][name],
                run == first,
            )
            for run, card in cards.items()
        }
        tasks[name] = {key: cards[first]["tasks"][name][key] for key in ("kind", "metric")} | {"runs": cells}
    scored = {run: {n: t | {"score": t["runs"][run]["score"]} for n, t in tasks.items()} for run in cards}
    means = {run: mean_of_kinds(kind_replicates(scored[run], drawn[run])) for run in cards}
    exact = {run: float(mean_of_kinds(kind_replicates(scored[run], {}))[0]) for run in cards}
    mean = {run: _cell(exact[run], exact[first], means[run], means[first], run == first) for run in cards}
    return {"runs": list(cards), "tasks": tasks, "mean": mean, "left_out": sorted(everything - set(common))}


def comparison_table(found: Comparison) -> RenderableType:
    """The comparison for a terminal: a score and, in green or red, a difference that is more than chance."""
    table = Table(
        title=f"Against {found['runs'][0]}", title_justify="left", caption="~ inside the noise (95 %, paired)"
    )
    for column in ("task", *found["runs"]):
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    for name, task in found["tasks"].items():
        table.add_row(name, *(_shown(cell) for cell in task["runs"].values()))
    table.add_section()
    table.add_row("Mean(TaskType)", *(_shown(cell) for cell in found["mean"].values()), style="bold")
    left_out = [
        Text(f"left out {name}: not in every run, or on other items", style="dim") for name in found["left_out"]
    ]
    return Group(table, *left_out)


def _names(card: Scorecard) -> str:
    return some(list(card["tasks"])) or "none"


def same_items(name: str, one: Scorecard, other: Scorecard) -> bool:
    """Whether two cards have a task, measured on as many items in as many subsets."""
    if name not in one["tasks"] or name not in other["tasks"]:
        return False
    shapes = [[len(next(iter(o.values()))) for o in card["outcomes"].get(name, [])] for card in (one, other)]
    return shapes[0] == shapes[1]


def _drawn(card: Scorecard, name: str) -> np.ndarray | None:
    return replicates(card["tasks"][name]["kind"], card["outcomes"].get(name, []))


def _cell(
    score: float, base: float, own_B: np.ndarray | None, base_B: np.ndarray | None, first: bool
) -> dict[str, Any]:
    if first:
        return {"score": score}
    cell: dict[str, Any] = {"score": score, "difference": score - base, "interval": None, "noise": None}
    if own_B is not None and base_B is not None:
        cell["interval"] = interval(own_B - base_B)
        cell["noise"] = within_noise(cell["interval"])
    return cell


def _shown(cell: Mapping[str, Any]) -> str:
    score = number(cell["score"])
    if "difference" not in cell:
        return score
    change = f"{100 * cell['difference']:+.1f}"
    if cell["noise"]:
        return f"{score} [dim]~{change}[/]"
    return f"{score} [{'green' if cell['difference'] > 0 else 'red'}]{change}[/]"

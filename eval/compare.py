"""Any number of runs side by side: which differences are more than chance?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from embedding.files import read_json
from eval.bootstrap import interval, kind_replicates, mean_of_kinds, replicates, within_noise
from eval.evaluate import Scores
from eval.kinds import KIND_NAMES, Kind
from eval.scorecard import Scorecard, number, percent, share
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
    noted = {run: any(of is not None for of in drawn[run].values()) for run in cards}
    means = {run: mean_of_kinds(kind_replicates(scored[run], drawn[run])) if noted[run] else None for run in cards}
    exact = {run: float(mean_of_kinds(kind_replicates(scored[run], {}))[0]) for run in cards}
    mean = {run: _cell(exact[run], exact[first], means[run], means[first], run == first) for run in cards}
    return {"runs": list(cards), "tasks": tasks, "mean": mean, "left_out": sorted(everything - set(common))}


def compare_scores(scores: Mapping[str, Scores]) -> Comparison:
    """The same for evaluations of single models (`eval.evaluate`)."""
    return compare({name: as_card(of) for name, of in scores.items()})


def as_card(scores: Scores) -> Scorecard:
    """What a comparison needs of an evaluation, as a scorecard has it; failed tasks are left out."""
    done = {name: task for name, task in scores["tasks"].items() if "score" in task}
    tasks = {name: {"kind": t["kind"], "metric": t["metric"], "student": t["score"]} for name, t in done.items()}
    return {
        "tasks": tasks,
        "outcomes": {name: task.get("outcomes", []) for name, task in done.items()},
        "items": {name: task["items"] for name, task in done.items() if "items" in task},
    }


def read_cards(paths: Sequence[Path]) -> dict[str, Scorecard]:
    """The scorecards of run folders, or of files of scores, by name.

    Raises:
        ValueError: a run that has no scorecard, a file of something else, or one given twice.
    """
    cards: dict[str, Scorecard] = {}
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"{', '.join(map(str, paths))}: one run is given twice")
    for path in paths:
        file = path / "scorecard.json" if path.is_dir() else path
        if not file.is_file():
            what = "has not been evaluated (no scorecard.json)" if path.is_dir() else "no such run or file"
            raise ValueError(f"{path}: {what}")
        found = read_json(file)
        if not isinstance(found, dict) or "tasks" not in found:
            raise ValueError(f"{file}: expected a scorecard, or scores that `eyas eval --out` wrote")
        name = path.name if path.name not in cards else str(path)
        cards[name] = found if "retention" in found else as_card(found)
    return cards


NAME_WIDTH = 16
"""Of a run or model in the table: its last letters, so that scores fit 80 columns."""


def comparison_table(found: Comparison, kept: bool = False) -> RenderableType:
    """The comparison for a terminal: a score and, in green or red, a difference that is more than chance; one whose
    chance is not known has no colour.

    `kept` adds the last one's share of the first one's score.
    """
    caption = "~ inside the noise (95 %, paired); without colour: nobody knows"
    table = Table(title=f"Against {found['runs'][0]}", title_justify="left", caption=caption)
    table.add_column("task", overflow="fold")
    for column in (*found["runs"], *(["kept"] if kept else [])):
        table.add_column(column[-NAME_WIDTH:], justify="right", no_wrap=True)
    for name, task in found["tasks"].items():
        table.add_row(name, *_cells(task["runs"], kept, task["kind"]))
    table.add_section()
    table.add_row("Mean(TaskType)", *_cells(found["mean"], kept), style="bold")
    left_out = [
        Text(f"left out {name}: not in every run, or on other items", style="dim") for name in found["left_out"]
    ]
    return Group(table, *left_out)


def _cells(runs: Mapping[str, Mapping[str, Any]], kept: bool, kind: Kind | None = None) -> list[str]:
    first, *_, last = runs.values()
    return [_shown(cell) for cell in runs.values()] + [percent(share(last["score"], first["score"], kind))] * kept


def _names(card: Scorecard) -> str:
    return some(list(card["tasks"])) or "none"


def same_items(name: str, one: Scorecard, other: Scorecard) -> bool:
    """Whether two cards have a task, measured on the same items; of older cards, which have no digest of theirs, on as
    many in as many subsets."""
    if name not in one["tasks"] or name not in other["tasks"]:
        return False
    digests = [card.get("items", {}).get(name) for card in (one, other)]
    if all(digests):
        return bool(digests[0] == digests[1])
    if one["tasks"][name]["kind"] == "clustering":
        return True  # its outcomes are not noted
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
    if cell["noise"] is None:
        return f"{score} {change}"
    if cell["noise"]:
        return f"{score} [dim]~{change}[/]"
    return f"{score} [{'green' if cell['difference'] > 0 else 'red'}]{change}[/]"

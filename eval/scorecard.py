"""What the student kept of its teacher: one dict for `scorecard.json`, a terminal table, Markdown for a model card."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eval.bootstrap import Interval, interval, kind_replicates, mean_of_kinds, replicates, within_noise
from eval.evaluate import Scores, failures, means
from eval.kinds import KIND_NAMES, KINDS, Kind

MODELS = ("teacher", "untrained", "student")
Scorecard = dict[str, Any]
"""JSON: {suite, facts, templates, tasks, kinds, retention, means, intervals, views, bytes, speed, outcomes, items,
failed, seconds}."""


def scorecard(teacher: Scores, untrained: Scores, student: Scores, facts: Mapping[str, Any] | None = None) -> Scorecard:
    """Three evaluations of one suite side by side; `facts` (sizes, widths, step...) are kept as they are.

    Retention is student / teacher, None where the teacher's score is not positive, and for kinds whose metric measures
    a change (p-MRR). `means.retention` is the mean of the kinds' retentions; `means.recovered` is (student - untrained)
    / (teacher - untrained) of Mean(TaskType): an untrained student already scores something, and a share of the
    teacher's score alone hides that. A task that failed for one of the three counts for none.

    `intervals` are 95 % paired bootstrap intervals over the items of the tasks: of each task's student score and its
    difference from the teacher's, and of the means. `outcomes` are the student's items, to compare it with other runs,
    and `items` the digests of what they are (`eval.items`). The teacher's and the untrained student's `speed` may come
    from a cache: they are there only where they were measured on the same machine as the student's.

    Raises:
        ValueError: the three evaluations are not of the same tasks.
    """
    all_scores = dict(zip(MODELS, (teacher, untrained, student), strict=True))
    failed = {
        name: {model: why[name] for model in MODELS if name in (why := failures(all_scores[model]))}
        for name in sorted({name for scores in all_scores.values() for name in failures(scores)})
    }
    names = [name for name in student["tasks"] if name not in failed]
    for model, scores in all_scores.items():
        if absent := [name for name in names if name not in scores["tasks"]]:
            raise ValueError(
                f"the {model}'s scores lack {', '.join(absent)}: the three evaluations are of different suites"
            )
    tasks: dict[str, dict[str, Any]] = {}
    for name in names:
        values = {model: all_scores[model]["tasks"][name]["score"] for model in MODELS}
        shown = {key: student["tasks"][name][key] for key in ("kind", "metric", "instruction")}
        tasks[name] = shown | values | {"retention": share(values["student"], values["teacher"], shown["kind"])}
    averages = {
        model: means({name: {"kind": task["kind"], "score": task[model]} for name, task in tasks.items()})
        for model in MODELS
    }
    kinds = {kind: {model: averages[model]["kinds"][kind] for model in MODELS} for kind in averages["student"]["kinds"]}
    retention = {kind: share(of["student"], of["teacher"], kind) for kind, of in kinds.items()}
    known = [value for value in retention.values() if value is not None]
    of_type = {model: averages[model]["means"]["task_type"] for model in MODELS}
    return {
        "suite": student["suite"],
        "facts": dict(facts or {}),
        "templates": {model: all_scores[model]["template"] for model in MODELS},
        "tasks": tasks,
        "kinds": kinds,
        "retention": retention,
        "means": {
            "task": {model: averages[model]["means"]["task"] for model in MODELS},
            "task_type": of_type,
            "retention": float(np.mean(known)) if known else None,
            "recovered": _recovered(of_type),
        },
        "intervals": _intervals(all_scores, tasks, [kind for kind, kept in retention.items() if kept is not None]),
        "views": student.get("views", {}),
        "bytes": student.get("bytes"),
        "speed": _speeds(all_scores),
        "outcomes": {name: student["tasks"][name].get("outcomes", []) for name in tasks},
        "items": {name: digest for name in tasks if (digest := student["tasks"][name].get("items"))},
        "failed": failed,
        "seconds": {model: all_scores[model]["seconds"]["total"] for model in MODELS},
    }


def share(student: float, teacher: float, kind: Kind | None = None) -> float | None:
    """student / teacher; None where a share of the teacher's score means nothing."""
    return None if teacher <= 0 or (kind and KINDS[kind].is_change) else student / teacher


def _intervals(all_scores: Mapping[str, Scores], tasks: Mapping[str, Any], shared: Sequence[Kind]) -> dict[str, Any]:
    """{tasks: {name: {student, difference}}, task_type, retention, recovered}; {} where no items were noted.

    `shared`: the kinds whose retention counts.
    """
    drawn: dict[str, dict[str, np.ndarray]] = {model: {} for model in MODELS}
    of_tasks: dict[str, dict[str, Interval]] = {}
    for name, task in tasks.items():
        of = {m: replicates(task["kind"], all_scores[m]["tasks"][name].get("outcomes", [])) for m in MODELS}
        known = {model: values for model, values in of.items() if values is not None}
        if len(known) == len(MODELS):
            for model, values in known.items():
                drawn[model][name] = values
            difference = known["student"] - known["teacher"]
            of_tasks[name] = {"student": interval(known["student"]), "difference": interval(difference)}
    if not of_tasks:
        return {}
    by_kind = {
        m: kind_replicates({name: task | {"score": task[m]} for name, task in tasks.items()}, drawn[m]) for m in MODELS
    }
    teacher, untrained, student = (mean_of_kinds(by_kind[model]) for model in MODELS)
    found: dict[str, Any] = {"tasks": of_tasks, "task_type": interval(student)}
    if shared and all(kind in by_kind["teacher"] and (by_kind["teacher"][kind] > 0).all() for kind in shared):
        kept = [by_kind["student"][kind] / by_kind["teacher"][kind] for kind in shared]
        found["retention"] = interval(np.mean(kept, axis=0))
    if (teacher > untrained).all():
        found["recovered"] = interval((student - untrained) / (teacher - untrained))
    return found


def _recovered(of: Mapping[str, float | None]) -> float | None:
    teacher, untrained, student = (of[model] for model in MODELS)
    if teacher is None or untrained is None or student is None or teacher <= untrained:
        return None
    return (student - untrained) / (teacher - untrained)


def _speeds(all_scores: Mapping[str, Scores]) -> dict[str, Any]:
    speeds = {model: of for model in MODELS if (of := all_scores[model].get("speed"))}
    here = speeds.get("student", {}).get("on")
    return {model: of for model, of in speeds.items() if of.get("on") == here}


def view_rows(card: Scorecard) -> list[tuple[str, int, float, float]]:
    """(name, bytes of a vector, Mean(TaskType), its share of the full vectors' mean) of the student, full first; both
    means are over the tasks of the card that the smaller vectors have a score of too."""
    whole = card["means"]["task_type"]["student"]
    if not card["views"] or not whole:
        return []
    found = [("full", card["bytes"], whole, 1.0)]
    for name, view in card["views"].items():
        if "means" not in view:
            continue
        mean, full = view["means"]["task_type"], whole
        if "tasks" in view:  # older cards have the means alone
            both = [task for task in card["tasks"] if task in view["tasks"]]
            mean = _task_type(card, {task: view["tasks"][task] for task in both})
            full = _task_type(card, {task: card["tasks"][task]["student"] for task in both})
        if mean is not None and full:
            found.append((name, view["bytes"], mean, mean / full))
    return found


def view_gaps(views: Mapping[str, Any], tasks: Collection[str]) -> dict[str, list[str]]:
    """View -> those of the tasks that failed with such vectors, and so count in neither of its two means."""
    known = {name: view["tasks"] for name, view in views.items() if "tasks" in view}
    found = {name: [task for task in tasks if task not in scores] for name, scores in known.items()}
    return {name: failed for name, failed in found.items() if failed}


def _task_type(card: Scorecard, scores: Mapping[str, float]) -> float | None:
    tasks = {name: {"kind": card["tasks"][name]["kind"], "score": score} for name, score in scores.items()}
    mean: float | None = means(tasks)["means"]["task_type"]
    return mean


SPEED_HEADER = ("encoding", "teacher", "student", "student / teacher")
HEADER = ("task", "metric", "teacher", "untrained", "student", "±", "kept")


def rows(card: Scorecard) -> list[tuple[str, ...]]:
    """The card as rows of text under `HEADER`, ending with the means.

    ± is half the width of the student's 95 % interval; a share with ≈ is inside the noise of the teacher's score.
    """
    lines: list[tuple[str, ...]] = []
    intervals = card["intervals"].get("tasks", {})
    for name, task in sorted(card["tasks"].items(), key=lambda item: (KIND_NAMES.index(item[1]["kind"]), item[0])):
        chance = intervals.get(name)
        same = " ≈" if chance and within_noise(chance["difference"]) else ""
        scores = [number(task[model]) for model in MODELS]
        lines.append(
            (
                name,
                task["metric"],
                *scores,
                _half(chance["student"] if chance else None),
                percent(task["retention"]) + same,
            )
        )
    for name, key in (("Mean(Task)", "task"), ("Mean(TaskType)", "task_type")):
        of = card["means"][key]
        known = of["student"] is not None
        kept = percent(share(of["student"], of["teacher"]) if known else None)
        lines.append((name, "", *(number(of[m]) for m in MODELS), _half(card["intervals"].get(key)), kept))
    return lines


def _half(found: Sequence[float] | None) -> str:
    return "" if found is None else f"{50 * (found[1] - found[0]):.1f}"


def number(value: float | None) -> str:
    """A score on the 0 to 100 scale that MTEB's tables use."""
    return "–" if value is None else f"{100 * value:.1f}"


def percent(value: float | None) -> str:
    """A share."""
    return "–" if value is None else f"{100 * value:.1f} %"


def summary(card: Scorecard) -> str:
    """The card in one line."""
    kept, recovered = (
        percent(card["means"][key]) + _range(card["intervals"].get(key)) for key in ("retention", "recovered")
    )
    return f"kept {kept} of the teacher's scores{left_out(card)}, recovered {recovered} of the gap"


def left_out(card: Scorecard) -> str:
    """Which kinds `means.retention` does not count, as words to add; "" where it counts all."""
    kinds = [KINDS[kind].title for kind in KIND_NAMES if card["retention"].get(kind, 0.0) is None]
    return f" (without {', '.join(kinds)}, of which no share can be kept)" if kinds else ""


def _range(found: Sequence[float] | None) -> str:
    return "" if found is None else f" ({100 * found[0]:.1f} to {100 * found[1]:.1f})"


def terminal_table(card: Scorecard) -> RenderableType:
    """The card for a terminal: the tasks, the student's smaller vectors, the failed tasks with their reasons."""
    table = Table(title=f"Scorecard: {card['suite']}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    # mteb's names of the metrics stand in the JSON, the Markdown and the report: here 80 columns must do
    shown = [at for at, column in enumerate(HEADER) if column != "metric"]
    for at in shown:
        table.add_column(HEADER[at], justify="right" if at else "left", no_wrap=at > 0, overflow="fold")
    lines = rows(card)
    for at, line in enumerate(lines):
        style = "bold" if at >= len(lines) - 2 else None
        table.add_row(*(line[k] for k in shown), style=style, end_section=at == len(lines) - 3)
    parts: list[RenderableType] = [table, Text(summary(card), style="bold")]
    if card["intervals"]:
        parts.append(Text("± half the 95 % interval; ≈ within the noise of the teacher's score", style="dim"))
    if found := view_rows(card):
        smaller = Table(title="The student's vectors, smaller", title_justify="left", box=SIMPLE_HEAD)
        for column in ("stored", "bytes", "Mean(TaskType)", "of the full"):
            smaller.add_column(column, justify="left" if column == "stored" else "right")
        for name, size, mean, kept in found:
            smaller.add_row(name, f"{size:,}", number(mean), percent(kept))
        parts.append(smaller)
    parts += _gaps(card["views"], card["tasks"])
    if quick := speed_rows(card):
        speed = Table(title="Speed", title_justify="left", box=SIMPLE_HEAD)
        for column in SPEED_HEADER:
            speed.add_column(column, justify="left" if column == "encoding" else "right")
        for line in quick:
            speed.add_row(*line)
        parts += [speed, Text(speed_note(card), style="dim")]
    return Group(
        *parts, *_failed({name: "; ".join(dict.fromkeys(why.values())) for name, why in card["failed"].items()})
    )


def speed_rows(card: Scorecard) -> list[tuple[str, ...]]:
    """(what, teacher, student, times as much) of `eval.speed`, for what was measured of the student."""
    of = card.get("speed", {})
    found: list[tuple[str, ...]] = []
    for name, value in of.get("student", {}).items():
        base = of.get("teacher", {}).get(name)
        if name != "on":
            times = f"{value / base:.1f} ×" if base else "–"
            found.append((name, "–" if base is None else f"{base:,}", f"{value:,}", times))
    return found


def speed_note(card: Scorecard) -> str:
    """On what the speeds were measured, and why the teacher has none; "" where nobody noted it."""
    of = card.get("speed", {})
    where = of.get("student", {}).get("on")
    absent = "" if "teacher" in of else "; the teacher was not measured there"
    return f"On {where}{absent}." if where else ""


def scores_table(scores: Scores, title: str = "Scores") -> RenderableType:
    """One evaluation for a terminal."""
    table = Table(title=f"{title}: {scores['suite']}", title_justify="left")
    for column in ("task", "metric", "score"):
        table.add_column(column, justify="right" if column == "score" else "left")
    for name, task in scores["tasks"].items():
        if "score" in task:
            table.add_row(name, task["metric"], number(task["score"]))
    table.add_section()
    table.add_row("Mean(Task)", "", number(scores["means"]["task"]), style="bold")
    table.add_row("Mean(TaskType)", "", number(scores["means"]["task_type"]), style="bold")
    full = scores["means"]["task_type"]
    smaller = [
        Text(f"{name}: {number(of['means']['task_type'])}, {of['bytes']:,} bytes a vector (full: {scores['bytes']:,})")
        for name, of in scores.get("views", {}).items()
        if full is not None and "means" in of
    ]
    smaller += _gaps(scores.get("views", {}), [name for name, task in scores["tasks"].items() if "score" in task])
    speed = [
        Text(f"{name}: {value}" if isinstance(value, str) else f"{name}: {value:,}")
        for name, value in scores.get("speed", {}).items()
    ]
    return Group(table, *smaller, *speed, *_failed(failures(scores)))


def _gaps(views: Mapping[str, Any], tasks: Collection[str]) -> list[Text]:
    gaps = view_gaps(views, tasks)
    return [Text(f"{name}: without {', '.join(failed)}, which failed", style="red") for name, failed in gaps.items()]


def _failed(reasons: Mapping[str, str]) -> list[Text]:
    return [Text.assemble(("failed ", "bold red"), (f"{name}: ", "bold"), why) for name, why in reasons.items()]


def markdown(card: Scorecard) -> str:
    """The card for a model card."""
    titles = sorted(card["retention"], key=KIND_NAMES.index)
    lines = [
        f"Suite `{card['suite']}`: {summary(card)}.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|---|---|---:|---:|---:|---:|---:|",
        *("| " + " | ".join(line) + " |" for line in rows(card)),
        "",
        "Kept by kind: "
        + ", ".join(f"{KINDS[kind].title} {percent(card['retention'][kind])}" for kind in titles)
        + ".",
    ]
    lines += [
        f"Stored as {name} ({size:,} bytes a vector) it keeps {percent(kept)} of its own Mean(TaskType)."
        for name, size, _, kept in view_rows(card)[1:]
    ]
    gaps = view_gaps(card["views"], card["tasks"])
    lines += [f"\n{name}: without {', '.join(tasks)}, which failed." for name, tasks in gaps.items()]
    if quick := speed_rows(card):
        lines += ["", "| " + " | ".join(SPEED_HEADER) + " |", "|---|---:|---:|---:|"]
        lines += ["| " + " | ".join(line) + " |" for line in quick]
        lines += ["", speed_note(card)]
    lines += [f"\nFailed: `{name}`: {'; '.join(dict.fromkeys(why.values()))}." for name, why in card["failed"].items()]
    return "\n".join(lines) + "\n"

"""The sections of the report that show texts and vectors themselves: the trade-off, the map, the worst regressions."""

from collections.abc import Mapping
from html import escape
from typing import Any

from eval.figures import Guide, legend, missing, point_panel, trade_panel
from eval.scorecard import SPEED_HEADER, Scorecard, number, speed_rows, view_rows


def trade_off(card: Scorecard) -> str:
    """What a vector costs and what it is worth, with the teacher's line."""
    points = [(name, float(size), mean) for name, size, mean, _ in view_rows(card)]
    if len(points) < 2:
        return ""
    teacher = Guide("teacher, full vectors", card["means"]["task_type"]["teacher"], "teacher")
    return trade_panel("Mean(TaskType) by size", points, teacher, number)


def speed(card: Scorecard) -> str:
    """Texts a second at several lengths, and the peak of a GPU's memory, of teacher and student."""
    head = "".join(f'<th class="{"n" if k else ""}">{title}</th>' for k, title in enumerate(SPEED_HEADER))
    body = "".join(
        "<tr>" + "".join(f'<td class="{"n" if k else ""}">{escape(v)}</td>' for k, v in enumerate(line)) + "</tr>"
        for line in speed_rows(card)
    )
    return f'<div class="card scroll"><table><tr>{head}</tr>{body}</table></div>'


def embedding_map(looks: Mapping[str, Any]) -> str:
    """The same texts by teacher and student, coloured by what they are."""
    found = looks["map"]
    if not found:
        return missing("No map:", "no clustering or classification task was measured for both models.")
    colours = {name: f"term{k % 5}" if k < 5 else "part5" for k, name in enumerate(found["names"])} | {"": "untrained"}
    everything = [*found["teacher"], *found["student"]]
    lows = [min(point[axis] for point in everything) for axis in (0, 1)]
    spans = [max(point[axis] for point in everything) - lows[axis] or 1.0 for axis in (0, 1)]
    clouds = []
    for model in ("teacher", "student"):
        points = [
            ((x - lows[0]) / spans[0], (y - lows[1]) / spans[1], colours[label], f"{label or 'other'}: {text}")
            for (x, y), label, text in zip(found[model], found["labels"], found["texts"], strict=True)
        ]
        clouds.append(point_panel(model, points, note=f"{len(points)} texts"))
    others = [("other", "untrained", False)] if "" in found["labels"] else []
    key = legend([(name, colours[name], False) for name in found["names"]] + others)
    return f'<div class="card">{key}<div class="clouds">{"".join(clouds)}</div></div>'


def regressions(looks: Mapping[str, Any]) -> str:
    """The queries that lost most, with what each model found first and what it should have found."""
    cards = []
    for row in looks["regressions"]:
        ranks = row["ranks"]
        columns = (
            ("good", f"the right one: place {ranks['teacher']} → {ranks['student']}", row["right"]),
            ("teacher", "the teacher's first", "the right one" if ranks["teacher"] == 1 else row["teacher"]),
            ("student", "the student's first", row["student"]),
        )
        texts = "".join(
            f'<div><h4 style="--key:var(--{colour})">{title}</h4><p>{escape(text)}</p></div>'
            for colour, title, text in columns
        )
        cards.append(
            f'<div class="card lost"><q>{escape(row["query"])}</q><small>{escape(row["task"])}</small>'
            f"<div>{texts}</div></div>"
        )
    return "".join(cards) or missing("None:", "no query's relevant document fell, or no small search was measured.")

"""The sections of the report: each turns what a run left behind into HTML, or says what is missing."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval.figures import Guide, Series, bar, gauge, line_panel, missing, ring, scale, seconds, shares, short
from eval.kinds import KIND_NAMES, KINDS
from eval.scorecard import HEADER, MODELS, Scorecard, left_out, number, percent, rows, share, view_gaps, view_rows

Metrics = Sequence[Mapping[str, Any]]
"""The lines of metrics.jsonl."""

TITLES = {
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_s": "Tokens per second",
    "steps_per_s": "Steps per second",
    "padding": "Padding",
}
HIGHER_IS_BETTER = "MTEB's own metrics, on a scale of 0 to 100; higher is better."


def hero(card: Scorecard) -> str:
    """What was kept, in two rings and one line from the untrained student to the teacher."""
    mean = card["means"]
    of = mean["task_type"]
    if of["student"] is None:
        return missing("No scores:", "every task failed; the reasons are below.")
    rings = ring(mean["retention"], "of the teacher's scores kept", "student")
    rings += ring(mean["recovered"], "of the gap to the teacher closed", "teacher")
    line = scale(
        [(model, of[model], model) for model in ("untrained", "student", "teacher")],
        (of["untrained"], of["student"]),
        number,
    )
    tasks, kinds = len(card["tasks"]), len(card["retention"])
    words = (
        f"The student reaches <b>{number(of['student'])}</b> where its teacher reaches <b>{number(of['teacher'])}</b>"
        f" and where it started at <b>{number(of['untrained'])}</b>: Mean(TaskType) over {_count(tasks, 'task')} of"
        f" {_count(kinds, 'kind')}."
    )
    if card["facts"].get("teacher") == "none":
        words += " There was no teacher: in its place stands the model before this training."
    if chance := card["intervals"].get("retention"):
        low, high = (f"{100 * end:.0f}" for end in chance)
        words += f" On other texts like these it would keep between <b>{low} %</b> and <b>{high} %</b>"
        words += f"{left_out(card)}: a 95 % interval."
    return f'<div class="card hero">{rings}<div class="lead"><p>{words}</p>{line}</div></div>{facts(card["facts"])}'


def facts(found: Mapping[str, Any], rest: str = "run") -> str:
    """Sizes, widths, speed: a line for each model, one for each other group, and one named `rest` for what is left.

    `{"width": {"teacher": 384, "student": 256}}` and `{"student": {"width": 256}}` say the same.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, value in found.items():
        if isinstance(value, Mapping) and set(value) <= set(MODELS):
            for model, one in value.items():
                groups.setdefault(model, {})[name] = one
        elif isinstance(value, Mapping):
            groups.setdefault(name, {}).update(_flat(value))
        elif name in MODELS:
            groups.setdefault(name, {})["model"] = value
    groups[rest] = {name: v for name, v in found.items() if not isinstance(v, Mapping) and name not in MODELS}
    lines = []
    for name, values in groups.items():
        items = "".join(
            f"<span>{escape(key.replace('_', ' '))} <b>{escape(_plain(value))}</b></span>"
            for key, value in values.items()
            if len(_plain(value)) <= 60
        )
        colour = name if name in MODELS else "faint"
        if items:
            lines.append(f'<li><i style="background:var(--{colour})"></i><em>{escape(name)}</em>{items}</li>')
    return f'<ul class="facts">{"".join(lines)}</ul>' if lines else ""


def retention(card: Scorecard) -> str:
    """The share of the teacher's score kept, by kind; the end of a track is the teacher, the mark the untrained."""
    lines = []
    for kind in sorted(card["retention"], key=KIND_NAMES.index):
        kept, of = card["retention"][kind], card["kinds"][kind]
        title = ", ".join(f"{model} {number(of[model])}" for model in MODELS)
        figure = gauge(kept or 0.0, percent(kept), title, share(of["untrained"], of["teacher"], kind) or 0.0)
        lines.append(f'<div class="name">{KINDS[kind].title}<small>{_metrics(card, kind)}</small></div>{figure}')
    return f'<div class="card rows">{"".join(lines)}</div>'


def views(card: Scorecard) -> str:
    """What the student's vectors are worth cut short or stored with fewer bits."""
    lines = []
    for name, size, mean, kept in view_rows(card):
        title = f"Mean(TaskType) {number(mean)}"
        figure = gauge(kept, percent(kept), title)
        lines.append(f'<div class="name">{escape(name)}<small>{size:,} bytes, {number(mean)}</small></div>{figure}')
    wrong = "".join(missing(name, v["failed"]) for name, v in card["views"].items() if "failed" in v)
    gaps = view_gaps(card["views"], card["tasks"])
    wrong += "".join(missing(name, f"without {', '.join(failed)}, which failed") for name, failed in gaps.items())
    return f'<div class="card rows">{"".join(lines)}</div>{wrong}'


def tasks(card: Scorecard) -> str:
    """Three bars a task, grouped by kind, and the numbers as a table to open."""
    blocks = []
    for kind in sorted({task["kind"] for task in card["tasks"].values()}, key=KIND_NAMES.index):
        lines = []
        for name, task in sorted(card["tasks"].items()):
            if task["kind"] == kind:
                three = "".join(bar(task[m], m, number(task[m]), f"{m}: {task[m]:.4f}") for m in MODELS)
                shown = name.partition("/")[2] or name
                kept = "" if task["retention"] is None else f"<small>{percent(task['retention'])} kept</small>"
                lines.append(f'<div class="name">{escape(shown)}{kept}</div><div>{three}</div>')
        blocks.append(f'<h3>{KINDS[kind].title}</h3><div class="rows">{"".join(lines)}</div>')
    key = "".join(f'<span><i style="--key:var(--{model})"></i>{model}</span>' for model in MODELS)
    return f'<div class="card"><div class="legend">{key}</div>{"".join(blocks)}{_table(card)}</div>'


def curves(metrics: Metrics, card: Scorecard | None) -> str:
    """Scores of each kind while training, up to the finished student, and the teacher's line; all of the `curve` of the
    card where a smaller suite was used while training."""
    panels = []
    ends = None if card is None else card.get("curve", card)
    last = max((float(line["step"]) for line in metrics), default=0.0)
    names = sorted({key for line in metrics for key in line if key.startswith("eval/")}, key=_curve_order)
    for name in names:
        kind = name.removeprefix("eval/")
        if kind not in (*KIND_NAMES, "mean"):
            continue
        title = "Mean(TaskType)" if kind == "mean" else KINDS[kind].title  # type: ignore[index]
        points, guides = _points(metrics, name), []
        of = {} if ends is None else ends["means"]["task_type"] if kind == "mean" else ends["kinds"].get(kind, {})
        if of.get("student") is not None:
            guides = [Guide("teacher", of["teacher"], "teacher")]
            if points[0][0] > 0:
                points = [(0.0, of["untrained"]), *points]
            else:  # measured at step 0 after a start that is not the untrained student
                guides.append(Guide("untrained", of["untrained"], "untrained"))
            if last > points[-1][0]:
                points.append((last, of["student"]))
        curve = [Series("student", points, "student")]
        panels.append(line_panel(title, curve, guides, form=number, axis=lambda v: f"{100 * v:.0f}", marks=True))
    if not panels:
        return missing("No scores during training:", "the run evaluated only at its end (tracking.evaluate_every).")
    return f'<div class="panels">{"".join(panels)}</div>'


def training(metrics: Metrics) -> str:
    """The loss with its terms, and the rest of the training log."""
    if not any("loss" in line for line in metrics):
        return missing("No training log:", "metrics.jsonl has no line with a loss.")
    terms = sorted({key for line in metrics for key in line if key.startswith("loss/")})
    colours = [f"term{k % 5}" for k in range(len(terms))]
    series = [Series(_term(name), _points(metrics, name), colour) for name, colour in zip(terms, colours, strict=True)]
    panels = []
    if len(terms) != 1:
        panels.append(line_panel("Loss", [Series("loss", _points(metrics, "loss"), "term0")]))
    panels += [line_panel(f"Loss: {s.name}", [s]) for s in series]
    for name in TITLES:
        points = _points(metrics, name)
        if points:
            note = f"peak {short(max(y for _, y in points))}" if name == "lr" else ""
            panels.append(line_panel(TITLES[name], [Series(name, points, "soft")], note=note))
    return f'<div class="panels">{"".join(panels)}</div>{_stages(metrics)}'


def timings(found: Mapping[str, float]) -> str:
    """Seconds of each step of the pipeline."""
    parts = [(name, float(value)) for name, value in found.items() if name != "total"]
    if not parts:
        return missing("No timings:", "timings.json names no step.")
    total = sum(value for _, value in parts)
    return f'<div class="card"><p class="sum"><b>{seconds(total)}</b> in all</p>{shares(parts, seconds)}</div>'


def data(summary: Mapping[str, Any]) -> str:
    """Rows read, kept and dropped for each source, with the reasons."""
    sources = summary.get("sources")
    if not isinstance(sources, Mapping) or not sources:
        return missing("No sources:", "summary.json has no `sources`.")
    lines = []
    for name, part in sources.items():
        dropped = part.get("dropped", {})
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in dropped.items()) or "–"
        cells = [part.get("rows"), part.get("examples"), part.get("held out"), sum(dropped.values())]
        numbers = "".join(f'<td class="n">{_plain(value)}</td>' for value in cells)
        lines.append(f"<tr><td>{escape(str(name))}</td>{numbers}<td>{escape(reasons)}</td></tr>")
    head = "".join(f'<th class="n">{title}</th>' for title in ("rows read", "examples", "held out", "dropped"))
    table = f"<table><tr><th>source</th>{head}<th>why dropped</th></tr>{''.join(lines)}</table>"
    return f'<div class="card scroll">{table}</div>{facts(_counts(summary), "in all")}'


def searches(found: Mapping[str, Any]) -> str:
    """Queries with the texts the student finds for them; a relevant one is marked."""
    cards = []
    for search in found.get("searches", []):
        hits = []
        for hit in search["hits"]:
            right = bool(hit.get("relevant"))
            mark = '<span class="mark">✓ the right one</span> ' if right else ""
            text = " ".join(hit["text"].split())
            text = text if len(text) <= 240 else text[:239] + "…"
            hits.append(
                f'<li class="{"right" if right else ""}"><b>{hit["score"]:.3f}</b><p>{mark}{escape(text)}</p></li>'
            )
        cards.append(f'<div class="card search"><q>{escape(search["query"])}</q><ol>{"".join(hits)}</ol></div>')
    if not cards:
        return missing("No searches:", "searches.json holds none.")
    return f'<div class="searches">{"".join(cards)}</div>'


def failed(card: Scorecard) -> str:
    """The tasks without a score, with their reasons."""
    lines = "".join(
        f"<li><b>{escape(name)}</b> ({', '.join(why)}): {escape('; '.join(dict.fromkeys(why.values())))}</li>"
        for name, why in card["failed"].items()
    )
    return f'<div class="card failed"><ul>{lines}</ul></div>'


def setup(card: Scorecard) -> str:
    """Templates, instructions and facts: what must be known to measure the same again."""
    lines: list[tuple[str, str]] = [("suite", card["suite"])]
    for model in MODELS:
        for role, prompt in card["templates"][model].items():
            lines.append((f"{model}, {role}", prompt.replace("\n", "⏎\n") or "the bare text"))
    lines += [(f"instruction, {name}", task["instruction"]) for name, task in sorted(card["tasks"].items())]
    lines += [(name.replace("_", " "), _plain(value)) for name, value in _flat(card["facts"])]
    body = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in lines)
    return f'<div class="card"><dl>{body}</dl></div>'


# ------------------------------------------------------------------------------------------------------------- helpers


def _table(card: Scorecard) -> str:
    lines = rows(card)
    head = "".join(f'<th class="{"n" if k > 1 else ""}">{title}</th>' for k, title in enumerate(HEADER))
    body = ""
    for at, line in enumerate(lines):
        cells = "".join(f'<td class="{"n" if k > 1 else ""}">{escape(cell)}</td>' for k, cell in enumerate(line))
        body += f'<tr class="{"mean" if at >= len(lines) - 2 else ""}">{cells}</tr>'
    table = f"<table><tr>{head}</tr>{body}</table>"
    return f'<details><summary>All numbers</summary><div class="scroll">{table}</div></details>'


def _stages(metrics: Metrics) -> str:
    """Where the time of a step goes, averaged over the log."""
    names = sorted({key for line in metrics for key in line if key.startswith("time/")})
    parts = []
    for name in names:
        values = [line[name] for line in metrics if name in line]
        parts.append((name.removeprefix("time/"), sum(values) / len(values)))
    if not parts:
        return ""
    whole = sum(value for _, value in parts) or 1.0
    figure = shares([(name, value / whole) for name, value in parts], lambda share: "")
    return f'<h3>Where a step spends its time</h3><div class="card">{figure}</div>'


def _points(metrics: Metrics, name: str) -> list[tuple[float, float]]:
    return [(float(line["step"]), float(line[name])) for line in metrics if line.get(name) is not None]


def _curve_order(name: str) -> tuple[int, str]:
    order = ["eval/mean", *(f"eval/{kind}" for kind in KIND_NAMES)]
    return (order.index(name) if name in order else len(order)), name


def _term(name: str) -> str:
    """`loss/0_match` -> `match`."""
    return name.removeprefix("loss/").lstrip("0123456789_").replace("_", " ")


def _metrics(card: Scorecard, kind: str) -> str:
    return ", ".join(sorted({task["metric"] for task in card["tasks"].values() if task["kind"] == kind}))


def _counts(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The plain numbers of the summary, those one level down under their heading."""
    counts: dict[str, Any] = {name: value for name, value in summary.items() if isinstance(value, int | float)}
    for name, part in summary.items():
        numbers = {k: v for k, v in part.items() if isinstance(v, int | float)} if isinstance(part, Mapping) else {}
        if numbers and name not in ("sources", "dropped"):
            counts[name] = numbers
    return counts


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    lines: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{name}, ")
        else:
            lines.append((f"{prefix}{name}", value))
    return lines


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) and abs(value) < 1_000_000 else short(value)

"""A study's result for a terminal, as Markdown, as CSV, and as one self-contained HTML page."""

import csv
import io
import math
from collections.abc import Sequence
from html import escape

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eval.figures import seconds
from eval.report import CSS, MARK
from eval.study import Row, Study

ROW_HEIGHT = 34
AXIS_HEIGHT = 24
"""Of the scale below a picture's rows."""
TICKS = 6
"""About so many numbers on a scale."""


def terminal(found: Study) -> RenderableType:
    """The table without the kinds of tasks, for which 80 columns have no room, and what is missing."""
    title = f"{found.name}: Mean(TaskType) x 100"
    table = Table(title=title, title_justify="left", caption=_caption(found), box=SIMPLE_HEAD)
    shown = {at: column for at, column in enumerate(_header(found)) if column not in found.kinds}
    for column in shown.values():
        left = column in ("variant", "against the baseline")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for row in found.rows:
        cells = _cells(row, found)
        table.add_row(*(cells[at] for at in shown), style="bold" if row.name == found.baseline else "")
    return Group(table, *(Text(line, style="yellow") for line in _missing(found)))


def markdown(found: Study) -> str:
    """The table and sentences, with the settings of every variant."""
    header = _header(found)
    lines = [f"# {found.name}", "", f"Mean(TaskType) x 100 over {', '.join(found.tasks)}. {_caption(found)}", ""]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(row, found)) + " |" for row in found.rows]
    lines += ["", *(f"- `{row.name}`: {_settings(row)}" for row in found.rows), *(f"- {x}" for x in _missing(found))]
    return "\n".join(lines) + "\n"


def table_csv(found: Study) -> str:
    """One line for each variant, numbers unrounded."""
    kinds = found.kinds
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ["variant", "seeds", "mean", "deviation", "difference", "half_width_95", "training_s", "failed", "settings"]
    writer.writerow([*names, *kinds])
    for row in found.rows:
        verdict = [row.verdict.difference, row.verdict.half] if row.verdict else ["", ""]
        values = [row.name, len(row.seeds), row.mean, "" if row.deviation is None else row.deviation, *verdict]
        writer.writerow([*values, row.seconds, len(row.failed), _settings(row), *(row.kinds.get(k, "") for k in kinds)])
    return out.getvalue()


def page(found: Study, recipe: str) -> str:
    """One HTML file without scripts or network; `recipe` is the study's own YAML."""
    header = "".join(f"<th>{escape(name)}</th>" for name in _header(found))
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(row, found)) + "</tr>" for row in found.rows
    )
    settings = "".join(f"<li><b>{escape(row.name)}</b> {escape(_settings(row))}</li>" for row in found.rows)
    missing = "".join(f'<p class="missing">{escape(line)}</p>' for line in _missing(found))
    style = CSS.read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(found.name)} · eyas study</title><style>{style}\n"
        "td,th{padding:4px 10px 4px 0;font-size:12px;text-align:right;vertical-align:top;white-space:nowrap}"
        "td:first-child,th:first-child,td:nth-child(5),th:nth-child(5){text-align:left}td:nth-child(5){white-space:normal}"
        ".wide{overflow-x:auto}.wide svg text{fill:var(--ink);font-size:13px}"
        ".wide svg .tick{fill:var(--soft);font-size:11px;text-anchor:middle}</style></head>\n<body><main>"
        f"<header>{MARK}<div><h1>{escape(found.name)}</h1><p>against {escape(found.baseline)}</p></div></header>"
        f"<section><h2>Differences from the baseline</h2><p>{escape(_caption(found))}</p>"
        f'<div class="card wide">{differences_svg(found.rows, found.baseline)}</div>{missing}</section>'
        f"<section><h2>Scores of every training</h2><p>A dot for each seed, a line at their mean.</p>"
        f'<div class="card wide">{scores_svg(found.rows)}</div></section>'
        f'<section><h2>Table</h2><p>Over {escape(", ".join(found.tasks))}.</p><div class="card wide"><table><thead><tr>'
        f"{header}</tr></thead><tbody>{body}</tbody></table></div></section>"
        f"<section><h2>Settings</h2><ul>{settings}</ul><pre>{escape(recipe)}</pre></section></main></body></html>\n"
    )


def differences_svg(rows: Sequence[Row], baseline: str) -> str:
    """Each variant's difference with its 95 % interval, on one axis in points, a line at zero."""
    marks = [
        (row.name, 100 * row.verdict.difference, 100 * row.verdict.half, row.verdict.sentence)
        for row in rows
        if row.verdict is not None and math.isfinite(row.verdict.half)
    ]
    if not marks:
        return f"<p>nothing to compare with {escape(baseline)} yet</p>"
    reach = max(*(abs(middle) + half for _, middle, half, _ in marks), 0.1) * 1.1
    shapes = _scale(-reach, reach, 230, 890, len(marks), sign=True)
    shapes.append(f'<line x1="560" x2="560" y1="0" y2="{ROW_HEIGHT * len(marks)}" stroke="var(--faint)"/>')
    for k, (name, middle, half, sentence) in enumerate(marks):
        y = ROW_HEIGHT * (k + 0.5)
        left, at, right = (560 + 330 * x / reach for x in (middle - half, middle, middle + half))
        colour = "--faint" if abs(middle) <= half else "--good" if middle > 0 else "--bad"
        shapes.append(
            f'<g><title>{escape(sentence)}</title><line x1="{left:.1f}" x2="{right:.1f}" y1="{y}" y2="{y}" '
            f'stroke="var({colour})" stroke-width="3"/><circle cx="{at:.1f}" cy="{y}" r="6" fill="var({colour})"/>'
            f'<text x="0" y="{y + 4}">{escape(name)}: {middle:+.1f} ± {half:.1f}</text></g>'
        )
    return _svg(shapes, len(marks), "differences from the baseline")


def scores_svg(rows: Sequence[Row]) -> str:
    """Every training's score, a row of dots for each variant."""
    scored = [row for row in rows if row.scores]
    scores = [score for row in scored for score in row.scores]
    low, high = min(scores), max(scores)
    room = 0.1 * (high - low) or 0.01
    low, high = low - room, high + room
    shapes = _scale(100 * low, 100 * high, 240, 890, len(scored))
    for k, row in enumerate(scored):
        y = ROW_HEIGHT * (k + 0.5)
        middle = 240 + 650 * (row.mean - low) / (high - low)
        shapes.append(f'<text x="0" y="{y + 4}">{escape(row.name)}: {100 * row.mean:.1f}</text>')
        shapes.append(f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{y - 12}" y2="{y + 12}" stroke="var(--ink)"/>')
        for seed, score in zip(row.seeds, row.scores, strict=True):
            at = 240 + 650 * (score - low) / (high - low)
            shapes.append(
                f'<circle cx="{at:.1f}" cy="{y}" r="5" fill="var(--student)" fill-opacity="0.7">'
                f"<title>seed {seed}: {100 * score:.2f}</title></circle>"
            )
    return _svg(shapes, len(scored), "scores of every training")


def _scale(low: float, high: float, left: float, right: float, rows: int, *, sign: bool = False) -> list[str]:
    """Numbers from `low` to `high` below so many rows, at round distances, each with a thin line up."""
    step = 10.0 ** math.floor(math.log10((high - low) / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= TICKS)
    digits = max(0, -math.floor(math.log10(step)))
    bottom, shapes = ROW_HEIGHT * rows, []
    for number in range(math.ceil(low / step), math.floor(high / step) + 1):
        x = left + (right - left) * (number * step - low) / (high - low)
        shown = f"{number * step:{'+' if sign and number else ''}.{digits}f}"
        shapes.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}" stroke="var(--line)"/>')
        shapes.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}">{shown}</text>')
    return shapes


def _svg(shapes: Sequence[str], rows: int, label: str) -> str:
    height = ROW_HEIGHT * rows + AXIS_HEIGHT
    return f'<svg viewBox="0 0 900 {height}" role="img" aria-label="{escape(label)}">{"".join(shapes)}</svg>'


def _header(found: Study) -> list[str]:
    return ["variant", "mean", "std", "seeds", "against the baseline", *found.kinds, "training"]


def _cells(row: Row, found: Study) -> list[str]:
    spread = "–" if row.deviation is None else f"{100 * row.deviation:.2f}"
    said = "baseline" if row.name == found.baseline else row.verdict.sentence if row.verdict else "no finished run"
    kinds = [f"{100 * row.kinds[kind]:.1f}" if row.kinds else "–" for kind in found.kinds]
    if not row.scores:
        return [row.name, "–", "–", "0", said, *kinds, "–"]
    return [row.name, f"{100 * row.mean:.1f}", spread, str(len(row.seeds)), said, *kinds, seconds(row.seconds)]


def _caption(found: Study) -> str:
    return (
        "± is half a 95 % interval: paired bootstrap over the items of the tasks, and Student's t over the seeds. "
        f"Baseline: {found.baseline}."
    )


def _settings(row: Row) -> str:
    return ", ".join(f"{key}={value}" for key, value in row.settings.items()) or "the base recipe"


def _missing(found: Study) -> list[str]:
    lines = [f"left out: {name} (not in every run, or on other items)" for name in found.left_out]
    lines += [f"not the same for all runs: {what}" for what in found.mixed]
    return lines + [f"{row.name}, seed {seed}: {why}" for row in found.rows for seed, why in row.failed.items()]

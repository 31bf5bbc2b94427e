"""`report.html`: one self-contained page of a run, for people who look rather than read."""

from collections.abc import Callable
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from embedding.files import read_json, read_log, write_text
from eval import looking, sections
from eval.dropped import dropped_section
from eval.figures import missing
from eval.mined import mined_section
from eval.scorecard import speed_note, speed_rows

REPORT = "report.html"
CSS = Path(__file__).with_name("report.css")
# A stooping hawk: two wings and a tail in three strokes.
MARK = (
    '<svg viewBox="0 0 48 48" role="img" aria-label="eyas"><rect width="48" height="48" rx="12" fill="var(--student)"/>'
    '<g fill="none" stroke="#fff" stroke-width="3.6" stroke-linecap="round" stroke-linejoin="round">'
    '<path d="M8 15c7-1 12 2 16 8 4-6 9-9 16-8-5 2-8 5-10 10-1 3-3 5-6 6-3-1-5-3-6-6-2-5-5-8-10-10z"/>'
    '<path d="M24 31v8"/></g></svg>'
)


def write_report(run: Path) -> Path:
    """Write `run/report.html` from what the run left: scorecard.json, metrics.jsonl, timings.json, summary.json,
    searches.json and looks.json. A section whose file is missing says so.

    Raises:
        ValueError: one of the files is not valid JSON.
    """
    log = run / "metrics.jsonl"
    page = render(
        name=run.resolve().name,
        card=_read(run / "scorecard.json"),
        metrics=read_log(log) if log.is_file() else None,
        timings=_read(run / "timings.json"),
        summary=_read(run / "summary.json"),
        searches=_read(run / "searches.json"),
        looks=_read(run / "looks.json"),
    )
    write_text(run / REPORT, page)
    return run / REPORT


def render(
    name: str,
    card: dict[str, Any] | None,
    metrics: list[dict[str, Any]] | None,
    timings: dict[str, float] | None,
    summary: dict[str, Any] | None,
    searches: dict[str, Any] | None,
    looks: dict[str, Any] | None,
) -> str:
    """The page as text; None for what there is not."""
    parts = [_top(name, card)]

    def add(title: str, lead: str, file: str, value: Any, make: Callable[[Any], str]) -> None:
        body = (
            missing(f"{file} is missing:", "this step of the run has not finished.") if value is None else make(value)
        )
        parts.append(f'<section id="{title.split()[0].lower()}"><h2>{title}</h2><p>{lead}</p>{body}</section>')

    kept = (
        "The share of the teacher's score that the student reaches; a full bar is the teacher, the grey mark is where"
        " the untrained student stood."
    )
    add("What was kept", kept, "scorecard.json", card, sections.retention)
    add("Every task", sections.HIGHER_IS_BETTER, "scorecard.json", card, sections.tasks)
    if card is not None and card["views"]:
        smaller = "The student's own mean with its vectors cut short (Matryoshka) or stored with fewer bits."
        add("Smaller vectors", smaller, "", card, lambda c: looking.trade_off(c) + sections.views(c))
    if card is not None and speed_rows(card):
        add("Speed", f"Encoding texts of so many tokens. {escape(speed_note(card))}", "", card, looking.speed)
    part = (
        " All on a part of each task, which is easier than the whole." if card is not None and "curve" in card else ""
    )
    learned = f"Scores while training; the dashed blue line is the teacher.{part}"
    add("Learning", learned, "metrics.jsonl", metrics, lambda lines: sections.curves(lines, card))
    add("Training log", "By optimizer step.", "metrics.jsonl", metrics, sections.training)
    mapped = "The same texts by two principal components of each model, the student's turned onto the teacher's."
    add("Map", mapped, "looks.json", looks, looking.embedding_map)
    lost = "The queries whose right document fell farthest behind where the teacher has it."
    add("Regressions", lost, "looks.json", looks, looking.regressions)
    asked = "What the finished student finds among the held-out documents."
    add("Searches", asked, "searches.json", searches, sections.searches)
    add("Time", "Wall-clock seconds of each step of the run.", "timings.json", timings, sections.timings)
    add("Data", "What was read, and why rows were left out.", "summary.json", summary, sections.data)
    if summary is not None and summary.get("samples"):
        lead = "A few of each reason; all of them are in dropped.parquet, beside the prepared tables."
        add("Dropped rows", lead, "summary.json", summary["samples"], dropped_section)
    if summary is not None and "mined" in summary:
        lead = "Documents that the mining model puts near a query, and that nothing says are relevant."
        add("Hard negatives", lead, "summary.json", summary["mined"], mined_section)
    if card is not None:
        if card["failed"]:
            add("Failed tasks", "They count in no mean, for none of the three.", "", card, sections.failed)
        add("How it was measured", "Prompts, instructions and facts.", "", card, sections.setup)
    style = CSS.read_text(encoding="utf-8")
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} · eyas report</title><style>{style}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + f"\n<footer>Written by eyas, {made}. One file, no network.</footer></main></body></html>\n"
    )


def _top(name: str, card: dict[str, Any] | None) -> str:
    said = "A small embedder and what it kept of its teacher." if card is None else f"Suite: {escape(card['suite'])}"
    header = f"<header>{MARK}<div><h1>{escape(name)}</h1><p>{said}</p></div></header>"
    if card is None:
        return header + missing("scorecard.json is missing:", "the run has not been evaluated.")
    return header + sections.hero(card)


def _read(path: Path) -> Any:
    return read_json(path) if path.is_file() else None

"""The report is one self-contained page with its sections, whatever of a run there is."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from eval.figures import Guide, Series, line_panel, scale, seconds, short, thin, ticks
from eval.report import write_report
from eval.scorecard import number, scorecard
from tests.eval.test_scorecard import scores

VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """Checks that tags close, and collects what the page shows and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.shown = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "poster", "action"):
                self.fetched.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        assert tag != "script"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """`<path/>` opens and closes at once."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.shown += data


def view(size: int, mean: float) -> dict[str, Any]:
    return {"bytes": size, "means": {"task": mean, "task_type": mean}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with every file, an evil name and a failed task among its values."""
    folder = tmp_path / "demo <b>run"
    folder.mkdir()
    student = scores(a=0.4, b=0.2, failed={"c": "no column <score>"})
    facts = {"parameters": {"teacher": 22_713_216, "student": 9_812_736}, "teacher": "MiniLM", "device": "cpu"}
    student |= {"bytes": 1024, "views": {"width 64": view(256, 0.28), "int8": view(256, 0.3), "binary": view(32, 0.2)}}
    student |= {"speed": {"texts/s, 16 tokens": 900.0, "peak MiB": 40.0, "on": "chip <x>"}}
    teacher = scores(a=0.5, b=0.3, c=0.8) | {"speed": {"texts/s, 16 tokens": 300.0, "peak MiB": 80.0, "on": "chip <x>"}}
    card = scorecard(teacher, scores(a=0.1, b=0.1, c=0.4), student, facts)
    lines: list[dict[str, Any]] = []
    for step in range(10, 101, 10):
        log = {"loss": 1 / step, "loss/0_match": 0.9 / step, "loss/1_info_nce": 0.1 / step, "lr": 1e-3}
        lines.append({"step": step, "stage": "match", **log, "time/forward": 0.4, "time/backward": 0.6})
        if step % 50 == 0:
            lines.append({"step": step, "eval/retrieval": 0.2 + step / 1000, "eval/mean": 0.25})
    source = {"rows": 1200, "examples": 1100, "held out": 60, "dropped": {"empty text": 40}}
    sample = {"source": "docstrings", "row": 7, "place": "", "detail": "61% of it is 'buy boats'"}
    sample |= {"query": "<b>buy</b> boats " * 30, "positives": []}
    hits = [{"id": "d1", "score": 0.91, "text": "<i>join</i> paths", "relevant": True}]
    found = {"corpus": "docs", "documents": 1, "instruction": "", "searches": [{"query": "how to join", "hits": hits}]}
    random = [[0.1 * (k % 7), 0.05 * k] for k in range(20)]
    mapped = {"task": "clustering/a", "texts": [f"text {k} <u>" for k in range(20)], "names": ["x", "y"]}
    mapped |= {"labels": ["x", "y"] * 10, "teacher": random, "student": random[::-1]}
    lost = {"task": "retrieval/a", "query": "how to <i>sort</i>", "lost": 0.9, "ranks": {"teacher": 1, "student": 12}}
    lost |= {"right": "sorts a list in place", "teacher": "sorts a list in place", "student": "shuffles a list"}
    for name, value in {
        "looks": {"map": mapped, "regressions": [lost]},
        "scorecard": card,
        "timings": {"prepare": 2.5, "train": 75.0, "total": 77.5},
        "summary": {"texts": 2200, "sources": {"docstrings": source}, "samples": {"repeats itself": [sample]}},
        "searches": found,
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 110, "lo')
    return folder


SECTIONS = [
    *("what", "every", "smaller", "speed", "learning", "training", "map", "regressions", "searches", "time"),
    *("data", "dropped"),
    "failed",
    "how",
]


def test_the_page_fetches_nothing_and_shows_every_section(run: Path) -> None:
    path = write_report(run)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path.name == "report.html"
    assert page.fetched == []
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    assert page.ids == SECTIONS
    assert "missing" not in page.shown
    for part in (
        "demo <b>run",
        "how to join",
        "<i>join</i> paths",
        "✓ the right one",
        "40 empty text",
        "1 min 15 s",
        "no column <score>",
        "Loss: match",
        "Mean(TaskType)",
        "teacherparameters 22.7Mmodel MiniLM",
        "studentparameters 9.81M",
        "Mean(TaskType) by size",
        "teacher, full vectors",
        "texts/s, 16 tokens300.0900.03.0 ×",
        "of so many tokens. On chip <x>.",
        "how to <i>sort</i>",
        "the right one: place 1 → 12",
        "shuffles a list",
        "y: text 1 <u>",
        "docstrings:761% of it is 'buy boats'<b>buy</b> boats <b>buy</b>",
    ):
        assert part in page.shown, part
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text


def test_missing_files_are_named_and_the_rest_is_there(run: Path) -> None:
    for name in ("metrics.jsonl", "searches.json", "looks.json", "summary.json"):
        (run / name).unlink()
    page = Page(write_report(run).read_text(encoding="utf-8"))
    for name in ("metrics.jsonl", "searches.json", "looks.json", "summary.json"):
        assert f"{name} is missing" in page.shown
    assert "1 min 15 s" in page.shown


def test_an_empty_run_has_a_report(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "scorecard.json is missing" in page.shown
    assert "timings.json is missing" in page.shown


def test_a_run_whose_every_task_failed_has_a_report(tmp_path: Path) -> None:
    broken = scores(failed={"a": "no data"})
    (tmp_path / "scorecard.json").write_text(json.dumps(scorecard(broken, broken, broken)))
    assert "every task failed" in Page(write_report(tmp_path).read_text(encoding="utf-8")).shown


def test_a_broken_log_line_in_the_middle_is_an_error(run: Path) -> None:
    log = run / "metrics.jsonl"
    log.write_text('{"step": 1, "loss": 2}\n{"step"\n{"step": 2, "loss": 1}\n')
    with pytest.raises(ValueError, match="line 2 is not valid JSON"):
        write_report(run)


@pytest.mark.parametrize(
    "low, high, expected",
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0, 900, [0, 250, 500, 750]), (-1, 1, [-1, -0.5, 0, 0.5, 1]), (3, 3, [3])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_numbers_read_well() -> None:
    assert [short(x) for x in (0, 0.25, 12, 5277.4, 152_000, 2.5e6, 1e-5)] == [
        "0",
        "0.25",
        "12",
        "5,277",
        "152k",
        "2.5M",
        "1e-05",
    ]
    assert [seconds(x) for x in (0.42, 12.4, 75, 7500)] == ["420 ms", "12.4 s", "1 min 15 s", "2 h 05 min"]


def test_thinning_keeps_the_mean_and_the_end() -> None:
    points = [(float(x), 2.0 * x) for x in range(10_001)]
    thinned = thin(points, 100)
    assert len(thinned) <= 100
    assert thinned[-1] == points[-1]
    assert all(y == pytest.approx(2 * x) for x, y in thinned)


def test_a_panel_places_points_where_they_belong() -> None:
    panel = line_panel("t", [Series("s", [(0, 0.0), (50, 0.5), (100, 1.0)], "student")], [Guide("g", 1.0, "teacher")])
    # 0 to 1 with 8 % of room above and none below zero: 0.5 lies at 100 * (1.08 - 0.5) / 1.08
    assert "M0.00 100.00L50.00 53.70L100.00 7.41" in panel
    assert 'd="M0 7.41H100"' in panel
    assert "no values" in line_panel("t", [Series("s", [(1, float("nan"))], "student")])


def test_the_scale_fills_from_untrained_to_student() -> None:
    line = scale([("untrained", 0.2, "u"), ("student", 0.4, "s"), ("teacher", 0.5, "t")], (0.2, 0.4), number)
    assert f"left:{100 * 0.2 / 0.53:.2f}%;width:{100 * 0.2 / 0.53:.2f}%" in line


@pytest.mark.parametrize(("untrained", "higher"), [(0.2, False), (0.45, True), (0.55, True)])
def test_labels_that_would_meet_stand_one_above_the_other(untrained: float, higher: bool) -> None:
    marks = [("untrained", untrained, "u"), ("student", 0.48, "s"), ("teacher", 0.5, "t")]
    line = scale(marks, (untrained, 0.48), number)
    assert ('class="pin high"' in line) is higher
    assert line.count('class="pin under"') == 1

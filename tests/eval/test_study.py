"""Verdicts of a study on cards whose truth is known, and what its pages say."""

import csv
import io
import re

import numpy as np
import pytest
from rich.console import Console

from eval.compare import compare
from eval.scorecard import Scorecard
from eval.study import Study, Trial, study
from eval.study_page import differences_svg, markdown, page, scores_svg, table_csv, terminal

ITEMS = 400


def card(values: np.ndarray, task: str = "retrieval/docs") -> Scorecard:
    return {
        "tasks": {task: {"kind": "retrieval", "metric": "ndcg", "student": float(values.mean())}},
        "outcomes": {task: [{"values": values.tolist()}]},
    }


def trials(shift: float, seeds: int, seed_noise: float = 0.001, draw: int = 0) -> list[Trial]:
    """Runs on the same items: a common difficulty, the variant's shift, each seed's own luck."""
    difficulty = np.random.default_rng(0).random(ITEMS)
    luck = np.random.default_rng(draw).normal(0, seed_noise, seeds)
    noise = np.random.default_rng(draw + 1).normal(0, 0.02, (seeds, ITEMS))
    return [Trial(s, card(difficulty + shift + luck[s] + noise[s]), 10.0 + s) for s in range(seeds)]


def compared(**variants: list[Trial]) -> Study:
    failed = {"better": {7: "run ended with code 1: out of memory"}}
    return study("rates", "base", {name: {"rate": name} for name in variants}, variants, failed)


def test_a_real_difference_is_shown_and_none_is_not() -> None:
    found = compared(
        base=trials(0, 3), better=trials(0.05, 3, draw=5), worse=trials(-0.05, 3, draw=7), same=trials(0, 3, draw=9)
    )
    said = {row.name: row.verdict.sentence for row in found.rows if row.verdict}
    assert re.fullmatch(r"\+[45]\.\d ± \d\.\d: better", said["better"])
    assert re.fullmatch(r"-[45]\.\d ± \d\.\d: worse", said["worse"])
    assert said["same"].startswith("no difference shown (")
    assert "base" not in said


def test_chance_between_seeds_widens_the_interval() -> None:
    calm = compared(base=trials(0, 3), other=trials(0.02, 3, draw=5)).rows[1].verdict
    wild = compared(base=trials(0, 3), other=trials(0.02, 3, seed_noise=0.05, draw=5)).rows[1].verdict
    assert calm is not None
    assert wild is not None
    assert wild.half > 5 * calm.half


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for draw in range(60):
        found = compared(base=trials(0, 3, 0.01, draw=10 * draw + 2), other=trials(0.01, 3, 0.01, draw=10 * draw + 6))
        verdict = found.rows[1].verdict
        assert verdict is not None
        held += abs(verdict.difference - 0.01) <= verdict.half
    assert held >= 54  # 95 % of 60 is 57; fewer than 54 is a chance of 1 in 50


def test_the_pictures_have_a_scale_of_round_numbers() -> None:
    found = compared(base=trials(0, 3), better=trials(0.05, 3, draw=5))
    for picture in (differences_svg(found.rows, "base"), scores_svg(found.rows)):
        numbers = [float(shown) for shown in re.findall(r'class="tick" x="[\d.]+" y="\d+">([^<]+)<', picture)]
        assert 2 <= len(numbers) <= 7
        assert len(set(np.diff(numbers).round(6))) == 1
    assert 0 in [
        float(shown) for shown in re.findall(r'class="tick"[^>]+>([^<]+)<', differences_svg(found.rows, "base"))
    ]


def test_one_seed_says_what_it_does_not_know() -> None:
    found = compared(base=trials(0, 1), better=trials(0.05, 1, draw=5))
    assert found.rows[0].deviation is None
    assert found.rows[1].verdict is not None
    assert "one seed: chance between trainings is not counted" in found.rows[1].verdict.sentence


def test_only_seeds_that_both_have_are_compared() -> None:
    found = compared(base=trials(0, 3), better=trials(0.05, 2, draw=5))
    assert found.rows[1].verdict is not None
    assert found.rows[1].verdict.seeds == 2


def test_tasks_on_other_items_are_left_out_and_named() -> None:
    both = card(np.ones(5), "retrieval/small")
    base = trials(0, 1)[0]
    for other in (base.card, both):
        other["tasks"] |= base.card["tasks"] if other is both else {}
        other["outcomes"] |= base.card["outcomes"] if other is both else {}
    found = compared(base=[base], better=[Trial(0, both, 1.0)])
    assert found.tasks == ["retrieval/docs"]
    assert found.left_out == ["retrieval/small"]


def test_a_baseline_without_runs_is_refused() -> None:
    with pytest.raises(ValueError, match="no run of the baseline 'base' is finished"):
        compared(base=[], better=trials(0, 1))


def test_pages_hold_every_variant_and_every_failure() -> None:
    found = compared(base=trials(0, 3), better=trials(0.05, 3, draw=5), gone=[])
    html, text = page(found, "name: rates <&>"), markdown(found)
    for name in ("base", "better", "gone"):
        assert name in html
        assert f"| {name} |" in text
    for said in (html, text):
        assert "out of memory" in said
    assert "name: rates &lt;&amp;&gt;" in html
    assert "http" not in html.replace("http://www.w3.org", "")
    assert "<script" not in html
    lines = list(csv.DictReader(io.StringIO(table_csv(found))))
    assert [line["variant"] for line in lines] == ["base", "better", "gone"]
    assert float(lines[1]["difference"]) == found.rows[1].verdict.difference  # type: ignore[union-attr]
    assert lines[1]["failed"] == "1"


def test_a_terminal_of_80_columns_shows_every_difference_whole() -> None:
    found = compared(base=trials(0, 3), no_instruction=trials(0.05, 3, draw=5), same=trials(0, 3, draw=9))
    console = Console(width=80, record=True)
    console.print(terminal(found))
    text = console.export_text()
    assert "…" not in text
    for row in found.rows:
        assert row.name in text
        assert f"{100 * row.mean:.1f}" in text
        if row.verdict:
            assert f"{100 * row.verdict.difference:+.1f}" in text
            assert f"± {100 * row.verdict.half:.1f}" in text


def test_where_no_task_notes_its_items_one_seed_shows_nothing() -> None:
    bare = [[Trial(s, {**t.card, "outcomes": {}}, 1.0) for s, t in enumerate(trials(at, 2))] for at in (0, 0.05)]
    one = compared(base=bare[0][:1], better=bare[1][:1])
    assert one.rows[1].verdict is not None
    assert one.rows[1].verdict.sentence == "+5.0 (one seed, and no task notes its items: chance is not known)"
    assert "nothing to compare" in differences_svg(one.rows, "base")
    assert "chance is not known" in page(one, "") + markdown(one)
    two = compared(base=bare[0], better=bare[1]).rows[1].verdict
    assert two is not None
    assert np.isfinite(two.half)
    card_of = {name: {**runs[0].card, "left_out": []} for name, runs in zip(("base", "better"), bare, strict=True)}
    assert compare(card_of)["mean"]["better"]["noise"] is None
    noted = {name: trials(at, 1)[0].card for name, at in (("base", 0), ("better", 0.05))}
    assert compare(noted)["mean"]["better"]["noise"] is False

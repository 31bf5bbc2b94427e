"""The arithmetic of the scorecard, by hand."""

from typing import Any

import pytest
from rich.console import Console

from eval.evaluate import means
from eval.scorecard import (
    markdown,
    number,
    scorecard,
    scores_table,
    speed_rows,
    summary,
    terminal_table,
    view_gaps,
    view_rows,
)


def scores(failed: dict[str, str] | None = None, **of: float) -> dict[str, Any]:
    kinds = {"a": "retrieval", "b": "retrieval", "c": "sts", "d": "clustering"}
    tasks: dict[str, dict[str, Any]] = {
        name: {"kind": kinds[name], "metric": "m", "instruction": "i", "score": score} for name, score in of.items()
    }
    tasks |= {name: {"kind": kinds[name], "metric": "m", "failed": why} for name, why in (failed or {}).items()}
    return {"suite": "s", "template": {}, "tasks": tasks, **means(tasks), "seconds": {"total": 1.0}}


def test_means_over_tasks_and_over_kinds() -> None:
    found = scores(a=0.2, b=0.4, c=0.9)
    assert found["kinds"] == pytest.approx({"retrieval": 0.3, "sts": 0.9})
    assert found["means"] == pytest.approx({"task": 0.5, "task_type": 0.6})


def test_retention_and_recovery() -> None:
    card = scorecard(scores(a=0.5, b=0.3, c=0.8), scores(a=0.1, b=0.1, c=0.4), scores(a=0.4, b=0.2, c=0.6), {"dim": 3})
    assert card["tasks"]["a"]["retention"] == pytest.approx(0.8)
    assert card["retention"] == pytest.approx({"retrieval": 0.3 / 0.4, "sts": 0.75})
    assert card["means"]["task"] == pytest.approx({"teacher": 1.6 / 3, "untrained": 0.2, "student": 0.4})
    assert card["means"]["task_type"] == pytest.approx({"teacher": 0.6, "untrained": 0.25, "student": 0.45})
    assert card["means"]["retention"] == pytest.approx(0.75)
    assert card["means"]["recovered"] == pytest.approx((0.45 - 0.25) / (0.6 - 0.25))
    assert card["facts"] == {"dim": 3}


def test_a_task_that_failed_for_one_counts_for_none() -> None:
    card = scorecard(scores(a=0.5, c=0.8), scores(a=0.1, c=0.4), scores(a=0.4, failed={"c": "NaN vectors"}))
    assert set(card["tasks"]) == {"a"}
    assert card["failed"] == {"c": {"student": "NaN vectors"}}
    assert card["means"]["task_type"]["teacher"] == pytest.approx(0.5)


def test_no_share_of_a_score_that_is_not_positive() -> None:
    card = scorecard(scores(a=-0.1, c=0.5), scores(a=0.0, c=0.1), scores(a=0.2, c=0.4))
    assert card["tasks"]["a"]["retention"] is None
    assert card["retention"] == {"retrieval": None, "sts": pytest.approx(0.8)}
    assert card["means"]["retention"] == pytest.approx(0.8)


def test_no_share_of_a_change() -> None:
    """p-MRR is 0 for a model that ignores instructions: 0.5 of a hundredth is no half of anything."""
    runs = [scores(a=0.5, b=0.5, c=0.8), scores(a=0.1, b=0.1, c=0.4), scores(a=0.4, b=0.4, c=0.6)]
    for run, change in zip(runs, (0.01, 0.02, -0.01), strict=True):
        run["tasks"]["d"] = {"kind": "instruction_reranking", "metric": "p-MRR", "instruction": "i", "score": change}
    card = scorecard(*runs)
    assert card["tasks"]["d"]["retention"] is None
    assert card["retention"]["instruction_reranking"] is None
    assert card["means"]["retention"] == pytest.approx((0.8 + 0.75) / 2)
    assert card["means"]["task"]["student"] == pytest.approx((0.4 + 0.4 + 0.6 - 0.01) / 4)
    assert "without Instruction reranking" in summary(card)
    assert "without" not in summary(scorecard(scores(a=0.5), scores(a=0.1), scores(a=0.4)))


def test_nothing_to_recover_where_the_untrained_student_beats_the_teacher() -> None:
    assert scorecard(scores(a=0.2), scores(a=0.3), scores(a=0.3))["means"]["recovered"] is None


def test_every_task_failed() -> None:
    broken = scores(failed={"a": "no data"})
    card = scorecard(broken, broken, broken)
    assert card["means"] == {
        "task": {"teacher": None, "untrained": None, "student": None},
        "task_type": {"teacher": None, "untrained": None, "student": None},
        "retention": None,
        "recovered": None,
    }
    assert "no data" in shown(terminal_table(card))


def test_different_suites_are_refused() -> None:
    with pytest.raises(ValueError, match="the teacher's scores lack c"):
        scorecard(scores(a=0.5), scores(a=0.1, c=0.2), scores(a=0.4, c=0.3))


def shown(table: Any) -> str:
    console = Console(width=120, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_tables_show_tasks_and_means() -> None:
    card = scorecard(scores(a=0.5, c=0.8), scores(a=0.1, c=0.4), scores(a=0.4, c=0.6))
    for text in (shown(terminal_table(card)), markdown(card)):
        for part in ("a", "50.0", "40.0", "80.0 %", "Mean(TaskType)", "recovered 62.5 % of the gap"):
            assert part in text
    assert "| a | m | 50.0 | 10.0 | 40.0 |  | 80.0 % |" in markdown(card)
    assert "failed c: no data" in shown(scores_table(scores(a=0.5, failed={"c": "no data"})))
    assert number(None) == "–"


def fast(speed: float, on: str) -> dict[str, Any]:
    return {"speed": {"texts/s, 16 tokens": speed, "on": on}}


def test_speeds_of_two_machines_are_not_compared() -> None:
    here, there = "a processor, 2 threads", "NVIDIA H200"
    untrained, student = scores(a=0.1) | fast(800.0, here), scores(a=0.4) | fast(900.0, here)
    card = scorecard(scores(a=0.5) | fast(300.0, here), untrained, student)
    assert set(card["speed"]) == {"teacher", "untrained", "student"}
    assert speed_rows(card) == [("texts/s, 16 tokens", "300.0", "900.0", "3.0 ×")]
    card = scorecard(scores(a=0.5) | fast(9000.0, there), untrained, student)
    assert set(card["speed"]) == {"untrained", "student"}
    assert speed_rows(card) == [("texts/s, 16 tokens", "–", "900.0", "–")]
    for text in (shown(terminal_table(card)), markdown(card)):
        assert f"On {here}; the teacher was not measured there." in text
        assert "9,000" not in text
    assert f"on: {here}" in shown(scores_table(student))


def smaller(**of: float) -> dict[str, Any]:
    """The views of an evaluation whose vectors of width 8 scored so."""
    found = scores(**of)
    kept = {name: found[name] for name in ("kinds", "means")}
    return {"bytes": 64, "views": {"width 8": {"tasks": of, **kept, "bytes": 32}}}


def test_the_share_of_smaller_vectors_is_over_the_tasks_that_both_have() -> None:
    untrained = scores(a=0.1, b=0.1, c=0.1)
    student = scores(a=0.4, b=0.2, c=0.9) | smaller(a=0.3, b=0.1, c=0.8)
    card = scorecard(scores(a=0.5, b=0.4, failed={"c": "NaN vectors"}), untrained, student)
    assert view_rows(card)[1] == ("width 8", 32, pytest.approx(0.2), pytest.approx(0.2 / 0.3)), "c is not in the card"
    assert view_gaps(card["views"], card["tasks"]) == {}
    student = scores(a=0.4, b=0.2, c=0.9) | smaller(a=0.3, c=0.8)
    card = scorecard(scores(a=0.5, b=0.4, c=1.0), untrained, student)
    assert view_rows(card)[1] == ("width 8", 32, pytest.approx(0.55), pytest.approx(0.55 / 0.65)), "b has no score"
    for text in (shown(terminal_table(card)), markdown(card), shown(scores_table(student))):
        assert "width 8: without b, which failed" in text


def test_cards_that_have_no_scores_of_smaller_vectors_can_be_read() -> None:
    student = scores(a=0.4, c=0.6) | smaller(a=0.3, c=0.5)
    del student["views"]["width 8"]["tasks"]
    card = scorecard(scores(a=0.5, c=0.8), scores(a=0.1, c=0.4), student)
    assert view_rows(card)[1] == ("width 8", 32, pytest.approx(0.4), pytest.approx(0.8))
    assert view_gaps(card["views"], card["tasks"]) == {}

"""The ledger: a step runs once for the same inputs, again when an input or its output changed; runs share results."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from embedding.files import read_json
from launch.engine import LAUNCH
from launch.steps import Ledger


class Step:
    """A step that writes its input to a file and counts how often it did."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output.txt"
        self.calls = 0

    def __call__(self, ledger: Ledger, made_from: dict[str, Any], share: bool = False) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            self.calls += 1
            self.output.write_text(str(made_from))
            return {"outputs": [str(self.output)], "call": self.calls}

        return ledger.step("embed", made_from, work, share=share)


@pytest.fixture
def console() -> Console:
    return Console(record=True, width=200)


def ledger(tmp_path: Path, console: Console, name: str = "one") -> Ledger:
    return Ledger(tmp_path / name, tmp_path / "cache", console)


def test_a_finished_step_is_skipped_and_keeps_its_time(tmp_path: Path, console: Console) -> None:
    step = Step(tmp_path)
    first = step(ledger(tmp_path, console), {"teacher": "a"})
    timings = read_json(tmp_path / "one" / "timings.json")
    assert step(ledger(tmp_path, console), {"teacher": "a"}) == first
    assert step.calls == 1
    assert read_json(tmp_path / "one" / "timings.json") == timings
    assert set(timings) == {"embed", "total"}
    assert "embed  skipped, finished before" in console.export_text()


def test_a_changed_input_runs_it_again_and_says_which(tmp_path: Path, console: Console) -> None:
    step = Step(tmp_path)
    step(ledger(tmp_path, console), {"teacher": {"model": "a", "width": 4}})
    step(ledger(tmp_path, console), {"teacher": {"model": "b", "width": 4}})
    assert step.calls == 2
    text = console.export_text()
    assert 'teacher.model: expected "b", found "a"' in text
    assert "teacher.width" not in text


def test_a_restart_counts_once_in_a_launch(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = ledger(tmp_path, console)
    monkeypatch.delenv(LAUNCH, raising=False)
    assert not steps.restarted()
    steps.count_restart()
    assert not steps.restarted(), "no launcher: every command is its own"
    monkeypatch.setenv(LAUNCH, "17")
    assert not steps.restarted()
    steps.count_restart()
    assert steps.restarted(), "the launcher has begun it again after a loss"
    monkeypatch.setenv(LAUNCH, "18")
    assert not steps.restarted()


def test_a_lost_output_is_made_again(tmp_path: Path, console: Console) -> None:
    step = Step(tmp_path)
    step(ledger(tmp_path, console), {"teacher": "a"})
    step.output.unlink()
    step(ledger(tmp_path, console), {"teacher": "a"})
    assert step.calls == 2
    assert "output.txt is gone" in console.export_text()


def test_a_step_that_fails_is_not_finished_and_the_one_before_stays(tmp_path: Path, console: Console) -> None:
    step = Step(tmp_path)
    step(ledger(tmp_path, console), {"teacher": "a"})

    def fail() -> dict[str, Any]:
        raise ValueError("no such teacher")

    with pytest.raises(ValueError, match="no such teacher"):
        ledger(tmp_path, console).step("embed", {"teacher": "b"}, fail)
    step(ledger(tmp_path, console), {"teacher": "a"})
    assert step.calls == 1


@pytest.mark.parametrize("share, calls", [(True, 1), (False, 2)])
def test_runs_share_what_may_be_shared(tmp_path: Path, console: Console, share: bool, calls: int) -> None:
    step = Step(tmp_path)
    step(ledger(tmp_path, console, "one"), {"teacher": "a"}, share=share)
    step(ledger(tmp_path, console, "two"), {"teacher": "a"}, share=share)
    assert step.calls == calls
    assert read_json(tmp_path / "two" / "timings.json")["embed"] >= 0


def test_a_cache_may_be_used_from_anywhere(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    for folder in (home / "cache", away / "cache"):
        folder.mkdir(parents=True)
        (folder / "output.txt").write_text("of someone else")  # what the same words name elsewhere
    monkeypatch.chdir(home)
    step = Step(Path("cache"))
    step(Ledger(Path("one"), Path("cache"), console), {"teacher": "a"}, share=True)
    monkeypatch.chdir(away)
    found = step(Ledger(Path("two"), home / "cache", console), {"teacher": "a"}, share=True)
    assert step.calls == 1
    assert found["outputs"] == [str(home / "cache" / "output.txt")]


def test_an_output_outside_the_cache_is_found_too(tmp_path: Path, console: Console) -> None:
    step = Step(tmp_path)
    step(ledger(tmp_path, console, "one"), {"teacher": "a"}, share=True)
    assert step(ledger(tmp_path, console, "two"), {"teacher": "a"}, share=True)["outputs"] == [str(step.output)]
    assert step.calls == 1


def test_going_back_to_an_earlier_input_finds_its_shared_record(tmp_path: Path, console: Console) -> None:
    step = Step(tmp_path)
    for teacher in ("a", "b", "a"):
        step(ledger(tmp_path, console), {"teacher": teacher}, share=True)
    assert step.calls == 2


def test_a_forgotten_step_runs_again_in_every_run(tmp_path: Path, console: Console) -> None:
    step = Step(tmp_path)
    step(ledger(tmp_path, console, "one"), {"teacher": "a"}, share=True)
    ledger(tmp_path, console, "one").forget("embed")
    step(ledger(tmp_path, console, "two"), {"teacher": "a"}, share=True)
    assert step.calls == 2

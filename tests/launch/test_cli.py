"""The command line: help, and how errors reach a person. What the steps do is in test_pipeline.py."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from launch.cli import app

COMMANDS = ["demo", "run", "prepare", "embed", "train", "eval", "plan", "doctor"]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make every command fail with an error."""

    def set_error(error: BaseException) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise error

        monkeypatch.setattr("launch.cli._run", fail)

    return set_error


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Examples" in result.stdout
    assert f"eyas {command}" in result.stdout


def test_help_lists_every_command() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {"mine", "search", "compare", "ablate", "merge", "push", "write", "vectors", "runs", *COMMANDS} <= set(
        commands
    )
    result = CliRunner().invoke(app, ["--help"])
    shown = {word for line in result.stdout.splitlines() for word in line.split()[:2]}
    assert set(commands) <= shown


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, launch.cli; assert not {'torch', 'transformers', 'mteb'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_training_begins_without_what_only_other_steps_need() -> None:
    heavy = {"datasets", "pandas", "mteb", "sklearn", "wandb", "faiss"}
    code = f"import sys, launch.drive; print(*{heavy} & set(sys.modules))"
    asked = subprocess.run([sys.executable, "-c", code], check=True, timeout=240, capture_output=True, text=True)
    assert asked.stdout.strip() == ""


@pytest.mark.parametrize("error", [ValueError("rows.jsonl:3: [text] is empty"), FileNotFoundError("no rows.jsonl")])
def test_an_error_to_mend_is_one_message_and_exit_2(failing: Callable[..., None], error: Exception) -> None:
    failing(error)
    result = CliRunner().invoke(app, ["run", "mine.yaml"])
    assert result.exit_code == 2
    assert result.stderr == f"error: {error}\n"


def test_traceback_on_request(failing: Callable[..., None]) -> None:
    failing(ValueError("rows.jsonl:3: empty"))
    result = CliRunner().invoke(app, ["--traceback", "run", "mine.yaml"])
    assert result.exit_code == 1
    assert isinstance(result.exception, ValueError)


def test_a_bug_keeps_its_traceback(failing: Callable[..., None]) -> None:
    failing(AssertionError("rows out of order"))
    result = CliRunner().invoke(app, ["run", "mine.yaml"])
    assert result.exit_code == 1
    assert isinstance(result.exception, AssertionError)


def test_a_missing_extra_is_named(failing: Callable[..., None]) -> None:
    failing(ModuleNotFoundError("No module named 'mteb'", name="mteb.abstasks"))
    result = CliRunner().invoke(app, ["run", "mine.yaml"])
    assert result.exit_code == 2
    assert "pip install 'eyas[eval]'" in result.stderr


def test_a_missing_module_of_our_own_is_a_bug(failing: Callable[..., None]) -> None:
    failing(ModuleNotFoundError("No module named 'embeding'", name="embeding"))
    result = CliRunner().invoke(app, ["run", "mine.yaml"])
    assert result.exit_code == 1


def test_an_interrupt_says_that_work_is_kept(failing: Callable[..., None]) -> None:
    failing(KeyboardInterrupt())
    result = CliRunner().invoke(app, ["run", "mine.yaml"])
    assert result.exit_code == 130
    assert "finished steps are kept" in result.stderr


def test_an_unknown_command_is_refused() -> None:
    result = CliRunner().invoke(app, ["trian"])
    assert result.exit_code == 2
    assert "No such command 'trian'" in result.stderr

"""A tiny real run: docstrings of the standard library as question and answer, all-MiniLM as teacher, two steps."""

import hashlib
import inspect
import json
import os
import shutil
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from launch.cli import app

RUN = Path("runs/tiny")
STEPS = ["prepare", "embed", "tokenize", "train", "export", "evaluate", "report"]
INSTRUCTION = "Given a question, retrieve the passage that answers it"
RECIPE = """
extends: base
name: tiny
data:
  sources:
    - kind: jsonl
      path: faq.jsonl
      query: question
      positive: answer
      instruction: Given a question, retrieve the passage that answers it
  heldout:
    share: 0.25
student:
  start: {kind: pruned, model: teacher, keep: 1}
  template: {query: "Instruct: {task}\\nQuery: "}
  max_tokens: 32
teacher:
  max_tokens: 32
stages:
  - name: match
    steps: 2
    batch_size: 8
    max_tokens: 32
compute:
  token_budget: 1024
"""


def questions_and_answers() -> list[dict[str, str]]:
    """Summary line and first sentence after it of the functions of two small modules."""
    rows = []
    for module in (os.path, statistics, textwrap, inspect):
        for name in sorted(vars(module)):
            function = vars(module)[name]
            docstring = inspect.getdoc(function) if inspect.isfunction(function) else None
            summary, _, rest = (docstring or "").partition("\n\n")
            if rest:
                answer = " ".join(rest.split(".")[0].split())
                rows.append({"question": " ".join(summary.split()), "answer": f"{answer} ({name})"})
    return rows


def write_rows(path: Path, rows: Sequence[object]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def eyas(*arguments: str) -> Result:
    """Run the command in this process and folder."""
    return CliRunner().invoke(app, list(arguments), catch_exceptions=True)


def skipped(result: Result) -> list[str]:
    """The steps that a run skipped."""
    return [line.split()[0] for line in result.stdout.splitlines() if line.split()[1:2] == ["skipped,"]]


def contents(folder: Path) -> dict[str, str]:
    """The digest of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its data and a finished run. Not to be changed: use `finished`."""
    folder = tmp_path_factory.mktemp("finished")
    write_rows(folder / "faq.jsonl", questions_and_answers())
    (folder / "mine.yaml").write_text(RECIPE)
    before = Path.cwd()
    os.chdir(folder)
    try:
        result = eyas("run", "mine.yaml")
    finally:
        os.chdir(before)
    assert result.exit_code == 0, result.output
    assert skipped(result) == []
    return folder


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run to do anything to; the working directory."""
    folder = tmp_path / "a folder with spaces"
    shutil.copytree(finished_once, folder)
    monkeypatch.chdir(folder)
    return folder

"""What the recipes quote of `eyas plan` is what it says; docstrings, so numbers, may differ from machine to machine."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from benchmarks.gpu_step import shapes
from launch.cli import app

CONFIGS = Path(__file__).parents[2] / "configs"
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
SHAPES = {"gemma3_270m": "gemma-3-270m", "qwen3_0.6b": "Qwen3-0.6B"}
LEFT_OUT = re.compile(r"^(note: the instructions|unknown: microsoft/).*", re.MULTILINE)
"""Of the docstrings, which the reader will not train on, and of the hub, which may answer."""


def quoted(config: str) -> tuple[list[str], str]:
    """The words of a command in the comment at the top of a recipe, and the output below it."""
    comment = (CONFIGS / f"{config}.yaml").read_text(encoding="utf-8")
    (found,) = re.findall(r"^#   \$ eyas (plan (?:.*\\\n)*.*)\n((?:#   .*\n)+)", comment, re.MULTILINE)
    command, output = (re.sub(r"^#", "", part, flags=re.MULTILINE) for part in found)
    return shlex.split(command.replace("\\\n", " ")), output


def words(text: str) -> list[str]:
    """Without the borders of tables, and however the lines were broken."""
    return re.sub(r"[\u2500-\u257f]", " ", text).split()


@pytest.mark.parametrize("config", ["domain", "prune", "harrier-270m", "harrier-0.6b"])
def test_a_recipe_quotes_the_plan_that_is_printed(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1 << 60))  # whatever disk this is
    for shape, folder in SHAPES.items():
        shapes()[shape].save_pretrained(folder)
    command, output = quoted(config)
    printed = CliRunner(env={"COLUMNS": "120"}).invoke(app, command).stdout
    said = words(LEFT_OUT.sub("", printed.split("Time is operations")[0]))
    expected = words(output)
    assert [NUMBER.sub("N", word) for word in said] == [NUMBER.sub("N", word) for word in expected]
    numbers = [[float(found.replace(",", "")) for found in NUMBER.findall(" ".join(of))] for of in (said, expected)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.1, abs=0.11)

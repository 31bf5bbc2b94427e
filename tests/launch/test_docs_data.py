"""The examples of docs/data.md and docs/mining.md are recipes and commands that exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from data_prep.build import DataConfig
from data_prep.mine import MineConfig
from data_prep.write import WriteConfig
from embedding.config import parse_config
from launch.cli import app

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["data.md", "mining.md"]


def blocks(page: str, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


@pytest.mark.parametrize("page", PAGES)
def test_yaml_is_a_recipes_or_a_list_of_queries(page: str) -> None:
    examples: list[dict[str, Any]] = [yaml.safe_load(text) for text in blocks(page, "yaml")]
    assert len(examples) >= 2
    for example in examples:
        if "model" in example:
            parse_config(WriteConfig, example)
            continue
        assert example.keys() <= {"data", "mine"}
        if "data" in example:
            parse_config(DataConfig, example["data"])
        if "mine" in example:
            parse_config(MineConfig, example["mine"])


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_exist(page: str) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = [line.removeprefix("$ ") for text in blocks(page, "sh", "") for line in text.splitlines()]
    asked = [line.split("#")[0].split() for line in lines if line.startswith("eyas ")]
    assert asked
    for _, name, *words in asked:
        known = {flag for option in commands[name].params for flag in (*option.opts, *option.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known, name

"""The recipes shipped with eyas."""

import pytest

from embedding.config import load_config
from train.recipe import Recipe


@pytest.mark.parametrize("name", ["harrier-270m", "harrier-0.6b", "domain", "prune", "continue", "demo"])
def test_every_shipped_recipe_is_valid(name: str) -> None:
    assert load_config(Recipe, name).name == name

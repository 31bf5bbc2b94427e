"""The recipes shipped with eyas."""

import pytest

from embedding.config import load_config
from train.recipe import Recipe

NARROW = "student.start={kind: built, layers: 1, width: 64, heads: 1, kv_heads: 1, embeddings: random}"


@pytest.mark.parametrize("name", ["harrier-270m", "harrier-0.6b", "domain", "prune", "continue", "demo"])
def test_every_shipped_recipe_is_valid(name: str) -> None:
    assert load_config(Recipe, name).name == name


def test_a_map_that_no_stage_trains_is_not_kept() -> None:
    """It would be a random one: similarities of the student to itself look well, those to the teacher are noise."""
    kept = [NARROW, "student.keep_projection=true"]
    assert load_config(Recipe, "domain", kept).student.keep_projection
    with pytest.raises(ValueError, match=r"no stage trains it: only a match loss does"):
        load_config(Recipe, "domain", [*kept, "stages=[{name: a, steps: 1, losses: [{kind: gram}]}]"])
    with pytest.raises(ValueError, match=r"exports a map, and student.projection is none"):
        load_config(Recipe, "domain", [*kept, "student.projection=none"])

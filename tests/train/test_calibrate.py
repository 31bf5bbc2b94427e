"""The measured chunk size: what there is nothing to choose between is not measured."""

from pathlib import Path

import numpy as np
import pytest

from embedding.embedder import Embedder
from train.calibrate import CANDIDATES, _best, calibrate
from train.loop import train
from train.plan import Inputs
from train.recipe import ComputeConfig, StudentConfig
from train.student import build_student

from .test_loop import make_recipe, stage


def test_texts_that_the_smallest_budget_holds_get_it(teacher: Embedder, student_config: StudentConfig) -> None:
    student = build_student(student_config, teacher, 0)
    memory = calibrate(student, [np.full(20, 5, dtype=np.int32)] * 8, ComputeConfig())
    assert memory.token_budget == CANDIDATES["cpu"][0]
    assert memory.bytes_per_token > 0


def test_larger_batches_are_measured_and_no_budget_is_beyond_them(
    teacher: Embedder, student_config: StudentConfig
) -> None:
    student = build_student(student_config, teacher, 0)
    memory = calibrate(student, [np.full(60, 5, dtype=np.int32)] * 30, ComputeConfig())
    assert memory.token_budget in CANDIDATES["cpu"][:2]  # 1,800 tokens: 2,048 makes one chunk of them


def test_a_large_chunk_is_chosen_where_it_is_faster_and_leaves_room_to_keep_others() -> None:
    seconds = {8: 1.1, 16: 1.0, 32: 0.9}
    assert _best(seconds, {8: 100.0, 16: 100.0, 32: 100.0}, 90.0, 8) == 32
    # All kept at 1.1 s; a half recomputed at 1.0 s takes 1.0 x (1 + 1/6); at 0.9 s nothing is kept.
    assert _best(seconds, {8: 90.0, 16: 45.0, 32: 0.0}, 90.0, 8) == 8
    assert _best(seconds, {8: 45.0, 16: 45.0, 32: -1.0}, 90.0, 8) == 16
    assert _best(seconds, {8: -1.0, 16: -2.0, 32: -3.0}, 90.0, 8) == 8
    assert _best({8: 0.0}, {}, 90.0, 4) == 4
    assert _best({8: 1.04, 16: 1.0}, {8: 90.0, 16: 90.0}, 90.0, 8) == 8, "no difference that a measurement shows"
    assert _best(seconds, {8: 1.0, 16: 1.0, 32: 1.0}, 0.0, 8) == 32


def test_beside_what_is_kept_there_is_room_for_the_longest_text_of_every_stage(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later stage may read longer texts than the first, whose batch is what is measured."""
    asked = []

    def room(student: object, memory: object, chunk: int, shards: int, state: int) -> float:
        asked.append(chunk)
        return 1e9

    monkeypatch.setattr("train.calibrate._room", room)
    monkeypatch.setitem(CANDIDATES, "cpu", (16,))
    recipe = make_recipe(student_config, stage(steps=1, max_tokens=24), stage(name="long", steps=1, max_tokens=48))
    recipe = recipe.model_copy(update={"compute": ComputeConfig()})
    train(recipe, build_student(recipe.student, teacher, 0), inputs, tmp_path)
    assert max(inputs.tokens.lengths) > 48
    assert set(asked) == {48}

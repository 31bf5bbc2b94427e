"""Evaluations while training: which checkpoint was the best, and when it is enough. They change nothing else."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from embedding.embedder import Embedder
from eval.ranks import Ranks
from tests.train.test_loop import Killed, dying, make_recipe, stage
from train.checkpoint import checkpoints, newest_checkpoint
from train.loop import train
from train.plan import Inputs, checkpoint_identity
from train.recipe import StudentConfig, TrackingConfig
from train.student import build_student
from train.watch import due


class Judge:
    """Gives the means it was told to give, and keeps the weights it saw; leaves no trace, as an evaluation must."""

    def __init__(self, *means: float) -> None:
        self.means, self.seen = list(means), list[dict[str, torch.Tensor]]()

    def __call__(self, model: Embedder, ranks: Ranks) -> dict[str, float]:
        self.seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"eval/mean": self.means[len(self.seen) - 1]}


def run(judge: Judge, inputs: Inputs, teacher: Embedder, config: StudentConfig, folder: Path, **tracking: Any) -> Any:
    """Eight steps, evaluated before the first and after each second one."""
    recipe = make_recipe(config, stage())
    watching = TrackingConfig(log_every=1, checkpoint_every=100, keep=1, evaluate_every=2, **tracking)
    recipe = recipe.model_copy(update={"tracking": watching})
    student = build_student(recipe.student, teacher, recipe.seed)
    report = train(recipe, student, inputs, folder, evaluate=judge)
    return report, checkpoint_identity(recipe, inputs)


def test_the_best_checkpoint_stays_with_the_weights_that_were_measured(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    judge = Judge(0.9, 0.3, 0.6, 0.5, 0.4)  # the first is of the untrained student: it is never the best
    report, made_from = run(judge, inputs, teacher, student_config, tmp_path, export="best")
    assert report.steps == 8
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step-00000004", "step-00000008"]
    last, _ = newest_checkpoint(tmp_path / "checkpoints", made_from)
    assert last is not None
    assert last.facts["best"] == [4, 0.6]
    best, _ = newest_checkpoint(tmp_path / "checkpoints", made_from, 4)
    assert best is not None
    for name, tensor in judge.seen[2].items():
        assert torch.equal(best.model[f"embedder.{name}"], tensor), name


def test_an_evaluation_computes_in_what_models_are_measured_in_and_the_training_does_not(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU that is bfloat16: in float32 a long text of a student with grouped heads does not fit one."""
    monkeypatch.setattr("train.watch.measured_in", lambda device: torch.bfloat16)
    recipe = make_recipe(student_config, stage(steps=2))
    recipe = recipe.model_copy(update={"tracking": TrackingConfig(log_every=1, evaluate_every=1)})
    student, seen = build_student(recipe.student, teacher, recipe.seed), []

    def judge(model: Embedder, ranks: Ranks) -> dict[str, float]:
        seen.append(model.computes_in)
        return {"eval/mean": 0.5}

    train(recipe, student, inputs, tmp_path, evaluate=judge)
    assert seen == [torch.bfloat16] * 2
    assert student.embedder.computes_in is None


def test_it_stops_when_patience_ends_and_stays_stopped(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    judge = Judge(0.1, 0.6, 0.5, 0.4)
    report, made_from = run(judge, inputs, teacher, student_config, tmp_path, patience=2)
    assert (report.steps, len(judge.seen)) == (6, 4)
    again, _ = run(Judge(), inputs, teacher, student_config, tmp_path, patience=2)
    assert (again.resumed_from, again.steps) == (6, 0)
    patient, _ = run(Judge(0.5, 0.4), inputs, teacher, student_config, tmp_path, patience=3)
    assert patient.resumed_from + patient.steps == 8
    last, _ = newest_checkpoint(tmp_path / "checkpoints", made_from)
    assert last is not None
    assert last.facts["best"] == [2, 0.6]


@pytest.mark.parametrize(
    "every, steps, expected",
    [(2, 7, [0, 2, 4, 6]), (0.25, 8, [0, 2, 4, 6]), (0.5, 5, [0, 3]), (1, 3, [0, 1, 2])],
)
def test_when_an_evaluation_is_due(every: float, steps: int, expected: list[int]) -> None:
    watching = TrackingConfig(evaluate_every=every)
    assert [step for step in range(steps + 1) if due(step, watching, steps)] == expected
    deciding = TrackingConfig(evaluate_every=every, export="best")
    assert [step for step in range(steps + 1) if due(step, deciding, steps)] == [*expected, steps]


def test_a_floor_ends_the_training_where_too_much_is_forgotten_and_keeps_the_last_good_checkpoint(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    judge = Judge(0.8, 0.9, 0.77, 0.75)  # 95 % of 0.8 are 0.76
    report, made_from = run(judge, inputs, teacher, student_config, tmp_path, floor=0.95)
    assert (report.steps, len(judge.seen)) == (6, 4)
    again, _ = run(Judge(), inputs, teacher, student_config, tmp_path, floor=0.95)
    assert (again.resumed_from, again.steps) == (6, 0)
    last, _ = newest_checkpoint(tmp_path / "checkpoints", made_from)
    assert last is not None
    assert last.facts["best"] == [4, 0.77]
    good, _ = newest_checkpoint(tmp_path / "checkpoints", made_from, 4)
    assert good is not None
    for name, tensor in judge.seen[2].items():
        assert torch.equal(good.model[f"embedder.{name}"], tensor), name
    lower, _ = run(Judge(0.75), inputs, teacher, student_config, tmp_path, floor=0.9)
    assert lower.resumed_from + lower.steps == 8


def test_a_floor_needs_evaluations_and_no_other_choice_of_checkpoint() -> None:
    with pytest.raises(ValueError, match="need evaluations while training"):
        TrackingConfig(floor=0.9)
    with pytest.raises(ValueError, match="give one of them"):
        TrackingConfig(floor=0.9, evaluate_every=2, export="best")


def test_a_floor_that_comes_later_is_refused(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    recipe = make_recipe(student_config, stage())
    plain = recipe.model_copy(update={"tracking": TrackingConfig(log_every=1, checkpoint_every=2)})
    train(plain, build_student(recipe.student, teacher, 0), inputs, tmp_path)
    for path in sorted((tmp_path / "checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    shutil.rmtree(tmp_path / "stages")
    with pytest.raises(ValueError, match="goes by the score before the first step"):
        run(Judge(*[0.5] * 9), inputs, teacher, student_config, tmp_path, floor=0.9)


def test_a_run_whose_first_evaluation_had_no_mean_goes_on_after_a_kill(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    class Failing(Judge):
        def __call__(self, model: Embedder, ranks: Ranks) -> dict[str, float]:
            scores = super().__call__(model, ranks)
            return {} if len(self.seen) == 1 else scores

    run(Failing(*[0.5] * 9), inputs, teacher, student_config, tmp_path, floor=0.9)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").mkdir()
    recipe = make_recipe(student_config, stage())
    tracking = TrackingConfig(log_every=1, checkpoint_every=1, keep=9, evaluate_every=2, floor=0.9)
    recipe = recipe.model_copy(update={"tracking": tracking})
    with pytest.raises(Killed):
        train(
            recipe, build_student(recipe.student, teacher, 0), dying(inputs, 1), tmp_path, evaluate=Failing(*[0.5] * 9)
        )
    report, _ = run(Judge(*[0.5] * 9), inputs, teacher, student_config, tmp_path, floor=0.9)
    assert report.resumed_from == 1

"""Stages: what each begins from, what it leaves frozen, what a rerun finds, what is merged at the end."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from embedding.embedder import Embedder
from embedding.instruction import Template
from eval.ranks import Ranks
from train.checkpoint import newest_checkpoint
from train.frozen import frozen_in
from train.loop import train
from train.losses import InfoNCE, Match
from train.merge import slerp_of
from train.plan import Inputs, checkpoint_identity
from train.recipe import ComputeConfig, Lora, MergeConfig, PrunedStudent, Recipe, Stage, StudentConfig, TrackingConfig
from train.spikes import SpikeConfig
from train.student import Student, build_student, finished
from train.views import Ramp

from .test_loop import TEACHER, DataConfig, same, weights


def stage(name: str, **changes: object) -> Stage:
    values = {"steps": 2, "batch_size": 8, "max_tokens": 24, "learning_rate": 3e-3, "losses": [Match()]}
    return Stage(name=name, **(values | changes))  # type: ignore[arg-type]


def make_recipe(student: StudentConfig, *stages: Stage, **changes: object) -> Recipe:
    values = {
        "tracking": TrackingConfig(log_every=1, checkpoint_every=1),
        "compute": ComputeConfig(token_budget=256),
        "merge": None,
    } | changes
    return Recipe(name="t", data=DataConfig(), teacher=TEACHER, student=student, stages=list(stages), **values)  # type: ignore[arg-type]


@pytest.fixture
def fresh(student_config: StudentConfig, teacher: Embedder) -> Student:
    return build_student(student_config, teacher, 0)


def test_frozen_parts_keep_their_weights_and_the_others_do_not(
    inputs: Inputs, fresh: Student, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    before = weights(fresh)
    only = stage("map", freeze=["embeddings", "layers"])
    train(make_recipe(student_config, only), fresh, inputs, tmp_path / "a")
    moved = {name for name, tensor in weights(fresh).items() if not torch.equal(tensor, before[name])}
    assert moved == {"projection.weight"}
    then = stage("rest", freeze=["embeddings", "projection"])
    again = build_student(student_config, teacher, 0)
    again.load_state_dict(before)
    train(make_recipe(student_config, only, then), again, inputs, tmp_path / "b")
    moved = {name for name, tensor in weights(again).items() if not torch.equal(tensor, before[name])}
    assert "projection.weight" in moved
    assert not any("embed_tokens" in name for name in moved)
    assert any("layers.0" in name for name in moved)
    nothing = make_recipe(student_config, stage("none", freeze=["embeddings", "layers", "projection"]))
    unread = make_recipe(student_config, stage("unread", freeze=["embeddings", "layers"], losses=[InfoNCE()]))
    for recipe in (nothing, unread):
        with pytest.raises(ValueError, match="leaves nothing of the student to train"):
            train(recipe, fresh, inputs, tmp_path / "c")


def test_a_map_is_trained_only_where_a_loss_looks_through_it() -> None:
    assert frozen_in(stage("match", losses=[InfoNCE(), Match()], freeze=["embeddings"])) == ["embeddings"]
    assert frozen_in(stage("contrast", losses=[InfoNCE()], freeze=["embeddings"])) == ["embeddings", "projection"]


def test_a_loss_that_matches_nothing_may_be_cut_above_the_stored_width(
    inputs: Inputs, student_config: StudentConfig, teacher: Embedder, tmp_path: Path
) -> None:
    def narrow(rows: np.ndarray) -> np.ndarray:
        assert inputs.vectors is not None
        part = inputs.vectors(rows)[:, :16]
        return part / np.linalg.norm(part, axis=1, keepdims=True)

    recipe = make_recipe(student_config, stage("both", losses=[Match(), InfoNCE(widths=[24, 8])]))
    student = build_student(student_config, teacher, 0, width=16)
    before = weights(student)
    report = train(recipe, student, replace(inputs, vectors=narrow), tmp_path / "a")
    assert report.steps == 2
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(student).items())


def test_a_finished_stage_is_not_done_again_when_a_later_one_changes(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = stage("align"), stage("sharpen", learning_rate=1e-3)
    whole = build_student(student_config, teacher, 0)
    train(make_recipe(student_config, first, second), whole, inputs, tmp_path / "whole")

    other = build_student(student_config, teacher, 0)
    train(make_recipe(student_config, first, stage("sharpen", learning_rate=9e-3)), other, inputs, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.rename(tmp_path / path.name)  # as the pipeline does when a training's inputs changed
    capsys.readouterr()
    rerun = build_student(student_config, teacher, 0)
    report = train(make_recipe(student_config, first, second), rerun, inputs, tmp_path / "run")
    assert "stage align: skipped, finished before" in capsys.readouterr().err
    assert (report.steps, report.resumed_from) == (2, 2)
    assert same(weights(whole), weights(rerun))


def test_weights_whose_last_checkpoint_was_never_written_become_it(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # a disk that is full just then, or a run that gives up its last stage
    first, second = stage("align"), stage("sharpen")
    student = build_student(student_config, teacher, 0)
    train(make_recipe(student_config, first, second), student, inputs, tmp_path)
    for left in ([first, second], [first]):
        recipe = make_recipe(student_config, *left)
        shutil.rmtree(tmp_path / "checkpoints")
        capsys.readouterr()
        rerun = build_student(student_config, teacher, 0)
        report = train(recipe, rerun, inputs, tmp_path)
        assert f"stage {left[-1].name}: skipped, finished before" in capsys.readouterr().err
        assert (report.steps, report.resumed_from) == (0, 2 * len(left))
        last, _ = newest_checkpoint(tmp_path / "checkpoints", checkpoint_identity(recipe, inputs))
        assert last is not None
        assert last.step == 2 * len(left)
        assert same(last.model, weights(rerun))
        assert same(last.model, weights(student)) == (len(left) == 2)

    # where evaluations decide, every stage runs again: what they found went with the checkpoints
    shutil.rmtree(tmp_path / "checkpoints")
    deciding = make_recipe(
        student_config, first, second, tracking=TrackingConfig(checkpoint_every=1, evaluate_every=1, export="best")
    )
    again = build_student(student_config, teacher, 0)
    report = train(deciding, again, inputs, tmp_path, evaluate=lambda model, ranks: {"eval/mean": 0.5})
    assert (report.steps, report.resumed_from) == (4, 0)


def test_a_rerun_of_a_later_stage_is_measured_from_the_same_start(
    inputs: Inputs, teacher: Embedder, tmp_path: Path
) -> None:
    seen = []

    def evaluate(model: Embedder, ranks: Ranks) -> dict[str, float]:
        seen.append(float(model.encode(["a hawk"])[0, 0]))
        return {"eval/mean": 0.5}

    start = PrunedStudent(keep=1, by="top", fold=True)
    config = StudentConfig(start=start, max_tokens=64, template=Template(query=""))
    tracking = TrackingConfig(log_every=1, evaluate_every=2)
    for rate in (1e-3, 2e-3):
        recipe = make_recipe(config, stage("align"), stage("sharpen", learning_rate=rate), tracking=tracking)
        train(recipe, build_student(config, teacher, 0), inputs, tmp_path, evaluate=evaluate)
        shutil.rmtree(tmp_path / "checkpoints")  # as the pipeline does where the recipe changed
    before, between, again = seen
    assert again == before, "folded, as the first training began"
    assert before != between
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "eval/mean" in line] == [0, 2]
    assert [json.loads(line)["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


def test_the_last_checkpoint_of_a_stage_has_no_optimizer_since_nobody_would_read_it(
    inputs: Inputs, fresh: Student, student_config: StudentConfig, tmp_path: Path
) -> None:
    recipe = make_recipe(student_config, stage("only", steps=3, ema=0.9))
    train(recipe, fresh, inputs, tmp_path)
    identity = checkpoint_identity(recipe, inputs)
    middle, _ = newest_checkpoint(tmp_path / "checkpoints", identity, 2)
    last, _ = newest_checkpoint(tmp_path / "checkpoints", identity)
    assert middle is not None
    assert last is not None
    assert middle.optimizer.keys() > {"projection.weight.exp_avg"}
    assert middle.average.keys() == middle.model.keys() == last.model.keys()
    assert (last.step, last.optimizer, last.average) == (3, {}, {})


def test_branches_begin_where_they_say_and_are_merged(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    one, two = stage("one", begin="align"), stage("two", begin="align", learning_rate=1e-3)
    recipe = make_recipe(
        student_config, stage("align"), one, two, merge=MergeConfig(of=["one", "two"], weights=[1.0, 3.0])
    )
    student = build_student(student_config, teacher, 0)
    report = train(recipe, student, inputs, tmp_path)
    assert report.steps + report.resumed_from == 7
    ends = [newest_checkpoint(tmp_path / "stages" / name, made) for name, made in stage_facts(tmp_path)]
    a, b = (found.model for found, _ in ends if found is not None)
    for name, tensor in weights(student).items():
        torch.testing.assert_close(tensor, (a[name] + 3 * b[name]) / 4, rtol=1e-5, atol=1e-7)
        assert "embed" not in name or not torch.equal(a[name], b[name])
    last, _ = newest_checkpoint(tmp_path / "checkpoints", checkpoint_identity(recipe, inputs))
    assert last is not None
    assert last.step == 7
    assert same(last.model, weights(student))

    seen = []

    def evaluate(model: Embedder, ranks: Ranks) -> dict[str, float]:
        seen.append(model)
        return {"eval/mean": float(len(seen) == 2)}  # the second alone is best, and no soup is better

    arc = recipe.model_copy(update={"merge": MergeConfig(of=["one", "two"], method="slerp", weights=[1.0, 3.0])})
    arced = build_student(student_config, teacher, 0)
    train(arc, arced, inputs, tmp_path / "arc")
    between = slerp_of([a, b], [1.0, 3.0])
    for name, tensor in weights(arced).items():
        torch.testing.assert_close(tensor, between[name], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"merge\.weights: expected one for each of the 2 stages"):
        Recipe(**(recipe.model_dump() | {"merge": {"of": ["one", "two"], "weights": [1.0]}}))
    with pytest.raises(ValueError, match="a greedy soup finds its own"):
        Recipe(**(recipe.model_dump() | {"merge": {"of": ["one", "two"], "method": "greedy", "weights": [1.0, 1.0]}}))
    with pytest.raises(ValueError, match="merge makes another model of whole stages"):
        Recipe(**(recipe.model_dump() | {"tracking": {"evaluate_every": 0.5, "patience": 2}}))

    soup = recipe.model_copy(update={"merge": MergeConfig(of=["one", "two"], method="greedy")})
    train(soup, student, inputs, tmp_path / "soup", evaluate=evaluate)
    assert len(seen) == 3
    with pytest.raises(ValueError, match="no stage is called 'three'"):
        make_recipe(student_config, one.model_copy(update={"begin": None}), merge=MergeConfig(of=["one", "three"]))
    with pytest.raises(ValueError, match="begins from 'align', which is no earlier stage"):
        make_recipe(student_config, one)


def stage_facts(run: Path) -> list[tuple[str, dict[str, object]]]:
    from embedding.files import read_manifest

    found = []
    for name in ("one", "two"):
        manifest = read_manifest(next((run / "stages" / name).glob("step-*")))
        assert manifest is not None
        found.append((name, manifest["made_from"]))
    return found


def test_a_killed_stage_with_an_average_and_spikes_ends_bit_for_bit_where_the_undisturbed_one_does(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    # every gradient far above 1.01 times the median is a spike here, so that some are left out
    rising = Match(weight=Ramp(start=1.0, end=9.0))
    recipe = make_recipe(
        student_config,
        stage("align", steps=8, ema=0.7, losses=[rising]),
        spikes=SpikeConfig(factor=1.01, warmup=1, window=5, in_a_row=2),
    )
    whole = build_student(student_config, teacher, 0)
    train(recipe, whole, inputs, tmp_path / "whole")
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert 0 < int(lines[-1].split('"skipped": ')[1].split(",")[0]) < 8
    train(recipe, build_student(student_config, teacher, 0), inputs, tmp_path / "cut")
    for path in sorted((tmp_path / "cut" / "checkpoints").iterdir())[1:]:
        path.rename(tmp_path / path.name)
    for path in (tmp_path / "cut" / "stages").rglob("step-*"):
        path.rename(tmp_path / "gone")
    rest = build_student(student_config, teacher, 0)
    report = train(recipe, rest, inputs, tmp_path / "cut")
    assert report.resumed_from == 7
    assert same(weights(whole), weights(rest))


def test_finished_stages_that_come_later_are_taken_over_after_an_interruption_too(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def recipe(rate: float) -> Recipe:
        parts = [stage("base"), stage("a", begin="base", learning_rate=rate), stage("b", begin="base")]
        tracking = TrackingConfig(log_every=1, checkpoint_every=1, keep=9)
        return make_recipe(student_config, *parts, merge=MergeConfig(of=["a", "b"]), tracking=tracking)

    whole = build_student(student_config, teacher, 0)
    train(recipe(1e-3), whole, inputs, tmp_path / "whole")
    train(recipe(9e-3), build_student(student_config, teacher, 0), inputs, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    train(recipe(1e-3), build_student(student_config, teacher, 0), inputs, tmp_path / "cut")
    # as it lies there when the training of the changed `a` was stopped at its first step, which is the third
    (tmp_path / "run" / "checkpoints").mkdir()
    third = next(path for path in (tmp_path / "cut" / "checkpoints").iterdir() if path.name.endswith("3"))
    shutil.copytree(third, tmp_path / "run" / "checkpoints" / third.name)
    shutil.rmtree(tmp_path / "run" / "stages" / "a")
    capsys.readouterr()
    rest = build_student(student_config, teacher, 0)
    report = train(recipe(1e-3), rest, inputs, tmp_path / "run")
    said = capsys.readouterr().err
    assert "resumed from step 3" in said
    assert "stage b: skipped, finished before" in said
    assert report.steps == 1
    assert same(weights(whole), weights(rest))
    logged = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sorted(logged) == [1, 2, 3, 4, 5, 6], "what was noted of the stage that is taken over stays"

    again = build_student(student_config, teacher, 0)
    assert train(recipe(1e-3), again, inputs, tmp_path / "run").steps == 0
    assert same(weights(whole), weights(again)), "all is done, the merge too"


def test_stages_of_adapters_merge_as_the_models_that_they_are(
    inputs: Inputs, teacher: Embedder, tmp_path: Path
) -> None:
    config = StudentConfig(start=PrunedStudent(layers=[1, 4]), max_tokens=64, lora=Lora(rank=2, alpha=4))
    one, two = stage("one", begin="align"), stage("two", begin="align", learning_rate=9e-3)
    student = build_student(config, teacher, 0)
    train(
        make_recipe(config, stage("align"), one, two, merge=MergeConfig(of=["one", "two"])), student, inputs, tmp_path
    )
    models = []
    for name, made in stage_facts(tmp_path):
        found, _ = newest_checkpoint(tmp_path / "stages" / name, made)
        assert found is not None
        model = build_student(config, teacher, 0)
        model.load_state_dict(found.model)
        models.append(weights_of(finished(model, keep_projection=False)))
    for name, tensor in weights_of(finished(student, keep_projection=False)).items():
        torch.testing.assert_close(tensor, (models[0][name] + models[1][name]) / 2, rtol=1e-5, atol=1e-6)
    packed = config.model_copy(update={"lora": Lora(four_bit=True)})
    with pytest.raises(ValueError, match="four_bit keeps packed"):
        make_recipe(packed, stage("align"), one, two, merge=MergeConfig(of=["one", "two"]))


def weights_of(model: Embedder) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

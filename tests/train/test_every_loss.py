"""Every loss through the real step, at the full width and at a cut one: chunks, recomputing and ranks change nothing;
and what a loss asks for is refused where the recipe cannot give it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.pairs import TEACHER, docstring_pairs, load_inputs, ranking_rows, write_inputs
from benchmarks.processes import run_alone, run_ranks
from benchmarks.ranks import small_recipe
from benchmarks.steps import train_state
from data_prep.rows import Row
from embedding.embedder import Embedder
from embedding.instruction import Template
from train.frozen import freeze, frozen_in
from train.losses import CoSENT, Gram, InfoNCE, MarginMSE, Match, Own, Relative, ScoreKL, Spread, match_part
from train.plan import Inputs, plan_stages
from train.recipe import StudentConfig
from train.step import Memory, prepare_work, train_step
from train.student import build_student
from train.views import LossConfig, Views

from .test_loop import make_recipe, stage

STEPS = 3
LARGE_CHUNKS = Memory(token_budget=1 << 16, activation_bytes=1e12, bytes_per_token=1.0)
"""All kept."""
MANY_CHUNKS = Memory(token_budget=192, activation_bytes=2.5 * 192, bytes_per_token=1.0)
"""Of which two are kept and the others recomputed."""


def apart(views: Views, by: float) -> Tensor:
    """Somebody's own loss, of the gathered vectors alone: queries far from each other."""
    queries_BD = views.text_ND[views.query_B]
    return by * (queries_BD[views.rows] @ queries_BD.T).square().sum() / len(queries_BD) ** 2


def matched(views: Views) -> Tensor:
    """Somebody's own loss, which is match once more."""
    return match_part(Match(), views)


LOSSES: dict[str, LossConfig] = {
    "match": Match(widths=[8]),
    "match-mse": Match(distance="mse", widths=[8], on=["query", "positive"]),
    "info_nce": InfoNCE(temperature=0.05, widths=[8]),
    "info_nce-all": InfoNCE(
        temperature=0.05, margin=0.1, teacher_margin=0.1, hardness=2.0, same_tower=True, widths=[8]
    ),
    "gram": Gram(widths=[8]),
    "relative": Relative(widths=[8]),
    "score_kl": ScoreKL(widths=[8]),
    "margin_mse": MarginMSE(widths=[8]),
    "cosent": CoSENT(widths=[8]),
    "spread": Spread(widths=[8]),
    "own": Own(function=f"{__name__}:apart", options={"by": 3.0}, widths=[8]),
    "own-match": Own(function=f"{__name__}:matched", widths=[8]),
}
GRADED = ("cosent",)


def each_loss(folder: str, memory: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a rank finds of each loss: some steps under SGD, as `train.loop` takes them."""
    accelerator, teacher = Accelerator(cpu=True), Embedder.from_pretrained(TEACHER)
    found = {}
    for name, loss in LOSSES.items():
        recipe = small_recipe(STEPS)
        only = recipe.stages[0].model_copy(update={"losses": [loss]})
        inputs = load_inputs(Path(folder) / ("graded" if name in GRADED else "ranked"))
        (plan,) = plan_stages(recipe.model_copy(update={"stages": [only]}), inputs)
        student = build_student(recipe.student, teacher, recipe.seed).train()
        freeze(student, frozen_in(only), frozenset(name for name, _ in student.named_parameters()))
        wrapped = accelerator.prepare_model(student)
        learning = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD([{"params": learning, "base_lr": 0.05}], lr=0.05)
        state = train_state(accelerator, wrapped, student, optimizer, plan, Memory(**memory))
        before = flat(student)
        works = [prepare_work(plan.sampler, inputs.vectors, step) for step in range(STEPS)]
        lines = [train_step(state, work) for work in works]
        found[name] = {
            "loss": [line["loss"] for line in lines],
            "norm": [line["grad_norm"] for line in lines],
            "weights": flat(student),
            "moved": float((flat(student) - before).abs().max()),
            "chunks": len(works[0].share.chunks(state.memory.token_budget, packed=state.memory.packed)),
            "ddp": isinstance(wrapped, DistributedDataParallel),
        }
    return found


def flat(student: torch.nn.Module) -> Tensor:
    """All weights in one row."""
    return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, teacher = tmp_path_factory.mktemp("losses"), Embedder.from_pretrained(TEACHER, max_tokens=64)
    pairs = docstring_pairs(60)
    rows = ranking_rows(pairs, negatives=2, repeats=4)
    graded = [Row(row.query, row.positives, score=float(at % 5)) for at, row in enumerate(rows)]
    for name, of in (("ranked", rows), ("graded", graded)):
        (folder / name).mkdir()
        write_inputs(folder / name, of, teacher, template=Template())
    return {
        "whole": run_alone(1, each_loss, str(folder), LARGE_CHUNKS.__dict__)[0],
        "chunks": run_alone(1, each_loss, str(folder), MANY_CHUNKS.__dict__)[0],
        "ranks": run_ranks(2, each_loss, str(folder), MANY_CHUNKS.__dict__)[0],
    }


@pytest.mark.parametrize("name", LOSSES)
def test_neither_chunks_nor_ranks_change_what_a_loss_does(name: str, ways: dict[str, Any]) -> None:
    whole, chunks, ranks = (ways[way][name] for way in ("whole", "chunks", "ranks"))
    assert (whole["ddp"], chunks["ddp"], ranks["ddp"]) == (False, False, True)
    assert chunks["chunks"] > max(3, whole["chunks"], ranks["chunks"])
    assert whole["moved"] > 1e-4, "else all would be equal whatever they did"
    for other in (chunks, ranks):
        assert other["loss"] == pytest.approx(whole["loss"], rel=2e-5)
        assert other["norm"] == pytest.approx(whole["norm"], rel=2e-4)
        torch.testing.assert_close(other["weights"], whole["weights"], rtol=0, atol=2e-5)


def test_an_own_loss_sees_what_a_loss_of_ours_sees_at_a_cut_width_too(ways: dict[str, Any]) -> None:
    ours, own = ways["whole"]["match"], ways["whole"]["own-match"]
    assert own["loss"] == pytest.approx(ours["loss"], rel=1e-6)
    torch.testing.assert_close(own["weights"], ours["weights"], rtol=0, atol=1e-6)


def test_what_a_loss_asks_for_as_it_is_set_is_refused_where_there_is_none(
    inputs: Inputs, student_config: StudentConfig
) -> None:
    alone = replace(inputs, vectors=None)
    own = {"function": f"{__name__}:apart", "options": {"by": 1.0}}
    cases: list[tuple[Inputs, LossConfig, str]] = [
        (inputs, ScoreKL(candidates="row"), r"a score_kl loss needs rows with negatives \(and `negatives` above 0\)"),
        (alone, InfoNCE(teacher_margin=0.1), "a info_nce loss needs the teacher's vectors"),
        (alone, Own(**own, asks_for=["teacher"]), "a own loss needs the teacher's vectors"),
        (inputs, Own(**own, asks_for=["graded"]), "a own loss needs rows with a score"),
        (inputs, Own(function=f"{__name__}:nothing"), "has no function nothing"),
    ]
    for data, loss, message in cases:
        with pytest.raises(ValueError, match=message):
            plan_stages(make_recipe(student_config, stage(losses=[loss], negatives=0)), data)
    allowed = [InfoNCE(temperature=0.05), Own(**own, asks_for=["pairs"])]
    assert len(plan_stages(make_recipe(student_config, stage(losses=allowed)), alone)) == 1

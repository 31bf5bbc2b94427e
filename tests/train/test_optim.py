"""The optimizer's groups and the schedule, against numbers written out by hand."""

import math

import pytest
import torch
from transformers import AutoConfig, AutoModel

from embedding.embedder import Embedder
from train.frozen import freeze
from train.losses import Match
from train.optim import build_optimizer, embedding_tables, schedule_factor, set_learning_rate
from train.recipe import Stage, StudentConfig
from train.student import build_student


def stage(**changes: object) -> Stage:
    values: dict[str, object] = {"name": "match", "steps": 8, "batch_size": 16, "max_tokens": 32, "losses": [Match()]}
    return Stage(**(values | {"learning_rate": 0.002} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "schedule, after_warmup",
    [
        ("linear", [1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("cosine", [0.5 * (1 + math.cos(math.pi * done / 6)) for done in range(6)]),
        ("constant", [1.0] * 6),
    ],
)
def test_the_rate_warms_up_and_then_follows_its_schedule(schedule: str, after_warmup: list[float]) -> None:
    of = stage(schedule=schedule, warmup=0.25)
    assert [schedule_factor(of, step, 8) for step in range(8)] == pytest.approx([0.5, 1.0, *after_warmup])
    assert schedule_factor(stage(schedule=schedule, warmup=0.0), 0, 8) == 1.0
    assert schedule_factor(stage(schedule=schedule, warmup=0.0), 0, 1) == 1.0


def test_matrices_decay_and_token_embeddings_have_a_rate_of_their_own(
    teacher: Embedder, student_config: StudentConfig
) -> None:
    student = build_student(student_config, teacher, 0)
    of = stage(embedding_learning_rate=0.01, weight_decay=0.1, betas=(0.8, 0.9))
    optimizer = build_optimizer(of, student)
    group_of = {id(x): group for group in optimizer.param_groups for x in group["params"]}
    set_learning_rate(optimizer, 0.5)
    found = {name: group_of[id(x)] for name, x in student.named_parameters()}
    assert len(found) == sum(len(group["params"]) for group in optimizer.param_groups)
    for name, group in found.items():
        embeds, matrix = "embed_tokens" in name, name.endswith("proj.weight") or name == "projection.weight"
        assert group["lr"] == pytest.approx(0.005 if embeds else 0.001), name
        assert group["weight_decay"] == (0.1 if matrix else 0.0), name
        assert group["betas"] == (0.8, 0.9)
    assert sum(group["weight_decay"] > 0 for group in found.values()) > 2 * 7

    same = build_optimizer(stage(), student)  # without a rate of their own
    assert {group["base_lr"] for group in same.param_groups} == {0.002}
    freeze(student, ["embeddings", "projection"], frozenset(found))
    left = {id(x) for group in build_optimizer(of, student).param_groups for x in group["params"]}
    assert left == {
        id(x) for name, x in student.named_parameters() if ".layers." in name or name.endswith("norm.weight")
    }


@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2", "xlnet", "distilbert"])
def test_token_embeddings_are_known_however_a_model_calls_them(kind: str) -> None:
    shape = {"vocab_size": 100, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    names = {"gpt2": {"n_embd": 48, "n_layer": 1, "n_head": 4}, "xlnet": {"d_model": 48, "n_layer": 1, "n_head": 4}}
    model = AutoModel.from_config(AutoConfig.for_model(kind, **shape, **names.get(kind, {})))
    (table,) = embedding_tables(torch.nn.ModuleDict({"embedder": model}))
    assert dict(model.named_parameters())[table.removeprefix("embedder.")].shape[0] == 100
    freeze(model, ["embeddings"], frozenset(name for name, _ in model.named_parameters()))
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == [table.removeprefix("embedder.")]

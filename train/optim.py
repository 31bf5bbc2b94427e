"""The optimizer and its schedule. The learning rate is a function of the step: nothing to save, nothing to replay."""

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from train.recipe import Stage


def schedule_factor(stage: Stage, step: int, steps: int) -> float:
    """What a step (from 0) of `steps` multiplies the stage's rates with: up from 0 by `warmup`, then by `schedule`."""
    warmup = int(stage.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if stage.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * done)) if stage.schedule == "cosine" else 1.0 - done


def build_optimizer(stage: Stage, student: nn.Module) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101): decay on matrices only, token embeddings at their own rate.

    Parameters are in it with their names, by which a saved state finds them again.
    """
    matrices, embeddings, vectors = [], [], []
    tables = embedding_tables(student)
    for name, parameter in sorted(student.named_parameters()):
        if not parameter.requires_grad:
            continue
        if name in tables:
            embeddings.append((name, parameter))
        elif parameter.ndim >= 2:
            matrices.append((name, parameter))
        else:
            vectors.append((name, parameter))
    embedding_rate = stage.embedding_learning_rate or stage.learning_rate
    groups: list[dict[str, Any]] = [
        {"params": matrices, "base_lr": stage.learning_rate, "weight_decay": stage.weight_decay},
        {"params": embeddings, "base_lr": embedding_rate, "weight_decay": 0.0},
        {"params": vectors, "base_lr": stage.learning_rate, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=stage.learning_rate, betas=stage.betas, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's rate to its base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def embedding_tables(student: nn.Module) -> set[str]:
    """The names of the parameters that are tables of token embeddings, however a model calls them."""
    tables = {
        id(module.get_input_embeddings().weight) for module in student.modules() if isinstance(module, PreTrainedModel)
    }
    return {name for name, parameter in student.named_parameters() if id(parameter) in tables}

"""What stays frozen in a stage."""

from collections.abc import Sequence

from torch import nn

from train.losses import PROJECTED
from train.optim import embedding_tables
from train.recipe import Frozen, Stage


def parts_of(student: nn.Module) -> dict[str, Frozen]:
    """Which part of the student each of its parameters belongs to."""
    tables = embedding_tables(student)

    def part(name: str) -> Frozen:
        return "projection" if name.startswith("projection.") else "embeddings" if name in tables else "layers"

    return {name: part(name) for name, _ in student.named_parameters()}


def frozen_in(stage: Stage) -> list[Frozen]:
    """The parts that a stage does not train: those of its recipe, and the projection where no loss looks through it,
    since DDP waits for the gradient of every parameter that has one coming."""
    looks = any(isinstance(loss, PROJECTED) for loss in stage.losses)
    return [*stage.freeze, *(() if looks else ("projection",))]


def freeze(student: nn.Module, frozen: Sequence[Frozen], trainable: frozenset[str]) -> None:
    """Only the parts that a stage trains get gradients; of those, what the student trains at all (`trainable`)."""
    parts = parts_of(student)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in trainable and parts[name] not in frozen)


def check_frozen(stages: Sequence[Stage], student: nn.Module) -> None:
    """Every stage must leave something to train.

    Raises:
        ValueError: one does not.
    """
    part_of = parts_of(student)
    parts = {part_of[name] for name, parameter in student.named_parameters() if parameter.requires_grad}
    for stage in stages:
        if parts <= set(frozen := frozen_in(stage)):
            raise ValueError(
                f"stage {stage.name!r}: freeze: {', '.join(frozen)} leaves nothing of the student to train"
            )

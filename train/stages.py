"""Stages of a run: what each begins from, and its finished weights, which a rerun finds again.

The weights at the end of a stage lie in `stages/NAME` of the run's folder, with everything that made them: seed,
student, data, and the settings of the stage and of all stages it began from. A later stage may be changed, or one
added, and the finished ones before it are not done again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from embedding.files import differences, read_manifest
from train.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from train.plan import Inputs, StagePlan, checkpoint_identity
from train.recipe import Recipe


def origin(plans: Sequence[StagePlan], number: int) -> int | None:
    """The stage whose weights stage `number` begins from; None: the untrained student."""
    begin = plans[number].stage.begin
    if begin is not None:
        return next(i for i, plan in enumerate(plans) if plan.stage.name == begin)
    return number - 1 if number else None


def stage_identity(recipe: Recipe, inputs: Inputs, plans: Sequence[StagePlan], number: int) -> dict[str, Any]:
    """What the weights at the end of a stage are made from."""
    whole = checkpoint_identity(recipe, inputs)
    chain, at = [], number
    while True:
        chain.append({"number": at, **whole["stages"][at], "begin": origin(plans, at)})
        before = origin(plans, at)
        if before is None:
            break
        at = before
    made = {name: value for name, value in whole.items() if name not in ("stages", "merge")}
    made["inputs"].pop("suite", None)  # decides after them
    return {**made, "stages": chain[::-1]}


def save_stage(folder: Path, name: str, step: int, model: dict[str, Tensor], made_from: dict[str, Any]) -> None:
    """Write the finished weights of a stage."""
    save_checkpoint(folder / name, Checkpoint(step, model, {}, {}), made_from)


def finished_stage(folder: Path, name: str, step: int, made_from: dict[str, Any]) -> dict[str, Tensor] | None:
    """The finished weights of a stage, if they were made from just this; a damaged one is set aside."""
    path = folder / name
    for found in sorted(path.glob("step-*")) if path.is_dir() else []:
        manifest = read_manifest(found)
        if manifest is None or manifest["step"] != step or differences(made_from, manifest["made_from"]):
            continue
        checkpoint, _ = newest_checkpoint(path, made_from, step)
        return None if checkpoint is None else checkpoint.model
    return None

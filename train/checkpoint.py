"""Checkpoints that are whole or absent: written aside, fsynced, renamed, verified by checksum, pruned to the last few.

A checkpoint is a folder `step-00000100` with `model.safetensors`, `optimizer.safetensors`, `average.safetensors` where
a stage keeps a moving average, and `manifest.json`. Learning rate, data order and random numbers are functions of the
step and the seed, so the step is all there is to say of them.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from embedding.files import differences, new_folder, read_manifest, sha256_file, write_manifest
from train.distributed import sharded_like, whole_on_main

WEIGHTS, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.safetensors", "average.safetensors"
UNREAD = "projection.weight"
"""Where no loss looks through it, it is frozen; but not under FSDP2, which shards all parameters once."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    """Empty where no step of its stage follows."""
    facts: dict[str, Any]
    """What the run chose for itself (the token budget, the best score so far) and must choose again on resume."""
    average: dict[str, Tensor] = field(default_factory=dict)
    """The moving average of the weights, where the stage keeps one."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, made_from: Mapping[str, Any]) -> Path:
    """Write one checkpoint atomically; returns its folder.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    path = step_folder(folder, checkpoint.step)
    with new_folder(path) as aside:
        files = {WEIGHTS: checkpoint.model, OPTIMIZER: checkpoint.optimizer}
        if checkpoint.average:
            files[AVERAGE] = checkpoint.average
        for name, tensors in files.items():
            try:
                save_file(tensors, aside / name)
            except SafetensorError as error:
                raise OSError(
                    f"{path}: cannot write {name} ({error}); make room and run the same command again, older "
                    "checkpoints are as they were"
                ) from None
        sums = {name: sha256_file(aside / name) for name in files}
        write_manifest(aside, dict(made_from), step=checkpoint.step, facts=checkpoint.facts, sha256=sums)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first. Half-written ones carry another name."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir()) if folder.is_dir() else []


def newest_checkpoint(
    folder: Path, made_from: Mapping[str, Any], step: int | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose checksums hold, and one line about each newer one that was set aside.

    `step` asks for the checkpoint of that step alone.

    A damaged folder is renamed to `damaged-...`, so that it is neither used nor lost.

    Raises:
        ValueError: it was made by another recipe or from other data; names the fields that differ.
    """
    notes: list[str] = []
    for path in reversed(checkpoints(folder)):
        if step is not None and path != step_folder(folder, step):
            continue
        manifest, reason = _verify(path)
        if reason is not None:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            notes.append(f"{path}: {reason}; set aside as {aside.name}, going back to the one before")
            continue
        differ = differences(made_from, manifest["made_from"])
        if differ:
            raise ValueError(
                f"{path}: made by another recipe or data ({'; '.join(differ[:3])}); give the run another name, or "
                "remove its checkpoints to start over"
            )
        average = load_file(path / AVERAGE) if AVERAGE in manifest["sha256"] else {}
        tensors = load_file(path / WEIGHTS), load_file(path / OPTIMIZER)
        return Checkpoint(manifest["step"], *tensors, manifest["facts"], average), notes
    return None, notes


def prune_checkpoints(folder: Path, keep: int, best: int | None = None) -> None:
    """Remove all but the newest `keep` and the one of step `best`, and what a killed run left half-written."""
    for path in checkpoints(folder)[:-keep]:
        if best is None or path != step_folder(folder, best):
            path.rename(path.with_name(f".{path.name}-old"))
    for path in folder.glob(".step-*"):
        # NFS keeps files that a resumed rank has mapped until it lets go of them: they go the next time.
        shutil.rmtree(path, ignore_errors=True)


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named whole tensors, on rank 0: `parameter.entry`. Every rank must ask."""
    names, state = _names(optimizer), optimizer.state_dict()["state"]
    return {
        f"{names[number]}.{key}": whole_on_main(value)
        for number, entries in state.items()
        for key, value in entries.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put saved tensors back; the groups' settings stay those of the recipe.

    Raises:
        ValueError: they are of parameters that are not trained here.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    number_of = {name: number for number, name in enumerate(_names(optimizer))}
    number_of |= {str(number): number for number in range(len(parameters))}  # as they were called until 2026-11
    state: dict[int, dict[str, Tensor]] = {}
    for saved, tensor in tensors.items():
        name, _, key = saved.rpartition(".")
        if name in number_of:
            state.setdefault(number_of[name], {})[key] = sharded_like(tensor, parameters[number_of[name]])
        elif name != UNREAD:
            raise ValueError(f"the checkpoint has moments of {name!r}, which is not trained here; train with --restart")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _names(optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of the optimizer's parameters in the student, whatever wraps it."""
    return [name.removeprefix("module.") for group in optimizer.param_groups for name in group["param_names"]]


def _verify(path: Path) -> tuple[dict[str, Any], str | None]:
    try:
        manifest = read_manifest(path)
    except ValueError as error:
        return {}, str(error)
    if manifest is None:
        return {}, "has no manifest"
    for name, expected in manifest["sha256"].items():
        if not (path / name).is_file():
            return manifest, f"lacks {name}"
        if sha256_file(path / name) != expected:
            return manifest, f"{name} does not match its checksum"
    return manifest, None

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from train.checkpoint import (
    Checkpoint,
    checkpoints,
    load_optimizer,
    newest_checkpoint,
    optimizer_tensors,
    prune_checkpoints,
    save_checkpoint,
)

MADE_FROM = {"seed": 1, "student": {"layers": 2}}


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"w": torch.full((4,), float(step))}, {"0.exp_avg": torch.ones(4)}, {"memory": {"b": 2}})


def test_the_newest_comes_back_whole(tmp_path: Path) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path, checkpoint(step), MADE_FROM)
    found, notes = newest_checkpoint(tmp_path, MADE_FROM)
    assert found is not None
    assert (found.step, notes, found.facts) == (10, [], {"memory": {"b": 2}})
    assert torch.equal(found.model["w"], torch.full((4,), 10.0))


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_a_damaged_one_falls_back_to_the_one_before_and_says_so(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, checkpoint(5), MADE_FROM)
    path = save_checkpoint(tmp_path, checkpoint(10), MADE_FROM)
    weights = path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    if damage == "truncate":
        weights.write_bytes(data[:-3])
    elif damage == "flip":
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "remove":
        weights.unlink()
    else:
        (path / "manifest.json").write_text("{")
    found, notes = newest_checkpoint(tmp_path, MADE_FROM)
    assert found is not None
    assert found.step == 5
    assert len(notes) == 1
    assert "step-00000010" in notes[0]
    assert "going back to the one before" in notes[0]
    assert (tmp_path / "damaged-step-00000010").is_dir()
    assert newest_checkpoint(tmp_path, MADE_FROM)[1] == []


def test_what_a_killed_run_left_half_written_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(5), MADE_FROM)
    half = tmp_path / ".step-00000010.1a2b3c4d"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000005"]
    prune_checkpoints(tmp_path, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_one_of_another_recipe_is_refused_by_field(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(5), MADE_FROM)
    with pytest.raises(ValueError, match=r"student\.layers: expected 3, found 2"):
        newest_checkpoint(tmp_path, {"seed": 1, "student": {"layers": 3}})


def test_only_the_last_are_kept_and_half_written_ones_are_not_seen(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, checkpoint(step), MADE_FROM)
    (tmp_path / ".step-00000009.abc").mkdir()
    prune_checkpoints(tmp_path, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003", "step-00000004"]


def test_a_full_disk_is_said_and_leaves_the_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors raises its own error where the disk is full; this one is from a full tmpfs."""
    save_checkpoint(tmp_path, checkpoint(5), MADE_FROM)

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("train.checkpoint.save_file", full)
    with pytest.raises(OSError, match=r"step-00000010: cannot write model\.safetensors .*No space left"):
        save_checkpoint(tmp_path, checkpoint(10), MADE_FROM)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_the_optimizer_comes_back_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.1)
    for _ in range(3):
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
    other = torch.optim.AdamW(model.named_parameters(), lr=0.1)
    load_optimizer(other, optimizer_tensors(optimizer))
    ours, theirs = optimizer_tensors(optimizer), optimizer_tensors(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_map_that_no_loss_looks_through_shifts_nothing() -> None:
    """Under FSDP2 it is in the optimizer, elsewhere it is not; a run may go on either way."""
    model = nn.ModuleDict({"embedder": nn.Linear(8, 4), "projection": nn.Linear(4, 4, bias=False)})

    def optimizer(*names: str, prefix: str = "") -> torch.optim.AdamW:
        trained = dict(model.named_parameters())
        return torch.optim.AdamW([(prefix + name, trained[name]) for name in names], lr=0.1)

    both, alone = ("projection.weight", "embedder.weight", "embedder.bias"), ("embedder.weight", "embedder.bias")
    for here, there in ((both, alone), (alone, both)):
        first = optimizer(*here)
        for _ in range(2):
            model["projection"](model["embedder"](torch.randn(4, 8))).square().sum().backward()
            first.step()
        second = optimizer(*there, prefix="module.")  # under DDP
        load_optimizer(second, saved := optimizer_tensors(first))
        found = optimizer_tensors(second)
        assert found
        assert all(torch.equal(saved[name], tensor) for name, tensor in found.items())
        assert {name for name in saved if name.startswith("embedder.")} <= found.keys()
    with pytest.raises(ValueError, match=r"moments of 'embedder\.weight', which is not trained here"):
        load_optimizer(optimizer("embedder.bias"), saved)
    numbered = {
        f"{number}.{key}": saved[f"{name}.{key}"]
        for number, name in enumerate(alone)
        for key in ("step", "exp_avg", "exp_avg_sq")
    }
    load_optimizer(old := optimizer(*alone), numbered)
    assert torch.equal(optimizer_tensors(old)["embedder.bias.exp_avg"], saved["embedder.bias.exp_avg"])

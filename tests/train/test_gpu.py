"""Training on a CUDA device: the loop in bf16, a run that is killed, base weights in 4 bits, folded layers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from embedding.embedder import Embedder
from embedding.tokens import cut
from train.checkpoint import newest_checkpoint
from train.fold import fold
from train.four_bit import FourBitLinear
from train.loop import train
from train.plan import Inputs, checkpoint_identity
from train.recipe import ComputeConfig, Lora, PrunedStudent, StudentConfig
from train.student import Student, build_student, finished

from .conftest import docstring_rows
from .test_loop import Killed, dying, make_recipe, stage

pytestmark = pytest.mark.gpu
FOUR_BIT = StudentConfig(start=PrunedStudent(layers=[1, 4]), max_tokens=64, lora=Lora(rank=4, alpha=8, four_bit=True))
ROWS = [np.arange(5, 25, dtype=np.int32), np.arange(30, 40, dtype=np.int32)]


@pytest.fixture(autouse=True)
def _forget_precision() -> None:
    """Accelerate keeps the precision of a process's first run for all others."""
    AcceleratorState._reset_state(reset_partial_state=True)  # type: ignore[no-untyped-call]


def losses(place: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (place / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_in_bf16_and_compiled_as_in_fp32(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    ways = {
        "fp32": ComputeConfig(precision="fp32"),
        "bf16": ComputeConfig(precision="bf16"),
        "compiled": ComputeConfig(precision="bf16", compile=True),
        "recomputed": ComputeConfig(precision="bf16", layer_checkpointing=True),
    }
    found = {}
    for name, compute in ways.items():
        AcceleratorState._reset_state(reset_partial_state=True)  # type: ignore[no-untyped-call]
        recipe = make_recipe(student_config, stage(steps=30)).model_copy(update={"compute": compute})
        student = build_student(recipe.student, teacher, recipe.seed)
        train(recipe, student, inputs, tmp_path / name)
        assert student.embedder.device.type == "cuda"
        last, _ = newest_checkpoint(tmp_path / name / "checkpoints", checkpoint_identity(recipe, inputs))
        assert last is not None
        assert last.facts["memory"]["packed"] is (name != "fp32")
        assert last.facts["memory"]["activation_bytes"] > 2**30
        found[name] = losses(tmp_path / name)
    for name in ("bf16", "compiled", "recomputed"):
        assert found[name][0] == pytest.approx(found["fp32"][0], rel=1e-2)
        assert np.mean(found[name][-5:]) < 0.9 * found[name][0]
        assert np.mean(found[name][-5:]) == pytest.approx(np.mean(found["fp32"][-5:]), rel=5e-2)


def test_a_killed_run_ends_where_an_undisturbed_one_does_up_to_rounding(
    inputs: Inputs, teacher: Embedder, student_config: StudentConfig, tmp_path: Path
) -> None:
    """Bit for bit is not promised here: flash attention adds up the gradients in any order."""
    recipe = make_recipe(student_config, stage())
    whole = build_student(recipe.student, teacher, recipe.seed)
    train(recipe, whole, inputs, tmp_path / "whole")
    with pytest.raises(Killed):
        train(recipe, build_student(recipe.student, teacher, recipe.seed), dying(inputs, 6), tmp_path / "killed")
    again = build_student(recipe.student, teacher, recipe.seed)
    report = train(recipe, again, inputs, tmp_path / "killed")
    assert report.resumed_from == 4
    texts = [row.query for row in docstring_rows()]
    cosine = (whole.embedder.encode(texts) * again.embedder.encode(texts)).sum(axis=1)
    assert cosine.min() > 0.999


def test_a_recomputed_chunk_drops_out_what_it_dropped_out_before(teacher: Embedder) -> None:
    """The masks come from the device's random numbers, which are to be those of the first pass again."""
    config = StudentConfig(start=PrunedStudent(layers=[1, 4]), max_tokens=64, dropout=0.3)
    student = build_student(config, teacher, 0).cuda().train()

    def of(kept: int) -> torch.Tensor:
        student.zero_grad()
        torch.manual_seed(3)
        student([[row] for row in ROWS], kept)[0].sin().sum().backward()
        return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])

    kept = of(2)
    assert (of(0) - kept).norm() < 1e-4 * kept.norm()


def gradients(student: Student) -> dict[str, torch.Tensor]:
    student.zero_grad()
    student([ROWS], 1)[1].square().sum(dim=-1).sin().sum().backward()
    return {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


def test_layers_in_four_bits_compute_what_their_state_says(teacher: Embedder) -> None:
    pytest.importorskip("bitsandbytes")
    student = build_student(FOUR_BIT, teacher, 0).train()
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    student.cuda()
    layers = [module for module in student.modules() if isinstance(module, FourBitLinear)]
    assert len(layers) == 2 * 6
    assert all(layer.weight.numel() == 0 for layer in layers)
    state = student.state_dict()
    assert state.keys() == before.keys()
    rounded = [name for name in state if not torch.equal(state[name].cpu(), before[name])]
    assert len(rounded) == 2 * 6
    for name in rounded:
        assert (state[name].cpu() - before[name]).norm() < 0.15 * before[name].norm()  # nf4 on normal weights: 0.09
    plain = build_student(FOUR_BIT.model_copy(update={"lora": Lora(rank=4, alpha=8)}), teacher, 0).train()
    plain.load_state_dict(state)
    plain.cuda()
    with torch.no_grad():
        torch.testing.assert_close(student([ROWS], 1)[0], plain([ROWS], 1)[0], rtol=1e-3, atol=1e-4)
    ours, expected = gradients(student), gradients(plain)
    assert ours.keys() == expected.keys()
    assert all("lora_" in name for name in ours)
    for name, grad in expected.items():
        assert (ours[name] - grad).norm() < 1e-2 * grad.norm() + 1e-7


def test_a_run_in_four_bits_learns_and_its_export_is_an_ordinary_model(
    inputs: Inputs, teacher: Embedder, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = make_recipe(FOUR_BIT, stage(steps=30, learning_rate=1e-2))
    student = build_student(recipe.student, teacher, recipe.seed)
    train(recipe, student, inputs, tmp_path)
    found = losses(tmp_path)
    assert np.mean(found[-5:]) < 0.8 * found[0]
    last, _ = newest_checkpoint(tmp_path / "checkpoints", checkpoint_identity(recipe, inputs))
    assert last is not None
    exported = build_student(recipe.student, teacher, recipe.seed)
    exported.load_state_dict(last.model)
    finished(exported, keep_projection=False).save_pretrained(tmp_path / "model")
    texts = [row.query for row in docstring_rows()]
    loaded = Embedder.from_pretrained(tmp_path / "model")
    assert not any("lora" in name or "base_layer" in name for name in loaded.state_dict())
    cosine = (loaded.encode(texts) * student.embedder.encode(texts)).sum(axis=1)
    assert cosine.min() > 0.9999


def test_layers_folded_on_the_device_are_those_folded_on_the_cpu(teacher: Embedder) -> None:
    config = StudentConfig(start=PrunedStudent(keep=2, by="top", fold=True), max_tokens=64)
    words = [row.query for row in docstring_rows()]
    rows = [cut(row, 64, 1) for row in teacher.tokenize(words, [""] * len(words))]
    held, vectors = [], []
    for device in ("cpu", "cuda"):
        student = build_student(config, teacher, 0)
        student.to(device)
        held.append(fold(student.embedder, student.lower[0], rows))
        vectors.append(student.embedder.encode(words))
    assert held[1] == pytest.approx(held[0], abs=1e-3)
    assert (vectors[0] * vectors[1]).sum(axis=1).min() > 0.9999

"""Steps under pressure: a device without memory, checkpointed layers, documents of 32,768 tokens, the log's shares."""

import json
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks.pairs import TEACHER, load_inputs, ranking_rows, write_inputs
from benchmarks.processes import run_alone
from benchmarks.ranks import small_recipe, train_state
from embedding.embedder import Embedder
from train.checkpoint import newest_checkpoint
from train.loop import train
from train.losses import InfoNCE, Loss, loss_part
from train.merge import Average
from train.optim import build_optimizer
from train.plan import checkpoint_identity, plan_stages
from train.recipe import ComputeConfig, Recipe
from train.spikes import SpikeConfig, SpikeGuard
from train.step import Memory, prepare_work, train_step
from train.student import Student, build_student
from train.views import Views


def recipe(**compute: Any) -> Recipe:
    return small_recipe(3).model_copy(update={"compute": ComputeConfig(**compute)})


def student(settings: Recipe) -> Student:
    return build_student(settings.student, Embedder.from_pretrained(TEACHER), settings.seed)


def run(settings: Recipe, folder: Path, place: Path, model: Student) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The log and what the last checkpoint says the run chose."""
    inputs = load_inputs(folder)
    train(settings, model, inputs, place)
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last, _ = newest_checkpoint(place / "checkpoints", checkpoint_identity(settings, inputs))
    assert last is not None
    return lines, last.facts["memory"]


def runs_out_above(model: Student, tokens: int) -> list[int]:
    """Have the backbone raise what CUDA raises where a chunk has more padded tokens; returns the refused sizes."""
    refused: list[int] = []

    def check(_: object, __: object, given: dict[str, Tensor]) -> None:
        size = given["input_ids"].numel()
        if size > tokens:
            refused.append(size)
            raise torch.OutOfMemoryError(f"no memory for {size} tokens")

    model.embedder.backbone.register_forward_pre_hook(check, with_kwargs=True)
    return refused


def test_out_of_memory_halves_the_budget_and_the_result_is_that_of_the_smaller_one(
    folder: Path, tmp_path: Path
) -> None:
    tight, small = student(recipe()), student(recipe())
    refused = runs_out_above(tight, 140)
    _, chosen = run(recipe(token_budget=512), folder, tmp_path / "tight", tight)
    assert refused
    assert chosen["token_budget"] == 128
    _, chosen = run(recipe(token_budget=128), folder, tmp_path / "small", small)
    assert chosen["token_budget"] == 128
    assert all(torch.equal(a, b) for a, b in zip(tight.parameters(), small.parameters(), strict=True))


def test_out_of_memory_in_the_midst_of_a_run_repeats_the_step_and_says_so(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = plan_stages(recipe(), load_inputs(folder))[0]
    work = prepare_work(plan.sampler, load_inputs(folder).vectors, 0)
    results = []
    for budget, limit in ((512, 140), (128, 1_000)):
        model = student(recipe()).train()
        optimizer = torch.optim.SGD([{"params": list(model.parameters()), "base_lr": 0.05}], lr=0.05)
        memory = Memory(token_budget=budget, activation_bytes=1e9, bytes_per_token=1.0)
        state = train_state(Accelerator(cpu=True), model, model, optimizer, plan, memory)
        runs_out_above(model, limit)
        results.append(train_step(state, work))
        assert state.memory.token_budget == 128
    assert results[0] == results[1]
    assert "out of memory: chunks of 128 tokens and" in capfd.readouterr().out
    with pytest.raises(ValueError, match=r"out of memory with chunks of 128 tokens, and a text has 100; lower .* max_"):
        replace(state.memory, activation_bytes=0.0).halved(100)
    assert state.memory.halved(100).token_budget == 128
    assert state.memory.halved(100).activation_bytes == state.memory.activation_bytes / 2


def test_a_step_that_is_left_out_changes_neither_weights_nor_average_nor_moments(folder: Path) -> None:
    inputs = load_inputs(folder)
    plan = plan_stages(recipe(), inputs)[0]
    model = student(recipe()).train()
    optimizer = build_optimizer(plan.stage, model)
    memory = Memory(token_budget=512, activation_bytes=1e9, bytes_per_token=1.0)
    state = train_state(Accelerator(cpu=True), model, model, optimizer, plan, memory)
    state.average, state.guard = Average(model, 0.5), SpikeGuard(SpikeConfig(warmup=1))

    def everything() -> list[Tensor]:
        moments = [x for of in optimizer.state.values() for x in of.values()]
        assert state.average is not None
        return [x.detach().clone() for x in (*model.parameters(), *state.average.tensors.values(), *moments)]

    def step(number: int) -> tuple[list[Tensor], list[Tensor], dict[str, float]]:
        before = everything()
        metrics = train_step(state, prepare_work(plan.sampler, inputs.vectors, number))
        return before, everything(), metrics

    step(0)
    state.guard.load(
        {"norms": [1e-9], "lately": [], "in_a_row": 0, "skipped": 0}
    )  # beside which any gradient is a spike
    before, after, metrics = step(1)
    assert metrics["skipped"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    state.guard.load({"norms": [1e9], "lately": [], "in_a_row": 0, "skipped": 1})
    before, after, metrics = step(2)
    assert metrics["skipped"] == 1
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.fixture
def any_precision() -> Iterator[None]:
    """A process has one precision."""
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("any_precision")
def test_bf16_trains_with_losses_and_weights_in_fp32(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, half = student(recipe()), student(recipe())
    plain, _ = run(recipe(token_budget=256, precision="fp32"), folder, tmp_path / "fp32", whole)
    AcceleratorState._reset_state()
    seen, looked_at = [], []

    def watched(loss: Loss, views: Views) -> Tensor:
        looked_at.extend((views.text_ND.dtype, views.local_nE.dtype))
        return loss_part(loss, views)

    monkeypatch.setattr("train.step.loss_part", watched)
    half.embedder.backbone.layers[0].mlp.register_forward_hook(
        lambda _, __, out: seen.append((torch.is_grad_enabled(), out.dtype))
    )  # type: ignore[union-attr,operator,arg-type]
    rounded, _ = run(recipe(token_budget=256, precision="bf16"), folder, tmp_path / "bf16", half)
    assert {dtype for learns, dtype in seen if learns} == {torch.bfloat16}
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    losses = [(a["loss"], b["loss"]) for a, b in zip(plain, rounded, strict=True)]
    assert any(a != b for a, b in losses)
    assert all(a == pytest.approx(b, rel=2e-2) for a, b in losses)
    assert set(looked_at) == {torch.float32}


def test_checkpointed_layers_give_the_same_losses_and_keep_less(folder: Path, tmp_path: Path) -> None:
    found = {}
    for name in (False, True):
        model = student(recipe())
        settings = recipe(token_budget=256, layer_checkpointing=name)
        found[name] = run(settings, folder, tmp_path / str(name), model)
    (plain, kept), (checkpointed, less) = found[False], found[True]
    for a, b in zip(plain, checkpointed, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    assert less["bytes_per_token"] < 0.5 * kept["bytes_per_token"]


def test_a_log_line_says_where_the_time_went(folder: Path, tmp_path: Path) -> None:
    lines, _ = run(recipe(token_budget=256), folder, tmp_path, student(recipe()))
    for line in lines:
        shares = {name: share for name, share in line.items() if name.startswith("time/")}
        assert {f"time/{name}" for name in ("data", "forward", "communication", "backward", "optimizer")} <= set(shares)
        assert sum(shares.values()) == pytest.approx(1.0)
        assert 0 <= line["padding"] < 0.5
        assert 0 < line["mfu"] < 1
        assert line["tokens_per_s"] > 0


def long_step(folder: str, tokens: int) -> dict[str, float]:
    """A step over two documents of `tokens` tokens: its loss, and the memory it needed beyond the process before."""
    small = small_recipe(1)
    start = small.student.start.model_copy(update={"layers": 1, "positions": tokens})
    config = small.student.model_copy(update={"start": start, "max_tokens": tokens})
    stage = small.stages[0].model_copy(update={"batch_size": 2, "max_tokens": tokens, "losses": [InfoNCE()]})
    settings = small.model_copy(update={"student": config, "stages": [stage]})
    inputs = load_inputs(Path(folder))
    model = student(settings).train()
    plan = plan_stages(settings, inputs)[0]
    work = prepare_work(plan.sampler, None, 0)
    assert sorted(work.batch.length_N.tolist())[-2:] == [tokens, tokens]
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "base_lr": 0.05}], lr=0.05)
    memory = Memory(token_budget=tokens, activation_bytes=0.0, bytes_per_token=1.0)
    state = train_state(Accelerator(cpu=True), model, model, optimizer, plan, memory)
    before = _kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets the peak
    metrics = train_step(state, work)
    return {"mib": (_kib("VmHWM") - before) / 1024, "loss": metrics["loss"], "norm": metrics["grad_norm"]}


def _kib(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))


def test_32768_tokens_take_memory_linear_in_tokens(tmp_path: Path) -> None:
    word = "an eyas is a young hawk taken from its nest "
    pairs = [(f"summary {i}", f"{i} " + word * 4_000) for i in range(2)]
    write_inputs(tmp_path, ranking_rows(pairs), Embedder.from_pretrained(TEACHER, max_tokens=64), vectors=False)
    quarter, whole = (run_alone(1, long_step, str(tmp_path), tokens)[0] for tokens in (8_192, 32_768))
    assert whole["norm"] > 0
    assert whole["mib"] < 6 * quarter["mib"], "a score matrix would make it 16 times as much"
    assert whole["mib"] < 1_024, "one score matrix of one head would have 4,096 MiB"


CAN_COMPILE = shutil.which("g++") is not None and (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file()


@pytest.mark.skipif(not CAN_COMPILE, reason="torch.compile wants g++ and Python.h on a CPU")
@pytest.mark.parametrize("layer_checkpointing", [False, True])
def test_compiled_layers_give_the_same_losses(layer_checkpointing: bool, folder: Path, tmp_path: Path) -> None:
    """Also where each layer is computed again in the backward pass."""
    found, kept, models, graphs = {}, {}, {}, {}
    for compiled in (False, True):
        models[compiled] = student(recipe())
        checkpointed = compiled and layer_checkpointing
        settings = recipe(token_budget=256, compile=compiled, layer_checkpointing=checkpointed)
        torch._dynamo.reset()  # type: ignore[no-untyped-call]
        counters.clear()
        found[compiled], chosen = run(settings, folder, tmp_path / str(compiled), models[compiled])
        kept[compiled], graphs[compiled] = chosen["bytes_per_token"], counters["stats"]["unique_graphs"]
    assert models[False].state_dict().keys() == models[True].state_dict().keys()
    assert graphs[False] == 0
    assert 1 <= graphs[True] <= 6, "with and without gradients, around the attention, not for every layer and shape"
    assert (kept[True] < 0.5 * kept[False]) is layer_checkpointing
    for a, b in zip(found[False], found[True], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_dropout_is_another_in_each_step_and_the_same_when_a_step_is_repeated(folder: Path) -> None:
    settings = recipe()
    settings = settings.model_copy(update={"student": settings.student.model_copy(update={"dropout": 0.3})})
    inputs = load_inputs(folder)
    plan, model = plan_stages(settings, inputs)[0], student(settings).train()
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "base_lr": 0.0}], lr=0.0)
    memory = Memory(token_budget=512, activation_bytes=1e9, bytes_per_token=1.0)
    state = train_state(Accelerator(cpu=True), model, model, optimizer, plan, memory)
    work = prepare_work(plan.sampler, inputs.vectors, 0)
    works = [replace(work, batch=replace(work.batch, step=number)) for number in (0, 0, 1)]
    first, again, other = (train_step(state, one)["loss"] for one in works)
    assert first == again != other

"""The result must not depend on the number of ranks, nor may a gradient byte travel twice.

    python -m benchmarks.ranks [--smoke]

The same training on 1, 2 and 3 processes of one thread (gloo): a small Qwen3 decoder without dropout, docstrings of
unequal lengths with hard negatives and duplicates, match and InfoNCE together, chunks of which some are recomputed.

- Under SGD, driven through `train.step`, 20 steps: losses to 1e-5 and gradient norms to 1e-4 relative, weights to 1e-5.
- Under AdamW, through `train.loop`: losses and the vectors of texts to 1e-4. AdamW divides a gradient by its own size,
  so on parameters that have no true gradient it turns rounding into steps of full size; hence vectors and not weights.
- FSDP2 (`fully_shard` itself, since Accelerate offers it on GPUs only) from the same start: equal to one process too.
- `bytes_reduced_per_gradient_byte`: bytes that DDP hands to its communication hook in a step / bytes of all gradients.
- `efficiency`: pairs/s of two ranks on one batch of 2 n pairs, against the sum of two processes that know nothing of
  each other and train on n pairs each at the same time; all-MiniLM-L6-v2, in turns, medians over the rounds.

Prints one JSON line last; keys `equal`, `bytes_reduced_per_gradient_byte`, `efficiency`.
"""

import statistics
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import arguments, report, say
from benchmarks.pairs import TEACHER, docstring_pairs, load_inputs, ranking_rows, write_inputs
from benchmarks.processes import run_alone, run_ranks
from benchmarks.steps import train_state
from data_prep.build import DataConfig
from data_prep.teacher import TeacherConfig
from embedding.embedder import Embedder
from embedding.files import read_log
from embedding.instruction import Template
from train.distributed import world_size
from train.loop import train
from train.losses import InfoNCE, Match
from train.plan import Inputs, StagePlan, plan_stages
from train.recipe import BuiltStudent, ComputeConfig, PretrainedStudent, Recipe, Stage, StudentConfig, TrackingConfig
from train.step import Memory, prepare_work, train_step
from train.student import Student, build_student

WORLDS = (1, 2, 3)
STEPS = 20
BATCH = 12
BUDGET = 256
"""Padded tokens of a chunk: some six chunks a step on one rank."""
KEPT = Memory(token_budget=BUDGET, activation_bytes=2.5 * BUDGET, bytes_per_token=1.0)
"""Two chunks are kept, the others recomputed."""
PROBE = ["an eyas is a young hawk", "Return the number of items.", "x"]
TOLERANCE = {
    "loss": 1e-5,
    "norm": 1e-4,
    "weights": 1e-5,
    "adamw_loss": 1e-4,
    "adamw_vectors": 1e-4,
    "fsdp_loss": 1e-5,
    "fsdp_norm": 1e-4,
    "fsdp_weights": 1e-5,
}
"""The largest difference from one process: relative for losses and norms, absolute for weights and vectors."""


def small_recipe(steps: int = STEPS) -> Recipe:
    """A decoder of two layers and 32 numbers, and all that makes ranks hard to agree."""
    start = BuiltStudent(
        layers=2, width=32, heads=2, kv_heads=1, head_dim=16, ffn=64, embeddings="random", init="random"
    )
    stage = Stage(
        name="both",
        steps=steps,
        batch_size=BATCH,
        max_tokens=64,
        learning_rate=1e-3,
        warmup=0.0,
        clip=1e3,  # never reached: a clipped gradient would hide a wrong scale
        negatives=2,
        losses=[Match(weight=2.0), InfoNCE(temperature=0.05, weight=0.5)],
    )
    return Recipe(
        name="ranks",
        data=DataConfig(),
        teacher=TeacherConfig(model=TEACHER),
        student=StudentConfig(start=start, max_tokens=64),
        stages=[stage],
        tracking=TrackingConfig(log_every=1, checkpoint_every=1000),
        compute=ComputeConfig(token_budget=BUDGET),
    )


def write_small_inputs(folder: Path) -> None:
    """80 docstrings with two hard negatives each, and 8 rows that share a query or a positive with another."""
    teacher = Embedder.from_pretrained(TEACHER, max_tokens=64)
    rows = ranking_rows(docstring_pairs(80), negatives=2, repeats=4)
    write_inputs(folder, rows, teacher, template=Template())


# ----------------------------------------------------------------------------------------------------- what a rank does


def all_ways(folder: str, run: str, steps: int) -> dict[str, Any]:
    """One process's results of every way to train; with one process there is nothing to shard."""
    results = {"ddp": ddp_under_sgd(folder, steps), "loop": loop_under_adamw(folder, run, steps)}
    return results | ({"fsdp": fsdp_under_sgd(folder, steps)} if dist.get_world_size() > 1 else {})


def ddp_under_sgd(folder: str, steps: int) -> dict[str, Any]:
    """Steps under SGD through Accelerate; then two more in which the hook of DDP counts what is sent."""
    accelerator = Accelerator(cpu=True)
    inputs, plan, student = _start(folder, steps)
    wrapped = accelerator.prepare_model(student)
    result = _sgd(accelerator, wrapped, student, inputs, plan, steps)
    weights = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    return {
        **result,
        "weights": weights,
        "bytes_share": _bytes_share(accelerator, wrapped, student, inputs, plan),
        "wrapper": type(wrapped).__name__,
        "backend": dist.get_backend(),
        "ranks": dist.get_world_size(),
        "distributed_type": str(accelerator.distributed_type),
    }


def loop_under_adamw(folder: str, run: str, steps: int) -> dict[str, Any]:
    """The whole loop, with its calibration, checkpoints and log."""
    recipe, inputs = small_recipe(steps), load_inputs(Path(folder))
    student = build_student(recipe.student, _teacher(), recipe.seed)
    train(recipe, student, inputs, Path(run))
    vectors = torch.from_numpy(student.embedder.encode(PROBE))
    return {"loss": [line["loss"] for line in read_log(Path(run, "metrics.jsonl"))], "vectors": vectors}


def fsdp_under_sgd(folder: str, steps: int) -> dict[str, Any]:
    """The same steps with every parameter cut over the ranks."""
    accelerator = Accelerator(cpu=True)
    inputs, plan, student = _start(folder, steps)
    shard(student)
    parameters: list[Tensor] = list(student.parameters())
    shards = [parameter.to_local() for parameter in parameters if isinstance(parameter, DTensor)]
    with Collectives() as collectives:
        result = _sgd(accelerator, student, student, inputs, plan, steps)
    return {
        **result,
        "weights": {name: tensor.full_tensor() for name, tensor in student.state_dict().items()},
        "sharded": len(shards) == len(parameters),
        "share": sum(part.numel() for part in shards) / sum(parameter.numel() for parameter in parameters),
        "collectives": dict(collectives.counts),
        "backend": dist.get_backend(),
        "ranks": dist.get_world_size(),
    }


class Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the collectives inside the block by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def shard(student: Student) -> None:
    """FSDP2: each layer by itself, the rest with the whole. Gloo long knew no average and summed in silence; so sums
    are asked for everywhere, and FSDP divides them itself."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    backbone: Any = student.embedder.backbone
    for layer in backbone.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(student, mesh=mesh)
    for module in student.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)


def _start(folder: str, steps: int) -> tuple[Inputs, StagePlan, Student]:
    recipe, inputs = small_recipe(steps), load_inputs(Path(folder))
    student = build_student(recipe.student, _teacher(), recipe.seed)
    return inputs, plan_stages(recipe, inputs)[0], student.train()


def _sgd(
    accelerator: Accelerator, wrapped: torch.nn.Module, student: Student, inputs: Inputs, plan: StagePlan, steps: int
) -> dict[str, list[float]]:
    optimizer = torch.optim.SGD([{"params": list(wrapped.parameters()), "base_lr": 0.05}], lr=0.05)
    state = train_state(accelerator, wrapped, student, optimizer, plan, KEPT)
    lines = [train_step(state, prepare_work(plan.sampler, inputs.vectors, step)) for step in range(steps)]
    return {"loss": [line["loss"] for line in lines], "norm": [line["grad_norm"] for line in lines]}


def _bytes_share(
    accelerator: Accelerator,
    wrapped: DistributedDataParallel,
    student: Student,
    inputs: Inputs,
    plan: StagePlan,
    steps: int = 2,
) -> float:
    sent = 0

    # DDP reads these annotations and wants just them.
    def count(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        nonlocal sent
        buffer = bucket.buffer()
        sent += buffer.numel() * buffer.element_size()
        work = dist.all_reduce(buffer.div_(dist.get_world_size()), async_op=True)
        future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
        return future

    wrapped.register_comm_hook(None, count)
    _sgd(accelerator, wrapped, student, inputs, plan, steps)
    gradients = sum(p.numel() * p.element_size() for p in wrapped.parameters() if p.requires_grad)
    return sent / (steps * gradients)


def _teacher() -> Embedder:
    return Embedder.from_pretrained(TEACHER)


# ----------------------------------------------------------------------------------------------------------- efficiency


def paced_steps(folder: str, batch: int, steps: int, max_tokens: int) -> float:
    """Pairs per second of this process's part in `steps` steps of InfoNCE, after one that warms up."""
    accelerator = Accelerator(cpu=True)
    inputs = replace(load_inputs(Path(folder)), vectors=None)
    config = StudentConfig(start=PretrainedStudent(model=TEACHER), max_tokens=max_tokens)
    student = build_student(config, _teacher(), 0).train()
    stage = Stage(name="pace", steps=steps + 1, batch_size=batch, max_tokens=max_tokens, losses=[InfoNCE()])
    recipe = small_recipe().model_copy(update={"stages": [stage], "student": config})
    plan = plan_stages(recipe, inputs)[0]
    wrapped = accelerator.prepare_model(student)
    optimizer = torch.optim.AdamW([{"params": list(wrapped.parameters()), "base_lr": 1e-5}], lr=1e-5, fused=True)
    memory = Memory(token_budget=2_048, activation_bytes=8e9, bytes_per_token=1e5)
    state = train_state(accelerator, wrapped, student, optimizer, plan, memory)
    train_step(state, prepare_work(plan.sampler, None, 0))
    start = time.perf_counter()
    for step in range(1, steps + 1):
        train_step(state, prepare_work(plan.sampler, None, step))
    return batch / world_size() * steps / (time.perf_counter() - start)


def efficiency(folder: str, *, rounds: int, batch: int, steps: int, max_tokens: int) -> dict[str, Any]:
    """Two ranks on a batch of 2 x `batch` pairs against two strangers on `batch` pairs each."""
    together, apart = [], []
    for _ in range(rounds):
        together.append(sum(run_ranks(2, paced_steps, folder, 2 * batch, steps, max_tokens)))
        apart.append(sum(run_alone(2, paced_steps, folder, batch, steps, max_tokens)))
    return {
        "efficiency": statistics.median(together) / statistics.median(apart),
        "pairs_per_s_two_ranks": together,
        "pairs_per_s_two_processes": apart,
    }


# ------------------------------------------------------------------------------------------------------------ comparing


def equality(folder: str, *, worlds: tuple[int, ...] = WORLDS, steps: int = STEPS) -> dict[str, Any]:
    """Train in every way on every number of ranks; the largest differences from one process, and which code ran."""
    results = {}
    for world in worlds:
        with TemporaryDirectory() as run:
            results[world] = run_ranks(world, all_ways, folder, run, steps, seconds=1_200.0)[0]
    one, others = results[1], [results[world] for world in worlds if world > 1]
    ddp, loop = one["ddp"], one["loop"]
    differences = {
        "loss": max(_relative(ddp["loss"], other["ddp"]["loss"]) for other in others),
        "norm": max(_relative(ddp["norm"], other["ddp"]["norm"]) for other in others),
        "weights": max(_furthest(ddp["weights"], other["ddp"]["weights"]) for other in others),
        "adamw_loss": max(_relative(loop["loss"], other["loop"]["loss"]) for other in others),
        "adamw_vectors": max(_distance(loop["vectors"], other["loop"]["vectors"]) for other in others),
        "fsdp_loss": max(_relative(ddp["loss"], other["fsdp"]["loss"]) for other in others),
        "fsdp_norm": max(_relative(ddp["norm"], other["fsdp"]["norm"]) for other in others),
        "fsdp_weights": max(_furthest(ddp["weights"], other["fsdp"]["weights"]) for other in others),
    }
    facts = ("wrapper", "backend", "ranks", "distributed_type", "sharded", "share", "collectives")
    return {
        "differences": differences,
        "losses": ddp["loss"],
        "ran": [
            {"way": name} | {fact: way[fact] for fact in facts if fact in way}
            for result in results.values()
            for name, way in result.items()
            if name != "loop"
        ],
        "bytes_reduced_per_gradient_byte": max(result["ddp"]["bytes_share"] for result in results.values()),
    }


def within(differences: dict[str, float]) -> bool:
    """Whether every difference is in its tolerance."""
    return all(differences[name] <= allowed for name, allowed in TOLERANCE.items())


def _relative(expected: list[float], found: list[float]) -> float:
    return max(abs(a - b) / abs(a) for a, b in zip(expected, found, strict=True))


def _furthest(expected: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    assert expected.keys() == found.keys(), "the same student has other parameters"
    return max(_distance(expected[name], found[name]) for name in expected)


def _distance(expected: Tensor, found: Tensor) -> float:
    return float((expected - found).abs().max())


def main() -> None:
    """Run it all; `--smoke` shows that it runs, and measures nothing worth quoting."""
    parser = arguments(__doc__)
    parser.add_argument("--smoke", action="store_true", help="few steps on 1 and 2 ranks")
    given = parser.parse_args()
    smoke = given.smoke
    with TemporaryDirectory() as folder:
        write_small_inputs(Path(folder))
        same = equality(folder, worlds=(1, 2), steps=3) if smoke else equality(folder)
    for name, difference in same["differences"].items():
        say(f"{name:14} differs by {difference:.1e}, allowed {TOLERANCE[name]:.0e}")
    with TemporaryDirectory() as folder:
        write_inputs(Path(folder), ranking_rows(docstring_pairs(64 if smoke else 512)), _teacher())
        if smoke:
            pace = efficiency(folder, rounds=1, batch=8, steps=1, max_tokens=32)
        else:
            pace = efficiency(folder, rounds=3, batch=64, steps=4, max_tokens=256)
    report({"benchmark": "ranks", "equal": within(same["differences"]), **same, **pace}, save=given.save)


if __name__ == "__main__":
    main()

"""The loop: stages of steps, fenced by logging, evaluation and checkpoints. Killed at any time, it goes on from there.

All that must survive is in the checkpoint, or follows from the seed and the step.
"""

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from embedding.memory import keep_freed_memory
from train.calibrate import calibrate, lowered, matrix_rate
from train.checkpoint import (
    load_optimizer,
    newest_checkpoint,
)
from train.clock import Clock
from train.distributed import (
    any_rank,
    broadcast,
    gather_objects,
    join,
    sharded_precision,
    world_size,
)
from train.frozen import freeze, frozen_in
from train.job import Job, finished_stages
from train.merge import Average
from train.optim import build_optimizer
from train.plan import Inputs, StagePlan, check_sharding, check_student, checkpoint_identity, plan_stages
from train.precision import mixed_precision
from train.recipe import Recipe
from train.signals import stopping
from train.spikes import SpikeGuard
from train.stages import stage_identity
from train.start import set_start
from train.step import Memory, TrainState, prepare_work, read_ahead, train_step
from train.student import Student, checkpoint_layers, compile_layers
from train.tracking import Tracker
from train.watch import Evaluate, Watch


class Preempted(Exception):
    """The run was asked to stop (`train.signals`) and has written a checkpoint; started again, it goes on."""


@dataclass(frozen=True)
class TrainReport:
    """What a finished training did, from where it was resumed."""

    steps: int
    resumed_from: int
    before: float
    """Seconds that earlier processes spent up to the checkpoint it was resumed from."""


def train(
    recipe: Recipe,
    student: Student,
    inputs: Inputs,
    run: Path,
    *,
    evaluate: Evaluate | None = None,
    judge: str = "",
    resume: bool = True,
) -> TrainReport:
    """Train `student` in place through all stages of `recipe`; `run` gets `metrics.jsonl` and `checkpoints/`.

    `judge`: a digest of what `evaluate` measures on: scores of another suite are not compared with its own.

    Raises:
        ValueError: the recipe does not fit the data (found before the first step), a checkpoint is of another recipe,
            or the loss is not finite.
        Preempted: asked to stop; the checkpoint of the last finished step is on disk.
    """
    began = time.perf_counter()
    keep_freed_memory()
    join()
    log_with = "wandb" if recipe.tracking.wandb else None
    precision = mixed_precision(recipe.compute)
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available(), log_with=log_with)
    one = 1 if accelerator.distributed_type == DistributedType.FSDP else None
    check_sharding(recipe, 2 if accelerator.is_fsdp2 else one)
    plans = plan_stages(recipe, inputs)
    check_student(recipe, student, inputs)
    watch = Watch(recipe.tracking, plans[-1].end, accelerator, student.embedder, evaluate, judge)
    job = Job(recipe, run / "checkpoints", checkpoint_identity(recipe, inputs), accelerator, student, inputs, watch)
    with accelerator.main_process_first():  # what is damaged is renamed
        found, notes = newest_checkpoint(job.folder, job.made_from) if resume else (None, [])
        done = finished_stages(job, plans) if resume else []
    begin = found.step if found else 0
    if len(seen := set(gather_objects(begin))) > 1:
        raise ValueError(f"the ranks found checkpoints of the steps {sorted(seen)}; do all machines see {job.folder}?")
    before = float(found.facts.get("seconds", 0.0)) if found else 0.0
    job.began = began - before
    total = plans[-1].end + (recipe.merge is not None)
    skipped = [plan.end for n, plan in enumerate(plans) if set(range(n + 1)) <= set(done)]
    kept = max(skipped, default=0) if found is None else begin
    rate = matrix_rate(accelerator.device, torch.bfloat16 if precision == "bf16" else torch.float32)
    tracker = Tracker(
        recipe,
        run,
        accelerator,
        steps=plans[-1].end,
        start=kept,
        matrix_rate=rate * world_size(),
        done=[plans[n].stage.name for n in done],
    )
    for note in notes:
        tracker.say(note)

    student.to(accelerator.device).train()
    _ = student.embedder.causal  # a forward pass: not under autocast, whose casts it would keep without a gradient
    with accelerator.autocast():
        if not student.embedder.packs:
            tracker.say("chunks are padded: no packed attention here with this model, its dropout and this precision")
    if recipe.compute.compile:
        compile_layers(student.embedder.backbone)
    if recipe.compute.layer_checkpointing:
        checkpoint_layers(student.embedder.backbone)
    if found is None:
        memory = _begin(job, plans, tracker)
    else:
        student.load_state_dict(found.model)
        found = replace(found, model={})
        kept_memory = Memory(**found.facts["memory"])
        same = found.facts.get("computing") == job.computing
        memory = lowered(kept_memory, recipe.compute) if same else _measured(job, plans)
        watch.load(found.facts)
        ranks = found.facts.get("ranks", world_size())
        other = "" if ranks == world_size() else f" on {world_size()} ranks; {ranks} came so far, equal up to rounding"
        tracker.say(f"resumed from step {found.step} of {total}{other}")
        if (other := found.facts.get("precision", precision)) != precision:
            tracker.say(f"mixed precision was {other!r} so far and is {precision!r} from here on")
        if memory != kept_memory:
            tracker.say(
                f"{memory} from here on, as compute says; the weights are those of an uninterrupted run up to rounding"
            )

    trainable = frozenset(name for name, parameter in student.named_parameters() if parameter.requires_grad)
    freeze(student, plans[0].stage.freeze if accelerator.is_fsdp2 else frozen_in(plans[0].stage), trainable)
    wrapped = _wrap(accelerator, student)
    if found is None:
        watch.look(0, tracker)
    student.lower.clear()
    steps = 0
    with _asked_to_stop() as asked, tracker:
        for number, plan in enumerate(plans):
            if begin >= plan.end or watch.enough:
                continue
            if number in done:
                tracker.say(f"stage {plan.stage.name}: skipped, finished before")
                continue
            resumed = found is not None and found.step > plan.start
            if not resumed:
                job.load_origin(plans, number)
            if number and not accelerator.is_fsdp2:
                freeze(student, frozen_in(plan.stage), trainable)
                wrapped = _wrap(accelerator, student)
            state = TrainState(
                accelerator=accelerator,
                student=wrapped,
                embedder=student.embedder,
                optimizer=build_optimizer(plan.stage, wrapped),
                stage=plan.stage,
                steps=plan.steps,
                memory=memory,
                seed=recipe.seed,
                clock=Clock(accelerator.device),
                say=tracker.say,
                average=Average(student, plan.stage.ema) if plan.stage.ema else None,
                guard=SpikeGuard(recipe.spikes),
            )
            if found is not None and resumed:
                load_optimizer(state.optimizer, found.optimizer)
                state.guard.load(found.facts["spikes"])
                if state.average is not None:
                    state.average.load(found.average)
                found = replace(found, optimizer={}, average={})
            job.identity = stage_identity(recipe, inputs, plans, number)
            first = max(begin, plan.start)
            _run_stage(job, plan, state, tracker, asked, first)
            memory, steps = state.memory, steps + (watch.ended or plan.end) - first
            if left_out := state.guard.skipped:
                tracker.say(f"stage {plan.stage.name}: {left_out} steps left out, their gradients were spikes")
        if recipe.merge is not None and begin < total:
            tracker.say(f"merge: {job.merge(plans, evaluate, memory)}")
        elif recipe.merge is None and begin < plans[-1].end and len(plans) - 1 in done and not watch.enough:
            job.finish(plans[-1].end, job.result(plans, len(plans) - 1), memory)
    student.eval()
    return TrainReport(steps, (watch.ended or total) - steps, before)


def _begin(job: Job, plans: Sequence[StagePlan], tracker: Tracker) -> Memory:
    """What a new run does once: set the weights in closed form if asked, measure the machine. Also where finished
    stages are taken over: the first evaluation is of this student, and a stage may begin from it."""
    set_start(job.student, job.recipe, plans[0], job.inputs, tracker.say)
    return _measured(job, plans)


def _measured(job: Job, plans: Sequence[StagePlan]) -> Memory:
    """How the machine is to be used, measured on the first batch: what the rank with the least room can."""
    first = prepare_work(plans[0].sampler, None, 0)
    longest = max(plan.sampler.longest for plan in plans)
    with job.accelerator.autocast():
        shards = world_size() if job.accelerator.is_fsdp2 else 1
        averaged = any(plan.stage.ema for plan in plans)
        memory = calibrate(job.student, first.rows, job.recipe.compute, shards=shards, later=longest, averaged=averaged)
    of_ranks: list[Memory] = gather_objects(memory)
    return replace(
        of_ranks[0],
        token_budget=min(of.token_budget for of in of_ranks),
        activation_bytes=min(of.activation_bytes for of in of_ranks),
    )


def _wrap(accelerator: Accelerator, student: Student) -> torch.nn.Module:
    """The student under DDP or FSDP2, whichever was launched; itself on a single process."""
    if not accelerator.is_fsdp2:
        wrapped: torch.nn.Module = accelerator.prepare_model(student)
        return wrapped
    broadcast(student.parameters())  # each rank would keep its share of what it has made itself
    accelerator.state.fsdp_plugin.mixed_precision_policy = sharded_precision(accelerator.mixed_precision == "bf16")
    # Accelerate shards a model only together with an optimizer; each stage builds its own on the sharded parameters.
    wrapped, _ = accelerator.prepare(student, torch.optim.SGD(student.parameters(), lr=0.0))
    return wrapped


def _run_stage(
    job: Job, plan: StagePlan, state: TrainState, tracker: Tracker, asked: threading.Event, begin: int
) -> None:
    """The steps of one stage from `begin`, a step of the whole run."""
    tracking = job.recipe.tracking
    for work in read_ahead(plan.sampler, job.inputs.vectors, range(begin - plan.start, plan.steps)):
        state.clock.lap("data")
        step = plan.start + work.batch.step + 1
        state.probe = tracker.due(step)
        metrics = train_step(state, work)
        tracker.step(step, plan.stage.name, metrics, work, state)

        # -------------------------------------------------------------- evaluate: changes nothing of the training
        # Not when a machine is about to be taken away: that may take longer than what is left, unless it decides.
        stop = any_rank(asked.is_set(), job.accelerator.device)
        best = False if stop and not tracking.decides else job.watch.look(step, tracker)

        # -------------------------------------------------------------- save: on schedule, at the end, or asked to stop
        stop = stop or any_rank(asked.is_set(), job.accelerator.device)
        if step % tracking.checkpoint_every == 0 or step == plan.end or stop or best or job.watch.enough:
            if step == plan.end and state.average is not None:
                state.average.apply()
            job.save(step, plan, state)
        if stop:
            raise Preempted(f"asked to stop: checkpoint of step {step} is in {job.folder}; run it again to go on")
        if job.watch.enough:
            tracker.say(f"stopped at step {step}: {job.watch.why}")
            break
        state.clock.lap("rest")


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that signals set (`train.signals`); the old handlers come back afterwards, those of the keyboard at
    once: whoever insists need not wait for the step."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, _: object) -> None:
        asked.set()
        if number in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, ask) for number in stopping()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

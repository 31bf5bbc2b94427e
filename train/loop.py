"""The loop: stages of steps, fenced by logging, evaluation and checkpoints. Killed at any time, it goes on from there.

All that must survive is in the checkpoint, or follows from the seed and the step.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from embedding.embedder import Embedder
from train.calibrate import calibrate
from train.checkpoint import (
    Checkpoint,
    load_optimizer,
    newest_checkpoint,
    optimizer_tensors,
    prune_checkpoints,
    save_checkpoint,
)
from train.clock import Clock
from train.distributed import any_rank, barrier, broadcast_object
from train.optim import build_optimizer
from train.plan import Inputs, StagePlan, checkpoint_identity, plan_stages
from train.recipe import BuiltStudent, Recipe
from train.static_start import static_start
from train.step import Memory, TrainState, Work, prepare_work, train_step
from train.student import Student
from train.tracking import Tracker

STATIC_TEXTS = 20_000
"""Texts that the static start is fitted to."""
Evaluate = Callable[[Embedder], dict[str, float]]
"""A model -> named scores such as {"eval/mean": 0.61}; leaves the model and every random state as they were."""


class Preempted(Exception):
    """The run was asked to stop (SIGTERM or SIGUSR1) and has written a checkpoint; started again, it goes on."""


@dataclass(frozen=True)
class TrainReport:
    """What a finished training did, from where it was resumed."""

    steps: int
    resumed_from: int
    seconds: float
    last_metrics: dict[str, float]


def train(
    recipe: Recipe,
    student: Student,
    inputs: Inputs,
    run: Path,
    *,
    evaluate: Evaluate | None = None,
    resume: bool = True,
) -> TrainReport:
    """Train `student` in place through all stages of `recipe`; `run` gets `metrics.jsonl` and `checkpoints/`.

    Raises:
        ValueError: the recipe does not fit the data (found before the first step), a checkpoint is of another recipe,
            or the loss is not finite.
        Preempted: asked to stop; the checkpoint of the last finished step is on disk.
    """
    accelerator = Accelerator(mixed_precision=_precision(recipe), cpu=not torch.cuda.is_available())
    plans = plan_stages(recipe, inputs)
    job = _Job(recipe, run / "checkpoints", checkpoint_identity(recipe, inputs), accelerator, student, inputs, evaluate)
    found, notes = newest_checkpoint(job.folder, job.made_from) if resume else (None, [])
    begin = found.step if found else 0
    tracker = Tracker(recipe, run, accelerator, plans[-1].end, begin)
    for note in notes:
        tracker.say(note)

    student.to(accelerator.device).train()
    if found is None:
        if isinstance(recipe.student.start, BuiltStudent) and recipe.student.start.init == "static":
            cosine = static_start(student.embedder, *_sample(plans[0], inputs))
            tracker.say(f"static start: mean cosine to the teacher {cosine:.3f}")
        first = prepare_work(plans[0].sampler, None, 0)
        with accelerator.autocast():
            memory = calibrate(student, first.rows, recipe.compute)
        memory = Memory(**broadcast_object(asdict(memory)))
    else:
        student.load_state_dict(found.model)
        memory = Memory(**found.facts["memory"])
        tracker.say(f"resumed from step {found.step} of {plans[-1].end}")

    wrapped = accelerator.prepare_model(student)
    start, metrics = time.perf_counter(), {}
    with _asked_to_stop() as asked, tracker:
        for plan in plans:
            if begin < plan.end:
                optimizer = build_optimizer(plan.stage, wrapped)
                if found is not None and found.step > plan.start:
                    load_optimizer(optimizer, found.optimizer)
                state = TrainState(
                    accelerator,
                    wrapped,
                    optimizer,
                    plan.stage,
                    plan.steps,
                    memory,
                    recipe.seed,
                    Clock(accelerator.device),
                )
                metrics = _run_stage(job, plan, state, tracker, asked, max(begin, plan.start))
    student.eval()
    return TrainReport(plans[-1].end - begin, begin, time.perf_counter() - start, metrics)


@dataclass(frozen=True)
class _Job:
    """What stays the same over all stages of a run."""

    recipe: Recipe
    folder: Path
    made_from: dict[str, object]
    accelerator: Accelerator
    student: Student
    inputs: Inputs
    evaluate: Evaluate | None

    def save(self, step: int, state: TrainState) -> None:
        """Write the checkpoint of a finished step, and drop the oldest ones."""
        if self.accelerator.is_main_process:
            checkpoint = Checkpoint(
                step, self.student.state_dict(), optimizer_tensors(state.optimizer), {"memory": asdict(state.memory)}
            )
            save_checkpoint(self.folder, checkpoint, self.made_from)
            prune_checkpoints(self.folder, self.recipe.tracking.keep)
        barrier()


def _run_stage(
    job: _Job, plan: StagePlan, state: TrainState, tracker: Tracker, asked: threading.Event, begin: int
) -> dict[str, float]:
    """The steps of one stage from `begin`, a step of the whole run; returns the last step's metrics."""
    tracking, metrics = job.recipe.tracking, {}
    for work in _read_ahead(job.inputs, plan, begin):
        state.clock.lap("data")
        metrics = train_step(state, work)
        step = plan.start + work.batch.step + 1
        tracker.step(step, plan.stage.name, metrics, work, state)

        # -------------------------------------------------------------- evaluate: changes nothing of the training
        if job.evaluate is not None and _due(step, tracking.evaluate_every, plan.end):
            if job.accelerator.is_main_process:
                tracker.evaluation(step, job.evaluate(job.student.embedder))
            barrier()

        # -------------------------------------------------------------- save: on schedule, at the end, or asked to stop
        stop = any_rank(asked.is_set(), job.accelerator.device)
        if step % tracking.checkpoint_every == 0 or step == plan.end or stop:
            job.save(step, state)
        if stop:
            raise Preempted(f"asked to stop: checkpoint of step {step} is in {job.folder}; run it again to go on")
        state.clock.lap("rest")
    return metrics


def _sample(plan: StagePlan, inputs: Inputs) -> tuple[list[np.ndarray], np.ndarray]:
    """Id rows and teacher vectors of the first texts that a stage will train on, about STATIC_TEXTS."""
    assert inputs.vectors is not None, "the plan refuses a static start without teacher vectors"
    texts = np.zeros(0, dtype=np.int64)
    for step in range(plan.steps):
        texts = np.union1d(texts, plan.sampler.batch(step).text_N)
        if len(texts) >= STATIC_TEXTS:
            break
    return [plan.sampler.ids(int(text)) for text in texts], inputs.vectors(texts)


def _read_ahead(inputs: Inputs, plan: StagePlan, begin: int) -> Iterator[Work]:
    """The work of each step from `begin`, the next one prepared while the current one runs."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as reader:
        steps = range(begin - plan.start, plan.steps)
        coming = reader.submit(prepare_work, plan.sampler, inputs.vectors, steps[0])
        for step in steps:
            work = coming.result()
            if step + 1 < plan.steps:
                coming = reader.submit(prepare_work, plan.sampler, inputs.vectors, step + 1)
            yield work


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGUSR1 (a preemption) set; the old handlers come back afterwards."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _due(step: int, share: float, total: int) -> bool:
    """Whether an evaluation falls on this step: every `share` of the training, never at its end (that is measured)."""
    return share > 0 and step < total and int(step / (share * total)) > int((step - 1) / (share * total))


def _precision(recipe: Recipe) -> str:
    wanted = recipe.compute.precision
    if wanted == "auto":
        wanted = "bf16" if torch.cuda.is_available() else "fp32"
    return "bf16" if wanted == "bf16" else "no"

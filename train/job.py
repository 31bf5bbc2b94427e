"""What belongs to a run rather than to a stage: its checkpoints, the results of its stages, and their merge."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from train.checkpoint import Checkpoint, optimizer_tensors, prune_checkpoints, save_checkpoint
from train.distributed import from_main, rank, sharded_like, whole_on_main, world_size
from train.lora import without_adapters
from train.merge import State, merged
from train.plan import Inputs, StagePlan
from train.recipe import Recipe
from train.stages import finished_stage, origin, save_stage, stage_identity
from train.step import Memory, TrainState
from train.student import Student
from train.watch import Evaluate, Watch


@dataclass
class Job:
    """What belongs to the run rather than to a stage."""

    recipe: Recipe
    folder: Path
    made_from: dict[str, object]
    accelerator: Accelerator
    student: Student
    inputs: Inputs
    watch: Watch
    identity: dict[str, Any] = field(default_factory=dict)
    """What the weights at the end of the running stage are made from."""
    began: float = 0.0
    """On `time.perf_counter`, as if no process had been killed."""

    def facts(self, memory: Memory) -> dict[str, Any]:
        """What a checkpoint says of the run."""
        seconds = time.perf_counter() - self.began
        ran = {"ranks": world_size(), "precision": self.accelerator.mixed_precision, "seconds": seconds}
        return {"memory": asdict(memory), "computing": self.computing, **self.watch.facts(), **ran}

    @property
    def computing(self) -> dict[str, Any]:
        """What the memory of a chunk depends on besides its tokens: measured under other facts it says nothing."""
        compute = self.recipe.compute.model_dump(include={"compile", "layer_checkpointing"})
        with self.accelerator.autocast():
            packed = self.student.embedder.packs
        device = self.accelerator.device.type
        shards = world_size() if self.accelerator.is_fsdp2 else 1
        ran = {"precision": self.accelerator.mixed_precision, "device": device, "packed": packed, "shards": shards}
        return ran | compute

    @property
    def stages(self) -> Path:
        """Where the finished weights of the stages lie."""
        return self.folder.with_name("stages")

    def save(self, step: int, plan: StagePlan, state: TrainState) -> None:
        """Write the checkpoint of a finished step, and drop the oldest. The last of a stage is also its result, and
        lacks what only a next step would read: the optimizer's state is twice as large as the weights."""
        # Weights in 4 bits are unpacked for it: by rank 0 alone, where no rank is asked for its share.
        asked = rank() == 0 or self.accelerator.is_fsdp2
        model = {name: whole_on_main(tensor) for name, tensor in self.student.state_dict().items()} if asked else {}
        optimizer, average = {}, {}
        if step < plan.end:
            optimizer = optimizer_tensors(state.optimizer)
            averaged = state.average.tensors if state.average else {}
            average = {name: whole_on_main(tensor) for name, tensor in averaged.items()}
        facts = self.facts(state.memory) | {"spikes": state.guard.facts()}

        def write() -> None:
            if step == plan.end:
                save_stage(self.stages, plan.stage.name, plan.steps, model, self.identity)
            save_checkpoint(self.folder, Checkpoint(step, model, optimizer, facts, average), self.made_from)
            prune_checkpoints(self.folder, self.recipe.tracking.keep, self.watch.best_step)

        from_main(write)

    def load_origin(self, plans: Sequence[StagePlan], number: int) -> None:
        """Put the weights that a stage begins from into the student, which may hold those of another stage.

        Raises:
            ValueError: that stage's result is gone.
        """
        before = origin(plans, number)
        if before is not None:
            self.student.load_state_dict(self._sharded(self.result(plans, before)))

    def result(self, plans: Sequence[StagePlan], number: int) -> dict[str, Tensor]:
        """The weights at the end of a stage.

        Raises:
            ValueError: they are gone.
        """
        plan, identity = plans[number], stage_identity(self.recipe, self.inputs, plans, number)
        model = finished_stage(self.stages, plan.stage.name, plan.steps, identity)
        if model is None:
            raise ValueError(f"{self.stages / plan.stage.name}: the result of this stage is gone; train with --restart")
        return model

    def merge(self, plans: Sequence[StagePlan], evaluate: Evaluate | None, memory: Memory) -> str:
        """Merge the results of stages into the student, and finish with that; says what was done.

        Raises:
            ValueError: a stage's result is gone; a greedy soup has no suite, or a task of it failed.
        """
        merge, names = self.recipe.merge, [plan.stage.name for plan in plans]
        assert merge is not None
        states = [self.result(plans, names.index(name)) for name in merge.of]
        if lora := self.recipe.student.lora:
            states = [without_adapters(state, lora.alpha / lora.rank) for state in states]

        def score(state: State) -> float:
            self.student.load_state_dict(self._sharded(dict(state)))
            assert evaluate is not None
            scores = self.watch.scores(evaluate)
            if "eval/mean" not in scores:
                raise ValueError(
                    "merge.method greedy: a task of the suite failed, so the models cannot be compared; "
                    "run it again, or take another method"
                )
            return scores["eval/mean"]

        model, said = merged(states, merge.method, merge.weights, score if evaluate else None)
        self.finish(plans[-1].end + 1, model, memory)
        return said

    def finish(self, step: int, model: dict[str, Tensor], memory: Memory) -> None:
        """Put weights that no step of this process made into the student, and write them as the last checkpoint."""
        self.student.load_state_dict(self._sharded(model))
        facts = self.facts(memory)
        from_main(lambda: str(save_checkpoint(self.folder, Checkpoint(step, model, {}, facts), self.made_from)))

    def _sharded(self, model: dict[str, Tensor]) -> dict[str, Tensor]:
        now = self.student.state_dict()
        return {name: sharded_like(tensor, now[name]) for name, tensor in model.items()}


def finished_stages(job: Job, plans: Sequence[StagePlan]) -> list[int]:
    """The stages whose weights lie in the run's folder, made from just what they would be made from now. None where
    evaluations decide what comes out: those of the stages went with their checkpoints."""
    found = []
    for number, plan in enumerate(plans if not job.recipe.tracking.decides else ()):
        identity = stage_identity(job.recipe, job.inputs, plans, number)
        if finished_stage(job.stages, plan.stage.name, plan.steps, identity) is not None:
            found.append(number)
    return found

"""Evaluations while training: when they fall, what they find, and whether that is enough. They change nothing else."""

import copy
import time
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator

from embedding.attention import measured_in
from embedding.embedder import Embedder
from eval.ranks import Ranks
from train.distributed import gather_objects, rank, whole, world_size
from train.recipe import TrackingConfig
from train.tracking import Tracker

Evaluate = Callable[[Embedder, Ranks], dict[str, float]]
"""A model on every rank -> named scores such as {"eval/mean": 0.61}, the same on every rank; leaves the model and every
random state as they were."""


class Watch:
    """Looks at the student as often as the recipe asks, on all ranks."""

    def __init__(
        self,
        tracking: TrackingConfig,
        steps: int,
        accelerator: Accelerator,
        embedder: Embedder,
        evaluate: Evaluate | None,
        judge: str = "",
    ) -> None:
        """`embedder`: the student's, before anything wraps it; `steps`: of the whole training; `judge`: a digest of
        what `evaluate` measures on."""
        self._tracking, self._steps, self._accelerator, self._embedder = tracking, steps, accelerator, embedder
        self._evaluate = evaluate if tracking.evaluate_every else None
        self._judge = judge
        # A sharded model's own parts hold a share of the weights each: a whole one beside it is what can be asked.
        sharded = evaluate is not None and accelerator.is_fsdp2
        self._copy = copy.deepcopy(embedder).cpu() if sharded else None
        self._best: tuple[int, float] | None = None
        self._worse = 0
        self._means: tuple[float, float] | None = None
        """Before the first step, and the latest."""
        self.ended: int | None = None
        """The step at which the training ended early."""

    @property
    def best_step(self) -> int | None:
        """The step of the best evaluation so far; with a floor, of the last one above it."""
        return self._best[0] if self._best else None

    @property
    def enough(self) -> bool:
        """Whether the training ends early."""
        return self.ended is not None

    @property
    def why(self) -> str | None:
        """What the evaluations so far say against going on; None: nothing."""
        patience, floor = self._tracking.patience, self._tracking.floor
        if patience is not None and self._worse >= patience:
            return f"{patience} evaluations without a better mean"
        if floor is not None and self._means is not None and self._means[1] < floor * self._means[0]:
            return f"the mean fell from {self._means[0]:.4f} to {self._means[1]:.4f}, below the floor of {floor:.1%}"
        return None

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps of this."""
        floor = self._tracking.floor  # what `best` goes by
        found = {"best": self._best, "worse": self._worse, "ended": self.ended, "means": self._means}
        return found | {"floor": floor, "judge": self._judge}

    def load(self, facts: dict[str, Any]) -> None:
        """Go on from the facts of a checkpoint.

        Raises:
            ValueError: its scores are of another suite, and scores decide; or a floor is set that nothing is known of.
        """
        if self._tracking.decides and facts.get("judge", "") not in ("", self._judge):
            raise ValueError("the evaluations so far were of another suite; take it back, or train with --restart")
        best, self._worse, self.ended = facts["best"], facts["worse"], facts["ended"]
        self._best = (int(best[0]), float(best[1])) if best else None
        means = facts.get("means")
        if self._tracking.floor is not None and not means and facts.get("floor") is None:
            raise ValueError(
                "tracking.floor goes by the score before the first step, and this training began without evaluations; "
                "take it back, or train with --restart"
            )
        self._means = (float(means[0]), float(means[1])) if means else None
        if self.ended is not None and self.why is None:
            self.ended = None  # the recipe has become more patient

    def look(self, step: int, tracker: Tracker) -> bool:
        """Evaluate after `step` where one is due; whether the student is better than it ever was."""
        if self._evaluate is None or not due(step, self._tracking, self._steps):
            return False
        begin = time.perf_counter()
        scores = self.scores(self._evaluate)
        tracker.evaluation(step, scores | {"eval/seconds": time.perf_counter() - begin})
        mean = scores.get("eval/mean")
        if mean is None:
            tracker.say(f"step {step}: no mean of this evaluation, so nothing is decided by it: a task failed")
            return False
        self._means = (self._means[0] if self._means else mean, mean)
        if not step:
            return False
        if self._tracking.floor is not None:
            better = self.why is None  # not better, but good enough to be the model
        else:
            better = self._best is None or mean > self._best[1]
        if better:
            self._best = (step, mean)
        self._worse = 0 if better else self._worse + 1
        if self.why is not None and step < self._steps:
            self.ended = step
        return better

    def scores(self, evaluate: Evaluate) -> dict[str, float]:
        """What an evaluation finds of the student as it is now. Every rank must ask."""
        model = self._whole()
        model.computes_in = measured_in(model.device)
        found = evaluate(model, Ranks(world_size(), rank(), gather_objects))
        model.computes_in = None
        if self._copy is not None:
            self._copy.cpu()
        return found

    def _whole(self) -> Embedder:
        """The student's embedder with all its weights on this rank."""
        if self._copy is None:
            return self._embedder
        weights = {name: whole(tensor).cpu() for name, tensor in self._embedder.state_dict().items()}
        self._copy.load_state_dict(weights)
        return self._copy.to(self._accelerator.device)


def due(step: int, tracking: TrackingConfig, steps: int) -> bool:
    """Whether an evaluation falls on a step: before the first, and every so often. After the last one only where the
    evaluations decide which weights come out: the finished model is measured anyway."""
    if step in (0, steps):
        return step == 0 or tracking.decides
    every = tracking.evaluate_every
    if every >= 1:
        return step % int(every) == 0
    return int(step / (every * steps)) > int((step - 1) / (every * steps))

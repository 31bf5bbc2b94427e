"""What happens to a step whose gradient is not finite or far larger than usual: it is left out, counted, and bounded.

bf16 has 8 bits of mantissa: now and then a batch gives a gradient that throws the weights back by hours, or one that
is not a number. The policy is the simple one of large training runs (PaLM, arXiv:2204.02311, section 5.1, skips batches
around a spike). It depends on the gradient norms alone, which are the same on every rank, and its memory is in
the checkpoint, so a resumed run decides as the uninterrupted one would have.
"""

import math
from statistics import median
from typing import Any

from pydantic import Field

from embedding.config import Config


class SpikeConfig(Config):
    """When a step is left out."""

    factor: float = Field(default=10.0, gt=1)
    """A gradient norm above this many times the running median is a spike."""
    window: int = Field(default=100, ge=3)
    """Steps of the running median; it starts with each stage, whose losses have norms of their own."""
    warmup: int = Field(default=20, ge=1)
    """Norms seen before the first step may be called a spike; at most a whole window."""
    in_a_row: int = Field(default=5, ge=1)
    """After so many of the last `window` steps were left out a finite gradient is believed, and clipped as always: what
    comes that often is a source or a level of its own, not a spike. After so many one after another, one that is not
    finite ends the training."""


class SpikeGuard:
    """Judges the gradient norms of one stage, step after step."""

    def __init__(self, config: SpikeConfig) -> None:
        self._config = config
        self._norms: list[float] = []
        self._lately: list[bool] = []
        """Whether each of the last steps was left out."""
        self._in_a_row = 0
        self.skipped = 0
        """Steps left out in this stage."""

    def skips(self, norm: float) -> bool:
        """Whether the step with this gradient norm is to be left out."""
        finite = math.isfinite(norm)
        settled = len(self._norms) >= min(self._config.warmup, self._config.window)
        spike = not finite or (settled and norm > self._config.factor * median(self._norms))
        often = max(self._in_a_row, sum(self._lately)) >= self._config.in_a_row
        left_out = spike and not (finite and often)
        self._lately = [*self._lately, left_out][-self._config.window :]
        if left_out:
            self._in_a_row += 1
            self.skipped += 1
            return True
        self._in_a_row = 0
        self._norms = [*self._norms, norm][-self._config.window :]
        return False

    @property
    def exhausted(self) -> bool:
        """Whether more steps in a row were left out than the policy allows."""
        return self._in_a_row > self._config.in_a_row

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps of this."""
        return {
            "norms": self._norms,
            "lately": self._lately,
            "in_a_row": self._in_a_row,
            "skipped": self.skipped,
        }

    def load(self, facts: dict[str, Any]) -> None:
        """Go on from the facts of a checkpoint."""
        self._norms, self._lately = list(facts["norms"]), list(facts.get("lately", []))
        self._in_a_row, self.skipped = facts["in_a_row"], facts["skipped"]

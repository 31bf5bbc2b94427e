"""What a student is pulled towards: all losses in one discriminated union, each a pure function of `train.views.Views`.

A loss is its settings, with formula and source, and a function that returns this rank's part of it; they stand together
in `train.losses_labels` and `train.losses_teacher`, and are listed here.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, field_validator
from torch import Tensor

from embedding.files import sha256_file
from train.losses_labels import CoSENT, InfoNCE, Spread, cosent_part, info_nce_part, spread_part
from train.losses_teacher import (
    Gram,
    MarginMSE,
    Match,
    Relative,
    ScoreKL,
    gram_part,
    margin_mse_part,
    match_part,
    relative_part,
    score_kl_part,
)
from train.views import LossConfig, Need, Views

__all__ = [
    "CoSENT", "Gram", "InfoNCE", "Loss", "MarginMSE", "Match", "Own", "Relative", "ScoreKL", "Spread", "loss_part",
]  # fmt: skip

LossFunction = Callable[..., Tensor]
"""(views, **options) -> this rank's part of a mean over the global batch, a scalar."""


class Own(LossConfig):
    """A loss of your own: a function that gets a `train.views.Views` and the options, and returns this rank's part of a
    mean over the global batch (the parts of all ranks are added up)."""

    kind: Literal["own"] = "own"
    function: str
    """`package.module:name`, importable where the training runs."""
    options: dict[str, Any] = Field(default={})
    """Passed to the function by name."""
    asks_for: list[Need] = Field(default=[])
    """What it cannot do without; a recipe that cannot give it is refused."""

    @field_validator("function")
    @classmethod
    def _path(cls, path: str) -> str:
        module, colon, name = path.partition(":")
        if not (module and colon and name):
            raise ValueError("expected package.module:name")
        return path

    def asks(self) -> frozenset[Need]:
        """What the recipe says that it needs."""
        return frozenset(self.asks_for)

    def load(self) -> LossFunction:
        """The function.

        Raises:
            ValueError: there is no such module, or nothing callable of that name in it.
        """
        module, _, name = self.function.partition(":")
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError as error:
            raise ValueError(f"an own loss is {self.function!r}, and {module} cannot be imported: {error}") from None
        if not callable(found):
            raise ValueError(f"an own loss is {self.function!r}, and {module} has no function {name}")
        return cast(LossFunction, found)

    def source(self) -> str:
        """The SHA-256 of the file that the function stands in: what is trained depends on it, and on what it imports,
        which is not looked at."""
        found = inspect.getsourcefile(inspect.unwrap(self.load()))
        return sha256_file(Path(found)) if found else ""


Loss = Annotated[
    Match | InfoNCE | Gram | Relative | ScoreKL | MarginMSE | CoSENT | Spread | Own, Field(discriminator="kind")
]
PROJECTED = (Match, Own)
"""Losses that look at the student's vectors through the projection, and train it."""
PARTS: Mapping[type[LossConfig], Callable[[Any, Views], Tensor]] = {
    Match: match_part,
    InfoNCE: info_nce_part,
    Gram: gram_part,
    Relative: relative_part,
    ScoreKL: score_kl_part,
    MarginMSE: margin_mse_part,
    CoSENT: cosent_part,
    Spread: spread_part,
    Own: lambda loss, views: loss.load()(views, **loss.options),
}


def loss_part(loss: Loss, views: Views) -> Tensor:
    """This rank's part of a loss, unweighted: a scalar in fp32; with `widths`, the weighted mean over them and the full
    width."""
    part = PARTS[type(loss)]
    total, weights = part(loss, views), 1.0
    for width, weight in zip(loss.widths, loss.width_weights or [1.0] * len(loss.widths), strict=True):
        total, weights = total + weight * part(loss, views.cut(width)), weights + weight
    return total / weights


def asked_for(losses: Sequence[Loss]) -> frozenset[Need]:
    """What some losses need together."""
    return frozenset(need for loss in losses for need in loss.asks())


def projected_widths(losses: Sequence[Loss]) -> list[int]:
    """The widths at which a loss that looks through the projection wants the student's vectors, ascending."""
    return sorted({width for loss in losses if isinstance(loss, PROJECTED) for width in loss.widths})

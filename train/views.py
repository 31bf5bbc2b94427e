"""What every loss looks at, and the settings that all losses share.

Every loss returns this rank's part of a mean over the *global* batch: the parts of all ranks add up to the loss, so it
does not depend on how many ranks there are, on chunking or on padding.

Shapes: N texts of the global batch, n of them on this rank, B queries with a positive, K documents, H negatives of a
row, G graded pairs, X pairs, D student width, E teacher width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from embedding.config import Config
from embedding.pooling import truncate

Part = Literal["query", "positive", "negative"]
PART_BITS: dict[Part, int] = {"query": 1, "positive": 2, "negative": 4}

Need = Literal["teacher", "teacher_of_all", "pairs", "negatives", "graded"]
"""What a loss cannot do without: the teacher's vectors of this rank's texts, or of all texts of the batch; rows with a
positive; rows with negatives of their own; graded pairs."""

TILE = 512
"""Rows of a pairwise loss that are in memory at once: 512 rows against 32,768 texts are 64 MiB."""


class Ramp(Config):
    """A weight that changes over a stage: `start` until the share `begin` of its steps, `end` from `until` on."""

    start: float = Field(ge=0)
    end: float = Field(ge=0)
    begin: float = Field(default=0.0, ge=0, le=1)
    until: float = Field(default=1.0, ge=0, le=1)
    shape: Literal["linear", "cosine"] = "linear"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.begin >= self.until:
            raise ValueError(f"begin {self.begin} must lie before until {self.until}")
        return self

    def at(self, done: float) -> float:
        """The weight when the share `done` of the stage's steps is behind."""
        share = min(max((done - self.begin) / (self.until - self.begin), 0.0), 1.0)
        if self.shape == "cosine":
            share = 0.5 * (1 - math.cos(math.pi * share))
        return self.start + (self.end - self.start) * share


class LossConfig(Config):
    """What all losses have."""

    weight: Annotated[float, Field(gt=0)] | Ramp = 1.0
    """A number, or a ramp {start, end, begin, until, shape} over the steps of the stage."""
    widths: list[int] = Field(default=[])
    """Matryoshka (Kusupati 2022, arXiv:2205.13147): the loss is also taken on the vectors cut to these widths, at unit
    norm again; the result is the weighted mean over full and cut widths, so the loss keeps its scale."""
    width_weights: list[Annotated[float, Field(gt=0)]] = Field(default=[])
    """One for each of `widths`, beside 1 for the full width; empty: 1 each."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    @model_validator(mode="after")
    def _widths(self) -> Self:
        if self.width_weights and len(self.width_weights) != len(self.widths):
            raise ValueError(f"width_weights: expected one for each of the {len(self.widths)} widths")
        if len(set(self.widths)) != len(self.widths) or any(width < 1 for width in self.widths):
            raise ValueError(f"widths: expected distinct widths from 1, got {self.widths}")
        return self

    def weight_at(self, step: int, steps: int) -> float:
        """The weight in a step (from 0) of a stage's `steps`."""
        return self.weight.at(step / max(1, steps - 1)) if isinstance(self.weight, Ramp) else self.weight

    def asks(self) -> frozenset[Need]:
        """What this loss needs as it is set."""
        return self.needs


@dataclass(frozen=True)
class Views:
    """One step's embeddings as the losses see them."""

    text_ND: Tensor
    """All texts of the global batch, gathered with a gradient: fp32, unit norm."""
    part_N: Tensor
    """What each text is in the batch: a sum of PART_BITS."""
    query_B: Tensor
    """Where the queries that have a positive stand among the texts."""
    document_K: Tensor
    """Where the distinct documents stand among the texts."""
    positive_B: Tensor
    """Which document is a query's positive."""
    negative_BH: Tensor
    """Which documents are the negatives of a query's own row; -1 where it has fewer."""
    excluded_X2: Tensor
    """(query, document) pairs that must not be contrasted."""
    query_group_B: Tensor
    document_group_K: Tensor
    """A query is not contrasted with documents of its own group (>= 0); -1 is no group."""
    graded_G2: Tensor
    """Where the two texts of each graded pair stand among the texts."""
    score_G: Tensor
    """How close a graded pair is, in the data's own unit."""
    rank: int
    ranks: int
    seed: int
    """Of this step, the same on every rank."""
    local_nE: Tensor
    """This rank's texts after the projection, fp32."""
    local_part_n: Tensor
    """What this rank's texts are; 0 for a filler, which counts for nothing."""
    teacher_nE: Tensor | None
    """The teacher's vectors of this rank's texts, unit norm."""
    teacher_NE: Tensor | None
    """The teacher's vectors of all texts, where a loss asks for them."""
    cuts: Mapping[int, Tensor]
    """Width -> this rank's texts, cut to it and then projected [n, E]; empty without a projection."""

    def mine(self, total: int) -> slice:
        """The part of `total` things, numbered the same everywhere, that this rank answers for."""
        return slice(total * self.rank // self.ranks, total * (self.rank + 1) // self.ranks)

    @property
    def rows(self) -> slice:
        """The part of B that this rank answers for."""
        return self.mine(len(self.query_B))

    def which(self, parts: Sequence[Part]) -> Tensor:
        """The texts that play one of the parts: positions [M], the same on every rank."""
        bits = sum(PART_BITS[part] for part in set(parts))
        return ((self.part_N & bits) != 0).nonzero().squeeze(1)

    @property
    def teacher(self) -> Tensor:
        """The teacher's vectors of all texts [N, E]."""
        assert self.teacher_NE is not None, "the plan refuses a loss without the teacher it asks for"
        return self.teacher_NE

    def cut(self, width: int) -> "Views":
        """The same with the student's vectors cut to `width`, at unit norm.

        Without a projection the match is to the teacher's vectors cut alike, which says something only where the
        teacher was trained Matryoshka; all other losses compare similarities, with the teacher's whole.
        """
        if width in self.cuts:
            local_nE, teacher_nE = self.cuts[width], self.teacher_nE
        else:  # nothing is matched at a width that one of the two has not
            local_nE = truncate(self.local_nE, min(width, self.local_nE.shape[1]))
            teacher_nE = self.teacher_nE
            if teacher_nE is not None:
                teacher_nE = truncate(teacher_nE, min(width, teacher_nE.shape[1]))
        return replace(self, text_ND=truncate(self.text_ND, width), local_nE=local_nE, teacher_nE=teacher_nE, cuts={})


def sum_in_tiles(part: Callable[[slice], Tensor], rows: slice, like: Tensor) -> Tensor:
    """The sum of `part` over tiles of rows; a tile is computed again in the backward pass, so only one is in memory.

    `like` is what the parts depend on: without rows the sum is a zero that still has a gradient, of zero.
    """
    total = like[:0].sum()
    for start in range(rows.start, rows.stop, TILE):
        tile = slice(start, min(start + TILE, rows.stop))
        total = total + checkpoint(part, tile, use_reentrant=False, preserve_rng_state=False)
    return total

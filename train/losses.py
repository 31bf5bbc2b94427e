"""What a student is pulled towards. Pure functions of `Views`, and their settings in one discriminated union.

Every loss returns this rank's part of a mean over the *global* batch: the parts of all ranks add up to the loss, so it
does not depend on how many ranks there are, on chunking or on padding.

Shapes: N texts of the global batch, n of them on this rank, B queries with a positive, K documents, X pairs,
D student width, E teacher width.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from embedding.config import Config
from train.contrast import info_nce_rows

Part = Literal["query", "positive", "negative"]
PART_BITS: dict[Part, int] = {"query": 1, "positive": 2, "negative": 4}


class Match(Config):
    """Distance to the teacher's vector, text by text.

    mean_i 1 - cos(W z_i, t_i) over the distinct texts of the batch; W is the student's learned projection where widths
    differ, z the student's and t the teacher's vector (Reimers and Gurevych 2020, arXiv:2004.09813, with the cosine in
    place of the squared error: on unit vectors MSE = 2 (1 - cos) / E, so weights carry over between widths).
    Needs teacher vectors; takes every row, also texts without a positive.
    """

    kind: Literal["match"] = "match"
    weight: float = Field(default=1.0, gt=0)
    on: list[Part] = Field(default=["query", "positive", "negative"], min_length=1)
    """Which texts are matched; a text that plays several parts counts once. Single texts count as `query`."""


class InfoNCE(Config):
    """Each query picks its positive among all documents of the global batch (van den Oord 2018, arXiv:1807.03748).

    mean_i -log( exp(s_i+ / t) / sum_k exp(s_ik / t) ) over the usable documents k: every distinct document of the
    batch, hard negatives included, but for those known to be no negatives of query i (another of its positives, the
    query's own text, a document of its group). s is the cosine similarity. Needs rows with a positive.
    """

    kind: Literal["info_nce"] = "info_nce"
    weight: float = Field(default=1.0, gt=0)
    temperature: float = Field(default=0.02, gt=0)


Loss = Annotated[Match | InfoNCE, Field(discriminator="kind")]


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
    excluded_X2: Tensor
    """(query, document) pairs that must not be contrasted."""
    query_group_B: Tensor
    document_group_K: Tensor
    """A query is not contrasted with documents of its own group (>= 0); -1 is no group."""
    rows: slice
    """The part of B that this rank answers for."""
    local_nE: Tensor
    """This rank's texts after the projection, fp32."""
    local_part_n: Tensor
    """What this rank's texts are; 0 for a filler, which counts for nothing."""
    teacher_nE: Tensor | None
    """The teacher's vectors of this rank's texts, unit norm."""


def loss_part(loss: Loss, views: Views) -> Tensor:
    """This rank's part of a loss, unweighted: a scalar in fp32."""
    match loss:
        case Match():
            return match_part(loss, views)
        case InfoNCE():
            return info_nce_part(loss, views)


def match_part(loss: Match, views: Views) -> Tensor:
    """See `Match`."""
    assert views.teacher_nE is not None, "the loop refuses a match loss without teacher vectors"
    bits = sum(PART_BITS[part] for part in set(loss.on))
    count = ((views.part_N & bits) != 0).sum().clamp(min=1)
    chosen_n = (views.local_part_n & bits) != 0
    cosine_n = torch.nn.functional.cosine_similarity(views.local_nE, views.teacher_nE, dim=-1)
    return torch.where(chosen_n, 1.0 - cosine_n, 0.0).sum() / count


def info_nce_part(loss: InfoNCE, views: Views) -> Tensor:
    """See `InfoNCE`. A batch without positives contributes nothing, with a gradient of zero."""
    total, start = len(views.query_B), views.rows.start
    mine = views.rows
    excluded_X2 = views.excluded_X2[(views.excluded_X2[:, 0] >= mine.start) & (views.excluded_X2[:, 0] < mine.stop)]
    rows_b = info_nce_rows(
        views.text_ND[views.query_B[mine]],
        views.text_ND[views.document_K],
        views.positive_B[mine],
        loss.temperature,
        excluded_X2 - torch.tensor([start, 0], device=excluded_X2.device),
        views.query_group_B[mine],
        views.document_group_K,
    )
    return rows_b.sum() / max(total, 1)

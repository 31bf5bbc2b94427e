"""Losses that learn from the teacher's vectors. Shapes as in `train.views`; C candidates of a query, S samples."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from train.views import PART_BITS, TILE, LossConfig, Need, Part, Views, sum_in_tiles

ALL: list[Part] = ["query", "positive", "negative"]


class Match(LossConfig):
    """Distance to the teacher's vector, text by text (Reimers and Gurevych 2020, arXiv:2004.09813).

    cosine: mean_i 1 - cos(W z_i, t_i). mse: mean_i |W z_i - t_i|^2 / 2, which is E / 2 times the mean squared error and
    equals the cosine form where W z has unit norm, so that weights carry over between widths and forms. The mean is
    over the distinct texts of the global batch; W is the student's learned projection where widths differ, z the
    student's and t the teacher's vector. Needs teacher vectors; takes every row, also texts without a positive.
    """

    kind: Literal["match"] = "match"
    distance: Literal["cosine", "mse"] = "cosine"
    on: list[Part] = Field(default=ALL, min_length=1)
    """Which texts are matched; a text that plays several parts counts once. Single texts count as `query`."""

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher"})


def match_part(loss: Match, views: Views) -> Tensor:
    """See `Match`."""
    assert views.teacher_nE is not None, "the plan refuses a match loss without teacher vectors"
    bits = sum(PART_BITS[part] for part in set(loss.on))
    count = ((views.part_N & bits) != 0).sum().clamp(min=1)
    chosen_n = (views.local_part_n & bits) != 0
    if loss.distance == "cosine":
        distance_n = 1.0 - torch.nn.functional.cosine_similarity(views.local_nE, views.teacher_nE, dim=-1)
    else:
        distance_n = (views.local_nE - views.teacher_nE).square().sum(dim=-1) / 2
    return torch.where(chosen_n, distance_n, 0.0).sum() / count


class Gram(LossConfig):
    """The similarities among all texts of the batch: mean_ij (z_i . z_j - t_i . t_j)^2 (the Gram matrices' squared
    error; similarity-preserving distillation, Tung and Mori 2019, arXiv:1907.09682). Needs no projection: widths may
    differ. Needs teacher vectors.
    """

    kind: Literal["gram"] = "gram"
    on: list[Part] = Field(default=ALL, min_length=1)

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher_of_all"})


def gram_part(loss: Gram, views: Views) -> Tensor:
    """See `Gram`."""
    chosen = views.which(loss.on)
    z_MD, t_ME = views.text_ND[chosen], views.teacher[chosen]

    def tile(at: slice) -> Tensor:
        return (z_MD[at] @ z_MD.T - t_ME[at] @ t_ME.T).square().sum()

    return sum_in_tiles(tile, views.mine(len(chosen)), z_MD) / max(len(chosen) ** 2, 1)


class Relative(LossConfig):
    """The teacher's order of similarities: mean max(0, z_m . z_n - z_i . z_j + margin) over pairs of pairs with
    t_i . t_j > t_m . t_n (Stella and Jasper, Zhang 2024, arXiv:2412.19048, margin 0.015).

    All pairs of pairs would be O(N^4): `samples` of them are drawn each step, the same on every rank. Needs teacher
    vectors.
    """

    kind: Literal["relative"] = "relative"
    on: list[Part] = Field(default=ALL, min_length=1)
    margin: float = Field(default=0.015, ge=0)
    samples: int = Field(default=4_096, ge=1)

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher_of_all"})


def relative_part(loss: Relative, views: Views) -> Tensor:
    """See `Relative`. Samples that pair a text with itself, or that the teacher ties, count for nothing."""
    chosen = views.which(loss.on)
    generator = torch.Generator().manual_seed(views.seed % 2**63)
    drawn = torch.randint(max(len(chosen), 1), (loss.samples, 4), generator=generator).to(chosen.device)
    drawn = drawn[(drawn[:, 0] != drawn[:, 1]) & (drawn[:, 2] != drawn[:, 3])]
    z_MD, t_ME = views.text_ND[chosen], views.teacher[chosen]
    pieces = range(0, len(drawn), TILE)
    sign_S = torch.cat([t_ME[:0, 0], *(_closer(t_ME, drawn[at : at + TILE]).sign() for at in pieces)])

    def tile(at: slice) -> Tensor:
        return (sign_S[at].abs() * (loss.margin - sign_S[at] * _closer(z_MD, drawn[at])).clamp(min=0)).sum()

    return sum_in_tiles(tile, views.mine(len(drawn)), z_MD) / sign_S.abs().sum().clamp(min=1)


def _closer(x_MD: Tensor, rows_S4: Tensor) -> Tensor:
    """How much closer the first two of four texts are than the last two: [S]."""
    i, j, m, n = (x_MD[rows_S4[:, column]] for column in range(4))
    return (i * j).sum(dim=1) - (m * n).sum(dim=1)


class ScoreKL(LossConfig):
    """The teacher's distribution over each query's candidates: mean_i KL( softmax(T_i / t) || softmax(S_i / t) ), T and
    S the similarities of query i to its candidates (Hinton 2015, arXiv:1503.02531; for retrieval RocketQAv2,
    arXiv:2110.07367). Needs teacher vectors and rows with a positive.
    """

    kind: Literal["score_kl"] = "score_kl"
    temperature: float = Field(default=0.05, gt=0)
    candidates: Literal["row", "batch"] = "batch"
    """row: the positive and the row's own negatives; batch: every document of the global batch."""

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher_of_all", "pairs"})

    def asks(self) -> frozenset[Need]:
        """Over the row alone, negatives too: one candidate has no distribution."""
        return self.needs | (frozenset({"negatives"}) if self.candidates == "row" else frozenset())


def score_kl_part(loss: ScoreKL, views: Views) -> Tensor:
    """See `ScoreKL`."""

    def tile(at: slice) -> Tensor:
        student, teacher = _scores(views, at, loss.candidates)
        target = (teacher / loss.temperature).log_softmax(dim=1)
        found = (student / loss.temperature).log_softmax(dim=1)
        return torch.where(target > -torch.inf, target.exp() * (target - found), 0.0).sum()

    return sum_in_tiles(tile, views.rows, views.text_ND) / max(len(views.query_B), 1)


class MarginMSE(LossConfig):
    """How much closer the positive is than a negative, as the teacher has it: the mean over all rows' own negatives of
    ((s+ - s-) - (t+ - t-))^2 (Hofstaetter 2020, arXiv:2010.02666). Needs teacher vectors and rows with negatives.
    """

    kind: Literal["margin_mse"] = "margin_mse"

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher_of_all", "pairs", "negatives"})


def margin_mse_part(loss: MarginMSE, views: Views) -> Tensor:
    """See `MarginMSE`."""
    del loss

    def tile(at: slice) -> Tensor:
        student, teacher = _scores(views, at, "row")
        there = views.negative_BH[at] >= 0
        error = (student[:, :1] - student[:, 1:]) - (teacher[:, :1] - teacher[:, 1:])
        return torch.where(there, error, 0.0).square().sum()

    return sum_in_tiles(tile, views.rows, views.text_ND) / (views.negative_BH >= 0).sum().clamp(min=1)


def _scores(views: Views, at: slice, candidates: Literal["row", "batch"]) -> tuple[Tensor, Tensor]:
    """Similarities of some queries to their candidates by student and teacher: [b, C]; the positive is the first of the
    row's, and a place without a candidate holds -inf."""
    query, found = views.query_B[at], []
    if candidates == "batch":
        return tuple(x[query] @ x[views.document_K].T for x in (views.text_ND, views.teacher))  # type: ignore[return-value]
    place_bC = torch.cat([views.positive_B[at, None], views.negative_BH[at]], dim=1)
    text_bC = views.document_K[place_bC.clamp(min=0)]
    for x in (views.text_ND, views.teacher):
        scores = torch.einsum("bd,bcd->bc", x[query], x[text_bC])
        found.append(scores.masked_fill(place_bC < 0, -torch.inf))
    return found[0], found[1]

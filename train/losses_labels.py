"""Losses that learn from labels: pairs of query and positive, graded pairs. And the regulariser, which needs neither.

Shapes as in `train.views`.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from train.contrast import Guide, Usable, info_nce_rows, log_sums
from train.views import LossConfig, Need, Views, sum_in_tiles


class InfoNCE(LossConfig):
    """Each query picks its positive among all documents of the global batch (van den Oord 2018, arXiv:1807.03748).

    mean_i -log( exp(s_i+ / t) / sum_k w_ik exp(s_ik / t) ) over the usable documents k: every distinct document of the
    batch, hard negatives and those of other ranks included, but for those known to be no negatives of query i (another
    of its positives, the query's own text, a document of its group). s is the cosine similarity. Needs rows with a
    positive.
    """

    kind: Literal["info_nce"] = "info_nce"
    temperature: float = Field(default=0.05, gt=0)
    """As in SimCSE (Gao et al. 2021, arXiv:2104.08821). 0.02, usual where nothing but contrast is trained, was worse
    beside match (`configs/ablations/defaults.yaml`)."""
    margin: float | None = Field(default=None, ge=0)
    """Leaves out documents with s(q, d) > s(q, d+) + margin as probable false negatives (Qwen3-Embedding,
    arXiv:2506.05176, takes 0.1); None: none."""
    teacher_margin: float | None = None
    """Leaves out documents that the *teacher* finds closer than the positive by more than this (GISTEmbed,
    arXiv:2402.16829, takes 0); needs teacher vectors. None: the teacher is not asked."""
    hardness: float = Field(default=0.0, ge=0)
    """a in w = exp(a * stopgrad s(q, d-)) on each negative (EmbeddingGemma, arXiv:2509.20354, takes 5, on the row's own
    hard negative); 0: no weights."""
    same_tower: bool = False
    """Adds s(q_i, q_j) and s(d_i+, d_k) to the denominator, as Qwen3-Embedding does; the evidence is contradictory."""

    needs: ClassVar[frozenset[Need]] = frozenset({"pairs"})

    def asks(self) -> frozenset[Need]:
        """Pairs, and the teacher of all texts where it is to be asked."""
        return self.needs | (frozenset({"teacher_of_all"}) if self.teacher_margin is not None else frozenset())


def info_nce_part(loss: InfoNCE, views: Views) -> Tensor:
    """See `InfoNCE`. A batch without positives contributes nothing, with a gradient of zero."""
    mine, total = views.rows, max(len(views.query_B), 1)
    excluded_X2 = views.excluded_X2[(views.excluded_X2[:, 0] >= mine.start) & (views.excluded_X2[:, 0] < mine.stop)]
    excluded_X2 = excluded_X2 - torch.tensor([mine.start, 0], device=excluded_X2.device)
    positive_b, group_b = views.positive_B[mine], views.query_group_B[mine]
    query_bD, document_KD = views.text_ND[views.query_B[mine]], views.text_ND[views.document_K]
    guide = None
    if loss.teacher_margin is not None:
        row_bE, candidate_KE = views.teacher[views.query_B[mine]], views.teacher[views.document_K]
        guide = Guide(row_bE, candidate_KE, (row_bE * candidate_KE[positive_b]).sum(dim=1) + loss.teacher_margin)
    rows_b = info_nce_rows(
        query_bD,
        document_KD,
        positive_b,
        loss.temperature,
        excluded_X2,
        group_b,
        views.document_group_K,
        margin=loss.margin,
        guide=guide,
        hardness=loss.hardness,
    )
    if loss.same_tower:
        rows_b = _with_same_tower(loss, views, rows_b, query_bD, document_KD, excluded_X2, guide)
    return rows_b.sum() / total


def _with_same_tower(
    loss: InfoNCE,
    views: Views,
    rows_b: Tensor,
    query_bD: Tensor,
    document_KD: Tensor,
    excluded_X2: Tensor,
    guide: Guide | None,
) -> Tensor:
    """Queries against queries and positives against documents join the denominator of `rows_b`.

    Left out, beside what InfoNCE leaves out: the text itself, a query with the same positive, and a query whose
    positive is excluded for this one. Both margins are counted from the query and its positive here too, as GISTEmbed
    and Qwen3-Embedding do.
    """
    mine = views.rows
    positive_b, group_b = views.positive_B[mine], views.query_group_B[mine]
    best_b = (query_bD * document_KD[positive_b]).sum(dim=1)
    limit_b = None if loss.margin is None else best_b.detach() + loss.margin
    pair, other = (excluded_X2[:, 1, None] == views.positive_B[None]).nonzero().T
    also_X2 = torch.stack([excluded_X2[pair, 0], other], dim=1)
    queries = Usable(
        also_X2,
        (
            (views.query_B[mine], views.query_B),
            (positive_b, views.positive_B),
            (group_b, views.query_group_B),
        ),
        limit_b=limit_b,
        guide=guide and Guide(guide.row_bE, views.teacher[views.query_B], guide.limit_b),
    )
    number_K = torch.arange(len(document_KD), device=document_KD.device)
    documents = Usable(
        excluded_X2,
        ((positive_b, number_K), (group_b, views.document_group_K)),
        limit_b=limit_b,
        guide=guide and Guide(guide.candidate_KE[positive_b], guide.candidate_KE, guide.limit_b),
    )
    denominators = [
        rows_b + best_b / loss.temperature,
        log_sums(query_bD, views.text_ND[views.query_B], loss.temperature, queries, loss.hardness),
        log_sums(document_KD[positive_b], document_KD, loss.temperature, documents, loss.hardness),
    ]
    return torch.stack(denominators).logsumexp(dim=0) - best_b / loss.temperature


class CoSENT(LossConfig):
    """Graded pairs in their order: log(1 + sum exp(scale * (s_b - s_a))) over all pairs of pairs with grade_a > grade_b
    (Su 2022, kexue.fm/archives/8847; `CoSENTLoss` of sentence-transformers, whose scale is 20 too).

    Over the graded pairs of the global batch; s is the cosine similarity. Needs rows with a score.
    """

    kind: Literal["cosent"] = "cosent"
    scale: float = Field(default=20.0, gt=0)

    needs: ClassVar[frozenset[Need]] = frozenset({"graded"})


def cosent_part(loss: CoSENT, views: Views) -> Tensor:
    """See `CoSENT`. The logarithm is over all pairs, so every rank computes it and answers for its share of it."""
    left, right = views.graded_G2[:, 0], views.graded_G2[:, 1]
    cosine_G = (views.text_ND[left] * views.text_ND[right]).sum(dim=1)
    number_G = torch.arange(len(cosine_G), device=cosine_G.device)
    # log sum_b exp(scale s_b) over the pairs b graded below a, and then over a: -scale s_a is the same for all b
    scores = _Below.apply(cosine_G * loss.scale, views.score_G) if len(number_G) else cosine_G  # type: ignore[no-untyped-call]
    below_G = scores - cosine_G * loss.scale
    zero = views.text_ND[:0].sum()[None]
    return torch.cat([zero, below_G]).logsumexp(dim=0) / views.ranks


class _Below(torch.autograd.Function):
    """log sum over j with grade_j < grade_i of exp(x_j), for every i: [G], -inf where there is none; in G log G."""

    @staticmethod
    def forward(ctx: Any, x_G: Tensor, grade_G: Tensor) -> Tensor:
        order = grade_G.argsort()
        up_to = x_G[order].logcumsumexp(dim=0)
        first_G = torch.searchsorted(grade_G[order].contiguous(), grade_G.contiguous())
        padded = torch.cat([x_G.new_full((1,), -torch.inf), up_to])
        out_G = padded[first_G]
        ctx.save_for_backward(x_G, grade_G, out_G)
        return out_G

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x_G, grade_G, out_G = ctx.saved_tensors
        # d out_i / d x_j = exp(x_j - out_i) where grade_j < grade_i
        out_G = out_G.nan_to_num(neginf=torch.inf)
        grad_G = torch.zeros_like(x_G)
        for start in range(0, len(x_G), 512):
            at = slice(start, start + 512)
            apart = grade_G[None, at] >= grade_G[:, None]
            # Masked before exp, which overflows where a pair that has no part in it is far above.
            share = (x_G[None, at] - out_G[:, None]).masked_fill(apart, -torch.inf).exp()
            grad_G[at] = (grads[0][:, None] * share).sum(dim=0)
        return grad_G, None


class Spread(LossConfig):
    """Spreads vectors over the sphere: mean_{i != j} (q_i . q_j)^2 + the same over documents (global orthogonal
    regularisation: Zhang 2017, arXiv:1708.06320; its second moment alone, as EmbeddingGemma and jina-embeddings-v5 use
    it). Takes every row, needs no teacher.
    """

    kind: Literal["spread"] = "spread"


def spread_part(loss: Spread, views: Views) -> Tensor:
    """See `Spread`."""
    del loss
    sides = (views.which(["query"]), views.which(["positive", "negative"]))
    return torch.stack([_second_moment(views.text_ND[side], views) for side in sides]).sum()


def _second_moment(x_MD: Tensor, views: Views) -> Tensor:
    def tile(at: slice) -> Tensor:
        return (x_MD[at] @ x_MD.T).square().sum() - x_MD[at].square().sum(dim=1).square().sum()

    total = len(x_MD)
    return sum_in_tiles(tile, views.mine(total), x_MD) / max(total * (total - 1), 1)

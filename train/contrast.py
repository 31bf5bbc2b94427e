"""Sums over all candidates of a contrastive loss without the b x K score matrix: tiles of scores, an online
log-sum-exp, a backward that repeats the tiles.

Memory grows as B * D instead of B * K (the idea of Inf-CL, arXiv:2410.17243, on one device's rows). All arithmetic is
fp32: in bf16 similarities tie.

Shapes: b rows of this rank, K candidates, D width, E teacher width, X excluded pairs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TILE = 1_024
"""Rows and columns of a tile. Beside embeddings and gradients a loss holds a few tiles, however large the batch."""


@dataclass(frozen=True)
class Guide:
    """A teacher's view of rows and candidates: a candidate that it finds closer than `limit_b` is left out."""

    row_bE: Tensor
    candidate_KE: Tensor
    limit_b: Tensor


@dataclass(frozen=True)
class Usable:
    """Which candidates count for which row, said without a b x K matrix."""

    excluded_X2: Tensor
    """(row, candidate) pairs that are left out."""
    same: tuple[tuple[Tensor, Tensor], ...] = ()
    """Codes of rows [b] and of candidates [K]: a pair is left out where they are equal and not negative."""
    positive_b: Tensor | None = None
    """The candidate that always counts."""
    limit_b: Tensor | None = None
    """Similarities above it are left out: candidates that are probably no negatives."""
    guide: Guide | None = None


def log_sums(row_bD: Tensor, candidate_KD: Tensor, temperature: float, usable: Usable, hardness: float = 0.0) -> Tensor:
    """log sum_k w exp(s_ik / t) over a row's usable candidates: [b]; -inf for a row that has none.

    w = exp(hardness * stopgrad s_ik), and 1 for the positive.
    """
    return _sums_and_own(row_bD, candidate_KD, temperature, usable, hardness)[0]


def info_nce_rows(
    query_bD: Tensor,
    document_KD: Tensor,
    positive_b: Tensor,
    temperature: float,
    excluded_X2: Tensor,
    query_group_b: Tensor,
    document_group_K: Tensor,
    *,
    margin: float | None = None,
    guide: Guide | None = None,
    hardness: float = 0.0,
) -> Tensor:
    """-log softmax of each query's positive among its usable documents: [b].

    `excluded_X2` holds (query, document) pairs that are left out of a query's documents; so is every document of the
    query's own group, every one closer than its positive by more than `margin`, and what the `guide` objects to. The
    positive itself always counts.
    """
    limit_b = None if margin is None else _own(query_bD.detach(), document_KD.detach(), positive_b) + margin
    usable = Usable(excluded_X2, ((query_group_b, document_group_K),), positive_b, limit_b, guide)
    log_sum_b, best_b = _sums_and_own(query_bD, document_KD, temperature, usable, hardness)
    return log_sum_b - best_b / temperature


def _sums_and_own(
    row_bD: Tensor, candidate_KD: Tensor, temperature: float, usable: Usable, hardness: float
) -> tuple[Tensor, Tensor]:
    """`log_sums`, and each row's similarity to its own positive (0 where there is none): one function, so that its
    backward pass fills one gradient and autograd need not add two of that size."""
    sums: tuple[Tensor, Tensor] = _LogSum.apply(  # type: ignore[no-untyped-call]
        row_bD, candidate_KD, temperature, usable, hardness
    )
    return sums


def _own(row_bD: Tensor, candidate_KD: Tensor, positive_b: Tensor | None) -> Tensor:
    """Each row's similarity to its positive, tile by tile: [b]; 0 where there are none."""
    own_b = torch.zeros(len(row_bD), device=row_bD.device)
    for row in range(0, len(row_bD) if positive_b is not None else 0, TILE):
        at = slice(row, row + TILE)
        assert positive_b is not None
        own_b[at] = (row_bD[at].float() * candidate_KD[positive_b[at]].float()).sum(dim=1)
    return own_b


class _LogSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, row_bD: Tensor, candidate_KD: Tensor, temperature: float, usable: Usable, hardness: float
    ) -> tuple[Tensor, Tensor]:
        rows, candidates = row_bD.float(), candidate_KD.float()
        log_sum_b, memory = rows.new_full((len(rows),), -torch.inf), _tile(rows, candidates)
        for row in range(0, len(rows), TILE):
            at = slice(row, row + TILE)
            for column in range(0, len(candidates), TILE):
                scores = _scores(rows, candidates, temperature, row, column, usable, hardness, memory)
                # logsumexp in place; its own would make two more tiles
                highest = scores.amax(dim=1).nan_to_num_(neginf=0.0)
                sums = scores.sub_(highest[:, None]).exp_().sum(dim=1).log_().add_(highest)
                log_sum_b[at] = torch.logaddexp(log_sum_b[at], sums)
        ctx.save_for_backward(row_bD, candidate_KD, log_sum_b)
        ctx.temperature, ctx.usable, ctx.hardness = temperature, usable, hardness
        return log_sum_b, _own(row_bD, candidate_KD, usable.positive_b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        row_bD, candidate_KD, log_sum_b = ctx.saved_tensors
        rows, candidates = row_bD.float(), candidate_KD.float()
        scale_b1, own_b1 = (grads[0] / ctx.temperature).unsqueeze(1), grads[1].unsqueeze(1)
        positive_b = ctx.usable.positive_b
        log_sum_b = log_sum_b.nan_to_num(neginf=0.0)  # a row without a candidate: all of its scores are -inf
        grad_row, grad_candidate = torch.zeros_like(rows), torch.zeros_like(candidates)
        memory = _tile(rows, candidates)
        for row in range(0, len(rows), TILE):
            at = slice(row, row + TILE)
            for column in range(0, len(candidates), TILE):
                scores = _scores(rows, candidates, ctx.temperature, row, column, ctx.usable, ctx.hardness, memory)
                share = scores.sub_(log_sum_b[at, None]).exp_().mul_(scale_b1[at])
                there = slice(column, column + TILE)
                grad_row[at].addmm_(share, candidates[there])
                grad_candidate[there].addmm_(share.T, rows[at])
            if positive_b is not None:
                grad_row[at].addcmul_(candidates[positive_b[at]], own_b1[at])
                grad_candidate.index_add_(0, positive_b[at], rows[at] * own_b1[at])
        return grad_row.to(row_bD.dtype), grad_candidate.to(candidate_KD.dtype), None, None, None


def _tile(rows: Tensor, candidates: Tensor) -> Tensor:
    """Memory for one tile, which all take in turn: made anew for each, they would lie scattered over the heap."""
    return rows.new_empty(min(TILE, len(rows)) * min(TILE, len(candidates)))


def _scores(
    rows: Tensor,
    candidates: Tensor,
    temperature: float,
    row: int,
    column: int,
    usable: Usable,
    hardness: float,
    memory: Tensor,
) -> Tensor:
    """One tile of scaled scores in `memory`, -inf where a candidate does not count for a row."""
    here, there = slice(row, row + TILE), slice(column, column + TILE)
    shape = len(rows[here]), len(candidates[there])
    scores = torch.mm(rows[here], candidates[there].T, out=memory[: shape[0] * shape[1]].view(shape))
    left_out = torch.zeros_like(scores, dtype=torch.bool)
    for code_b, code_K in usable.same:
        left_out |= (code_b[here, None] >= 0) & (code_b[here, None] == code_K[None, there])
    if len(usable.excluded_X2):
        x, k = usable.excluded_X2[:, 0] - row, usable.excluded_X2[:, 1] - column
        inside = (x >= 0) & (x < scores.shape[0]) & (k >= 0) & (k < scores.shape[1])
        left_out[x[inside], k[inside]] = True
    if usable.limit_b is not None:
        left_out |= scores > usable.limit_b[here, None]
    if (guide := usable.guide) is not None:
        left_out |= guide.row_bE[here] @ guide.candidate_KE[there].T > guide.limit_b[here, None]
    factor = scores.new_full((), 1 / temperature + hardness).expand_as(scores)
    if usable.positive_b is not None:
        at = usable.positive_b[here] - column
        inside = (at >= 0) & (at < scores.shape[1])
        i, k = inside.nonzero().squeeze(1), at[inside]
        left_out[i, k] = False
        if hardness:
            factor = factor.clone()
            factor[i, k] = 1 / temperature
    return scores.mul_(factor).masked_fill_(left_out, -torch.inf)

"""InfoNCE without the B x K score matrix: tiles of scores, an online log-sum-exp, a backward that repeats the tiles.

Memory grows as B * D instead of B * K (the idea of Inf-CL, arXiv:2410.17243, on one device's rows). All arithmetic is
fp32: in bf16 similarities tie.

Shapes: b queries of this rank, K documents, D width, X excluded pairs.
"""

from typing import Any

import torch
from torch import Tensor

TILE = 2_048


def info_nce_rows(
    query_bD: Tensor,
    document_KD: Tensor,
    positive_b: Tensor,
    temperature: float,
    excluded_X2: Tensor,
    query_group_b: Tensor,
    document_group_K: Tensor,
) -> Tensor:
    """-log softmax of each query's positive among its usable documents: [b].

    `excluded_X2` holds (query, document) pairs, sorted by query, that are left out of a query's documents; so is every
    document of the query's own group. The positive itself always counts.
    """
    rows: Tensor = _InfoNCE.apply(  # type: ignore[no-untyped-call]
        query_bD, document_KD, positive_b, temperature, excluded_X2, query_group_b, document_group_K
    )
    return rows


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_bD: Tensor,
        document_KD: Tensor,
        positive_b: Tensor,
        temperature: float,
        excluded_X2: Tensor,
        query_group_b: Tensor,
        document_group_K: Tensor,
    ) -> Tensor:
        queries, documents = query_bD.float(), document_KD.float()
        tables = (positive_b, excluded_X2, query_group_b, document_group_K)
        log_sum_b = queries.new_full((len(queries),), -torch.inf)
        for row in range(0, len(queries), TILE):
            at = slice(row, row + TILE)
            for column in range(0, len(documents), TILE):
                scores = _scores(queries, documents, temperature, row, column, tables)
                log_sum_b[at] = torch.logaddexp(log_sum_b[at], scores.logsumexp(dim=1))
        best_b = (queries * documents[positive_b]).sum(dim=1) / temperature
        ctx.save_for_backward(query_bD, document_KD, log_sum_b, *tables)
        ctx.temperature = temperature
        return log_sum_b - best_b

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query_bD, document_KD, log_sum_b, *tables = ctx.saved_tensors
        queries, documents, positive_b = query_bD.float(), document_KD.float(), tables[0]
        scale_b1 = (grads[0] / ctx.temperature).unsqueeze(1)
        # d(-s+)/dq = -d+, d(-s+)/dd+ = -q; then softmax-weighted documents and queries, tile by tile
        grad_query = -documents[positive_b] * scale_b1
        grad_document = torch.zeros_like(documents).index_add_(0, positive_b, -queries * scale_b1)
        for row in range(0, len(queries), TILE):
            at = slice(row, row + TILE)
            for column in range(0, len(documents), TILE):
                scores = _scores(queries, documents, ctx.temperature, row, column, tuple(tables))
                share = scores.sub_(log_sum_b[at, None]).exp_().mul_(scale_b1[at])
                there = slice(column, column + TILE)
                grad_query[at] += share @ documents[there]
                grad_document[there] += share.T @ queries[at]
        return grad_query.to(query_bD.dtype), grad_document.to(document_KD.dtype), None, None, None, None, None


def _scores(
    queries: Tensor, documents: Tensor, temperature: float, row: int, column: int, tables: tuple[Tensor, ...]
) -> Tensor:
    """One tile of scaled scores, -inf where a document is no candidate of a query."""
    positive_b, excluded_X2, query_group_b, document_group_K = tables
    here, there = slice(row, row + TILE), slice(column, column + TILE)
    scores = (queries[here] @ documents[there].T).div_(temperature)
    group_b = query_group_b[here, None]
    left_out = (group_b >= 0) & (group_b == document_group_K[None, there])
    if len(excluded_X2):
        x, k = excluded_X2[:, 0] - row, excluded_X2[:, 1] - column
        inside = (x >= 0) & (x < scores.shape[0]) & (k >= 0) & (k < scores.shape[1])
        left_out[x[inside], k[inside]] = True
    positive = positive_b[here] - column
    inside = (positive >= 0) & (positive < scores.shape[1])
    left_out[inside.nonzero().squeeze(1), positive[inside]] = False
    return scores.masked_fill_(left_out, -torch.inf)

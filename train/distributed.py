"""The only place with collectives.

Shapes: W ranks, n texts on each rank, D width, B queries.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

# torch 2.13 renamed these two; the old names warn at every call.
_all_gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor
_reduce_scatter = dist.reduce_scatter_single if hasattr(dist, "reduce_scatter_single") else dist.reduce_scatter_tensor


def world_size() -> int:
    """W, the number of ranks; 1 where nothing was launched."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, 0 where nothing was launched."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather_rows(x_nD: Tensor) -> Tensor:
    """Rows of all ranks, rank after rank, with a gradient: [n, D] -> [W * n, D].

    The gradient of a rank's rows is the sum over the ranks' losses (`accelerator.gather` has none at all: cross-rank
    negatives would silently train on nothing).
    """
    if world_size() == 1:
        return x_nD
    rows: Tensor = _GatherRows.apply(x_nD)  # type: ignore[no-untyped-call]
    return rows


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_nD: Tensor) -> Tensor:
        ctx.rows = x_nD.shape[0]
        out = x_nD.new_empty(world_size() * x_nD.shape[0], *x_nD.shape[1:])
        _all_gather(out, x_nD.contiguous())
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        out = grad.new_empty(ctx.rows, *grad.shape[1:])
        _reduce_scatter(out, grad)
        return out


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of a tensor over the ranks; no gradient."""
    x = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def broadcast_object(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def whole(x: Tensor) -> Tensor:
    """A sharded tensor gathered, any other as it is. Every rank must ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def sharded_like(x: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor of a parameter's shape, sharded as the parameter is; anything else as it is."""
    if not isinstance(parameter, DTensor) or x.shape != parameter.shape:
        return x
    return distribute_tensor(x.to(parameter.device), parameter.device_mesh, parameter.placements)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank; every rank gets the same answer."""
    if world_size() == 1:
        return flag
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)).item())


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        dist.barrier()

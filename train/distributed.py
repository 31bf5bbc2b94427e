"""The only place with collectives.

Shapes: W ranks, n texts on each rank, D width.
"""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

# torch 2.13 renamed these two; the old names warn at every call.
_all_gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor
_reduce_scatter = dist.reduce_scatter_single if hasattr(dist, "reduce_scatter_single") else dist.reduce_scatter_tensor


T = TypeVar("T")
PATIENCE = 0.5
"""Longest time in seconds between two looks at whether rank 0 is done with what it does alone."""
_turns = itertools.count()


class MainFailed(Exception):
    """Rank 0 failed in what it does alone; its own message says how."""


WAIT = timedelta(hours=6)
"""For another rank in a collective: one may have a whole corpus to encode for a task that it scores. A rank that died
is noticed by its launcher."""


def join() -> None:
    """Meet the other ranks, where a launcher started several (torchrun, accelerate launch, srun).

    Raises:
        ValueError: there are fewer GPUs on this machine than ranks, the port to meet at is taken, or the launcher does
            not say which of the machine's ranks this is.
    """
    ranks, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if ranks == 1 or dist.is_initialized():
        return
    gpus = torch.cuda.device_count()
    if local >= gpus > 0:
        shown = "; or let every task see all GPUs of its node (no --gpus-per-task, no --gpu-bind)" if gpus == 1 else ""
        raise ValueError(
            f"rank {os.environ['RANK']}: no GPU is left on this machine, it has {gpus}; start {gpus} ranks{shown}"
        )
    try:
        PartialState(cpu=gpus == 0, timeout=WAIT)
    except NotImplementedError as error:
        if "NCCL_P2P_DISABLE" not in str(error):
            raise
        raise ValueError(str(error)) from None  # GPUs that cannot talk to each other directly; says what to set
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        port = os.environ.get("MASTER_PORT")
        raise ValueError(f"port {port} is in use on this machine: choose another (--port, or MASTER_PORT)") from None
    if not dist.is_initialized():  # Accelerate takes a process without LOCAL_RANK for a single one
        raise ValueError(f"WORLD_SIZE is {ranks} and LOCAL_RANK is not set; start the ranks with torchrun or --on")


def launched_fsdp() -> int | None:
    """The version of FSDP that `accelerate launch` was asked for, as Accelerate reads it; None: of none."""
    used = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return int(os.environ.get("FSDP_VERSION", "1")) if used else None


def leave() -> None:
    """Part from the other ranks, when all are done: a rank that only ends would leave them a broken connection."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def from_main(work: Callable[[], T]) -> T:
    """What `work` gives on rank 0, as JSON on the others, which wait for it however long it takes.

    They look into the store where the ranks met, not into a collective: that would give up after some minutes.

    Raises:
        MainFailed: rank 0 raised an error, or is gone; raised on the others.
    """
    if world_size() == 1:
        return work()
    store, key = dist.distributed_c10d._get_default_store(), f"eyas/{next(_turns)}"
    if rank() == 0:
        try:
            value = work()
        except BaseException:
            store.set(key, "failed")
            raise
        store.set(key, json.dumps([value]))
        return value
    pause = 0.01
    try:
        while not store.check([key]):
            time.sleep(pause)
            pause = min(2 * pause, PATIENCE)
        said = store.get(key).decode()
    except dist.DistError as error:
        raise MainFailed("rank 0 is gone") from error
    if said == "failed":
        raise MainFailed("rank 0 failed")
    received: T = json.loads(said)[0]
    return received


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


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Every rank's tensors become rank 0's, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value in the order of ranks, on every rank. Every rank must ask."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def whole(x: Tensor) -> Tensor:
    """A sharded tensor gathered, any other as it is. Every rank must ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def whole_on_main(x: Tensor) -> Tensor:
    """A sharded tensor gathered for rank 0 to write, on its CPU, and nothing of it on the others: so no GPU holds more
    than one whole tensor at a time. Any other tensor as it is. Every rank must ask."""
    if not isinstance(x, DTensor):
        return x
    gathered = x.full_tensor()
    return gathered.cpu() if rank() == 0 else gathered.new_empty(0)


def sharded_like(x: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor of a parameter's shape, sharded as the parameter is; anything else as it is."""
    if not isinstance(parameter, DTensor) or x.shape != parameter.shape:
        return x
    return distribute_tensor(x.to(parameter.device), parameter.device_mesh, parameter.placements)


def sharded_precision(half: bool) -> Any:
    """In what FSDP2 computes: layers in bf16 where `half`; gradients are added up over the ranks, and vectors handed
    on, in fp32. Accelerate's own policy has bf16 there, too coarse for similarities. A rank's own chunks are added up
    in the type of the layers before that, where DDP has fp32: in bf16 the two do not agree to the last digit."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    weights = torch.bfloat16 if half else None
    return MixedPrecisionPolicy(param_dtype=weights, reduce_dtype=torch.float32, output_dtype=torch.float32)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank; every rank gets the same answer."""
    if world_size() == 1:
        return flag
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)).item())

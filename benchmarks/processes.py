"""Ranks as real processes: one thread each, gloo over the loopback, a failure in one ends all."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import multiprocessing
from torch.multiprocessing.spawn import start_processes

from train.distributed import leave

Work = Callable[..., Any]
PRELOAD = ["train.loop", "transformers.models.bert.modeling_bert", "transformers.models.qwen3.modeling_qwen3"]


def run_ranks(world: int, work: Work, *arguments: Any, seconds: float = 300.0) -> list[Any]:
    """Call `work(*arguments)` in `world` processes at once, as a launcher would start them, and return what each gave.

    The environment says RANK, WORLD_SIZE and where to meet; nothing else is set up, so that `work` shows what
    Accelerate makes of it. Results are tensors, numbers, text and containers of those.

    Raises:
        torch.multiprocessing.ProcessRaisedException, ProcessExitedException: one failed; the others were ended.
        TimeoutError: not all were done within `seconds`; all were ended.
    """
    return _run(world, "ranks", work, arguments, seconds)


def run_alone(count: int, work: Work, *arguments: Any, seconds: float = 300.0) -> list[Any]:
    """Like `run_ranks`, but the processes know nothing of each other: each is a run of its own."""
    return _run(count, "alone", work, arguments, seconds)


def start(work: Work, *arguments: Any) -> BaseProcess:
    """Start `work(*arguments)` in a process of its own, one thread, for the caller to watch, signal and join."""
    process: BaseProcess = _server().Process(target=_single_thread, args=(work, arguments))
    process.start()
    return process


def _server() -> Any:
    """Torch is imported once, in a server without threads, and every process is forked from it: a second, not ten."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _single_thread(work: Work, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    work(*arguments)


def _run(count: int, kind: str, work: Work, arguments: tuple[Any, ...], seconds: float) -> list[Any]:
    _server()
    with TemporaryDirectory() as folder, _free_port() as port:
        context: Any = start_processes(  # type: ignore[no-untyped-call]
            _entry,
            (count, kind, port, folder, work, arguments),
            nprocs=count,
            join=False,
            start_method="forkserver",
        )
        until = time.monotonic() + seconds
        while not context.join(timeout=max(0.1, until - time.monotonic())):
            if time.monotonic() > until:
                for process in context.processes:
                    process.kill()
                raise TimeoutError(f"{work.__name__} on {count} processes: not done after {seconds:.0f} s")
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(count)]


def _entry(rank: int, count: int, kind: str, port: int, folder: str, work: Work, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if kind == "ranks":
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.save(work(*arguments), Path(folder, f"{rank}.pt"))
    leave()


@contextmanager
def _free_port() -> Iterator[int]:
    """A port nobody listens on. The socket stays bound, without listening, so that nobody else is given it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]

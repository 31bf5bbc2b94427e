"""Processes on this machine: a child for one rank, torchrun for several, and again from the newest checkpoint when one
of them dies."""

import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from types import FrameType
from typing import Never

from rich.console import Console

from launch.engine import LAUNCH, TASK_FAILED, Engine, Job, assignments, check_port, python_words
from train.signals import stopping

REFUSED, STOPPED, INTERRUPTED = 2, os.EX_TEMPFAIL, 130
"""Exit codes after which a job does not begin again, beside `TASK_FAILED`: the user mends it, or starts it again."""
GRACE = "600"
"""Seconds that ranks have for their checkpoint when the whole job is asked to stop."""
ALONE = {"RANK": "0", "WORLD_SIZE": "1"}
"""Said to a process that is alone, whatever the shell it was started from is a part of (a task of Slurm, say)."""

console = Console(stderr=True)


def torchrun_words(job: Job, engine: Engine) -> list[str]:
    """The arguments of torchrun: one machine, one process per rank, no restarts of its own (it would also begin again
    what was refused or asked to stop)."""
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]  # any free port
    if engine.port is not None:
        meet = ["--master-addr", "127.0.0.1", "--master-port", str(engine.port)]
    size = ["--nnodes", "1", "--nproc-per-node", str(engine.ranks)]
    signals = ",".join(number.name for number in stopping())
    return [*meet, *size, "--max-restarts", "0", "--signals-to-handle", signals, "-m", "launch", *job.words()]


def run(job: Job, engine: Engine) -> int:
    """Run a job on this machine.

    Raises:
        ValueError: it has fewer GPUs, the port is in use, or several machines are asked for.
    """
    check(engine)
    environment = {**engine.environment(), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": GRACE}
    # torchrun sets it to 1 where it is not set, which leaves most of a CPU machine idle.
    environment["OMP_NUM_THREADS"] = threads(engine.ranks)
    alone = engine.ranks == 1 and engine.port is None and "ACCELERATE_USE_FSDP" not in environment
    if alone:  # none to meet: torchrun would import torch for seconds before it starts one process
        environment |= ALONE
    words = python_words(job.words()) if alone else ["torchrun", *torchrun_words(job, engine)]
    if engine.dry_run:
        sys.stdout.write(f"{assignments(environment)} {shlex.join(words)}\n")
        return 0
    os.environ.update(environment | {LAUNCH: uuid.uuid4().hex})
    for attempt in range(engine.restarts + 1):
        code, said = _child(words) if alone else _ranks(words[1:])
        if code in (0, REFUSED, TASK_FAILED, STOPPED, INTERRUPTED):
            return code
        console.print(f"{time.strftime('%H:%M:%S')} {said}", style="yellow", soft_wrap=True)
        if attempt < engine.restarts:
            left = f"restart {attempt + 1} of {engine.restarts}"
            console.print(f"starting again from the newest checkpoint: {left}", style="yellow", soft_wrap=True)
    console.print("[bold red]error:[/] no restart is left (--restarts); finished steps and checkpoints are kept")
    return 1


def threads(processes: int) -> str:
    """OMP_NUM_THREADS for each of so many processes on this machine: as it is set, else an equal share of the cores."""
    return os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))


def check(engine: Engine) -> None:
    """Find what this machine cannot do before anything is started.

    Raises:
        ValueError: it has fewer GPUs, the port is in use, or an option means nothing here.
    """
    if engine.nodes > 1:
        raise ValueError(f"--nodes {engine.nodes}: --on local is this machine alone; several need --on slurm")
    for name in ("time", "partition", "sbatch"):
        if getattr(engine, name):
            raise ValueError(f"--{name} is for --on slurm")
    if engine.port is not None:
        check_port(engine.port)
    if engine.gpus:
        _check_gpus(engine.gpus)


def _check_gpus(wanted: int) -> None:
    import torch

    found = torch.cuda.device_count()
    if wanted > found:
        use = f"--gpus {found}" if found else "--procs N for processes on CPUs"
        raise ValueError(f"--gpus {wanted}: this machine has {found} GPUs; use {use}")


class _Asked(Exception):
    """A signal asked the job to stop."""


def _child(words: list[str]) -> tuple[int, str]:
    """Run the only rank once: its exit code, and what happened where it failed."""
    numbers = stopping()

    def ask(number: int, _: FrameType | None) -> Never:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise _Asked(number)

    # A session of its own: Ctrl-C comes to it once, from here.
    child = subprocess.Popen(words, start_new_session=True)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        code = child.wait()
    except _Asked as asked:
        (number,) = asked.args
        child.send_signal(number)
        try:
            child.wait(float(GRACE))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        return INTERRUPTED if number == signal.SIGINT else STOPPED, ""
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code, _failure(0, code)


def _failure(rank: int, code: int) -> str:
    how = f"was killed ({signal.Signals(-code).name})" if code < 0 else "failed"
    return f"rank {rank} {how}, see logs/rank-{rank}.log in the run folder"


def _ranks(words: list[str]) -> tuple[int, str]:
    """Run several ranks once, under torchrun: the exit code of the job, and what happened where it failed."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, get_args_parser

    config, command, arguments = config_from_args(get_args_parser().parse_args(words))
    try:
        elastic_launch(config, command)(*arguments)
    except SignalException as stop:
        return (INTERRUPTED if stop.sigval == signal.SIGINT else STOPPED), ""
    except ChildFailedError as failed:
        # The others are ended then, with exit codes that say nothing.
        rank, failure = failed.get_first_failure()
        return failure.exitcode, f"{_failure(rank, failure.exitcode)}; the others were ended"
    return 0, ""

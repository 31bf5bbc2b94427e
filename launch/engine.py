"""Where a command runs: its engine, its size, its parallelism. What the engines share; each is a file of its own.

Nothing heavy is imported here: a dry run and a refused command answer at once.
"""

import importlib
import os
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedding.config import CONFIGS, find_config, read_yaml, suggest

DISTRIBUTED = ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP")
"""Accelerate's names of what a training can be."""
ENGINES = {"local": "launch.local", "slurm": "launch.slurm", "ray": "launch.on_ray"}
"""A module with `run(job, engine) -> exit code` for each name of --on."""
LAUNCH = "EYAS_LAUNCH"
"""The variable that a launcher gives all processes of one command, however often it starts them again."""
TASK_FAILED = 3
"""Exit code of a job that did all it should, but a task of its evaluation failed."""


@dataclass(frozen=True)
class Engine:
    """The options that say where a command runs; None is what was not given."""

    on: str | None = None
    gpus: int | None = None
    """Of each node."""
    procs: int | None = None
    """Processes of each node on its CPUs."""
    nodes: int = 1
    time: str | None = None
    partition: str | None = None
    port: int | None = None
    restarts: int = 2
    accelerate: str | None = None
    sbatch: Sequence[str] = ()
    dry_run: bool = False

    @property
    def ranks(self) -> int:
        """Processes of each node."""
        return self.gpus or self.procs or 1

    def environment(self) -> dict[str, str]:
        """What the chosen file of `configs/accelerate` says, as Accelerate reads it in every process.

        Raises:
            ValueError: there is no such file, or it sets something else than parallelism and precision.
        """
        name = self.accelerate or (
            "cpu" if not self.gpus else "multi_node" if self.nodes > 1 else "ddp" if self.gpus > 1 else "one_gpu"
        )
        found = {**accelerate_environment(name), "TOKENIZERS_PARALLELISM": "false"}
        return found if self.gpus else {**found, "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Job:
    """An eyas command that is to run somewhere."""

    command: str
    config: str
    overrides: Sequence[str] = ()
    flags: Sequence[str] = field(default=())

    def words(self) -> list[str]:
        """The command line after `eyas`."""
        return [self.command, self.config, *self.overrides, *self.flags]


def launch(job: Job, engine: Engine) -> int:
    """Run a job on the engine it asks for; returns the exit code.

    Raises:
        ValueError: there is no such engine, or it cannot do what is asked; nothing was started or submitted.
    """
    code: int = engine_module(engine).run(job, engine)
    return code


def engine_module(engine: Engine) -> Any:
    """The module that runs jobs on the engine asked for.

    Raises:
        ValueError: there is no such engine, or GPUs and CPUs are both asked for.
    """
    if engine.on not in ENGINES:
        raise ValueError(f"--on {engine.on}: no such engine{suggest(str(engine.on), list(ENGINES))}")
    if engine.gpus and engine.procs:
        raise ValueError("--gpus and --procs exclude each other: a process for each GPU, or processes on CPUs")
    return importlib.import_module(ENGINES[engine.on])


def accelerate_environment(name: str) -> dict[str, str]:
    """The environment variables that a config file of Accelerate stands for (`accelerate.utils.launch` sets the same).

    Raises:
        ValueError: no such file (names those there are), or it asks for what the training does not do.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else CONFIGS / "accelerate" / f"{name}.yaml"
    if not path.is_file():
        shipped = [p.stem for p in (CONFIGS / "accelerate").glob("*.yaml")]
        raise ValueError(f"--accelerate {name}: no such file{suggest(name, shipped)}")
    values = read_yaml(path.read_text(encoding="utf-8"), str(path))
    kind = values.get("distributed_type") or "NO"
    others = [key for key, value in values.items() if key.endswith("_config") and value]
    if kind not in DISTRIBUTED or set(others) - {"fsdp_config"} or values.get("gradient_accumulation_steps", 1) != 1:
        raise ValueError(
            f"--accelerate {name}: distributed_type {kind}, sections {', '.join(sorted(others)) or 'none'}; expected "
            f"{', '.join(DISTRIBUTED)}, no section but fsdp_config, and no accumulated gradients (a batch is "
            "computed in chunks that fit)"
        )
    found = {"ACCELERATE_MIXED_PRECISION": str(values.get("mixed_precision", "no"))}
    if values.get("distributed_type") == "FSDP":
        found["ACCELERATE_USE_FSDP"] = "true"
        sharding = values.get("fsdp_config", {})
        found |= {key.upper(): _said(value) for key, value in sharding.items()}
    if values.get("use_cpu"):
        found["ACCELERATE_USE_CPU"] = "true"
    return found


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_port(port: int) -> None:
    """Whether ranks can meet at a port of this machine.

    Raises:
        ValueError: they cannot.
    """
    with socket.socket() as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind(("127.0.0.1", port))
            asked.listen(1)
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"--port {port}: cannot be used on this machine ({error}); choose another, or leave it out"
            ) from None


def python_words(words: Sequence[str]) -> list[str]:
    """The command line of an eyas command that needs no console script on the path."""
    return [sys.executable, "-m", "launch", *words]


def assignments(environment: Mapping[str, str]) -> str:
    """`A=1 B=2`, as a shell reads it."""
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())


def absolute(job: Job) -> Job:
    """The job with its recipe's whole path, for another working folder."""
    path = Path(job.config)
    config = str(find_config(path).resolve()) if path.exists() else job.config
    return Job(job.command, config, job.overrides, job.flags)


def inherited_path() -> dict[str, str]:
    """PYTHONPATH where it is set: a job on another machine needs the same."""
    return {"PYTHONPATH": os.environ["PYTHONPATH"]} if os.environ.get("PYTHONPATH") else {}

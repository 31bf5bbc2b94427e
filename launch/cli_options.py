"""The options that say where a command runs, the same for every command that can run elsewhere."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from launch.engine import ENGINES, Engine

PANEL = "Where it runs"


def _option(*names: str, help: str, default: Any, of: Any, metavar: str | None = None) -> tuple[Any, Any]:
    option = typer.Option(
        *names, help=help, metavar=metavar, show_default=default not in (None, 1), rich_help_panel=PANEL
    )
    return Annotated[of, option], default


OPTIONS: dict[str, tuple[Any, Any]] = {
    "on": _option(
        "--on",
        help=f"Start it on an engine: {', '.join(ENGINES)}. Without: here, in this process.",
        default=None,
        of=str | None,
        metavar="ENGINE",
    ),
    "gpus": _option("--gpus", help="GPUs of each node, a process for each.", default=None, of=int | None),
    "procs": _option("--procs", help="Processes of each node on its CPUs.", default=None, of=int | None),
    "nodes": _option("--nodes", help="Machines.", default=1, of=int),
    "time": _option("--time", help="Longest time, as Slurm writes it: 4:00:00.", default=None, of=str | None),
    "partition": _option("--partition", help="Partition of the cluster.", default=None, of=str | None),
    "port": _option("--port", help="Port where the processes meet; without: a free one.", default=None, of=int | None),
    "restarts": _option("--restarts", help="How often a job that lost a process begins again.", default=2, of=int),
    "accelerate": _option(
        "--accelerate",
        help="Parallelism and precision: cpu, one_gpu, ddp, fsdp2, multi_node, or a file of Accelerate's.",
        default=None,
        of=str | None,
        metavar="CONFIG",
    ),
    "sbatch": _option(
        "--sbatch", help="A further option of sbatch, such as --account=lab; may be repeated.", default=[], of=list[str]
    ),
    "dry_run": _option("--dry-run", help="Print what would run, and start nothing.", default=False, of=bool),
}


def launchable(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options; it receives them together, as its argument `engine`.

    Raises:
        ValueError: when the command is called with an option that means nothing without --on, or with a number below 1.
    """

    @functools.wraps(command)
    def with_engine(**given: Any) -> None:
        engine = Engine(**{name: given.pop(name) for name in OPTIONS})
        command(**given, engine=_checked(engine))

    signature = inspect.signature(command)
    own = [parameter for name, parameter in signature.parameters.items() if name != "engine"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in OPTIONS.items()
    ]
    setattr(with_engine, "__signature__", signature.replace(parameters=[*own, *added]))  # noqa: B010  # typer reads it
    with_engine.__annotations__ = {p.name: p.annotation for p in (*own, *added)} | {"return": None}
    return with_engine


def _checked(engine: Engine) -> Engine:
    for name in ("gpus", "procs", "nodes"):
        value = getattr(engine, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value}: expected a number from 1")
    if engine.restarts < 0:
        raise ValueError(f"--restarts {engine.restarts}: expected a number from 0")
    if engine.on is None:
        given = [f"--{n.replace('_', '-')}" for n, (_, default) in OPTIONS.items() if getattr(engine, n) != default]
        if given:
            raise ValueError(f"{', '.join(given)}: needs an engine; add --on {' or --on '.join(ENGINES)}")
    return engine

"""`eyas runs`, `eyas status`, `eyas cancel`: what there is, what works now, and how to end it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from launch.runs import Run

runs = typer.Typer(
    invoke_without_command=True, rich_markup_mode="rich", help="List runs, or show one: state, score, speed."
)
Folder = Annotated[Path, typer.Option("--folder", help="Where the runs lie.")]
Name = Annotated[str, typer.Argument(help="A run's name: its folder below `--folder`.", show_default=False)]
RUNS = Path("runs")


@runs.callback()
def list_runs(ctx: typer.Context, folder: Folder = RUNS) -> None:
    """List every run with its state, score and speed, newest first.

    [bold]Examples[/]

      eyas runs

      eyas runs show demo

      eyas runs --folder elsewhere/runs
    """
    if ctx.invoked_subcommand is not None:
        return
    from launch.runs import find_runs

    table = Table("run", "state", "score", "of teacher", "step", "tokens/s", "since", box=None, pad_edge=False)
    for run in find_runs(_existing(folder)):
        table.add_row(
            run.name,
            run.state,
            "" if run.score is None else f"{run.score:.4f}",
            "" if run.retention is None else f"{100 * run.retention:.1f} %",
            "" if run.step is None else f"{run.step:,}",
            "" if run.tokens_per_s is None else f"{run.tokens_per_s:,.0f}",
            str(run.record.get("started", "")),
        )
    Console().print(table)


@runs.command("show")
def show(name: Name, folder: Folder = RUNS) -> None:
    """Show one run: how it was made, how it ended, where its files are.

    [bold]Examples[/]

      eyas runs show demo
    """
    from launch.queue import queued
    from launch.runs import ENVIRONMENT, metrics

    run, console = _find(name, folder), Console()
    facts: dict[str, Any] = {"state": run.state, "queue": queued(run.folder)}
    facts |= {
        key: run.record.get(key) for key in ("error", "command", "folder", "started", "ended", "host", "made_from")
    }
    if (run.folder / ENVIRONMENT).is_file():
        from embedding.files import read_json

        facts |= read_json(run.folder / ENVIRONMENT)
    facts |= {"score": run.score, "share of the teacher's": run.retention, "tokens/s": run.tokens_per_s}
    if lines := [line for line in metrics(run.folder) if "loss" in line]:
        facts |= {"last step": lines[-1]["step"], "loss": lines[-1]["loss"]}
    facts["files"] = sorted(path.name for path in run.folder.iterdir() if not path.name.startswith("."))
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in facts.items():
        if value not in (None, ""):
            table.add_row(f"[bold]{key}[/]", escape(_flat(value)))
    console.print(f"[bold cyan]{escape(str(run.folder))}[/]")
    console.print(table)


def status(folder: Folder = RUNS) -> None:
    """Say what runs now or waits in a queue, and how far it is.

    [bold]Examples[/]

      eyas status
    """
    from launch.queue import queued
    from launch.runs import find_runs

    table = Table("run", "state", "queue", "step", "log", box=None, pad_edge=False)
    for run in find_runs(_existing(folder)):
        queue = queued(run.folder)
        if queue or run.state.startswith("running"):
            table.add_row(run.name, run.state, queue, f"{run.step or ''}", str(run.folder / "logs"))
    if not table.rows:
        Console().print("nothing runs here; `eyas runs` lists what has run")
    else:
        Console().print(table)


def cancel(name: Name, folder: Folder = RUNS) -> None:
    """End a run, in the queue or at work: a training writes a checkpoint first, the same command goes on from there.

    [bold]Examples[/]

      eyas cancel demo
    """
    from launch.queue import cancel_run

    Console().print(escape(cancel_run(_find(name, folder).folder)), soft_wrap=True)


def _find(name: str, folder: Path) -> "Run":
    from embedding.config import suggest
    from launch.runs import find_runs

    found = {run.name: run for run in find_runs(_existing(folder))}
    if name not in found:
        raise ValueError(f"{folder / name}: no such run{suggest(name, list(found))}")
    return found[name]


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; runs lie in the recipe's `output`, say where with --folder")
    return folder


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(below)}" for key, below in value.items())
    if isinstance(value, list):
        return " ".join(str(one) for one in value)
    return str(value)

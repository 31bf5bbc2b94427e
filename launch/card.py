"""The model card of an exported model, filled from what its run wrote: README.md with the hub's metadata in front."""

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from embedding.files import read_json, write_text
from eval.scorecard import markdown
from train.recipe import Recipe

NO_DATA_LICENCE = "not given"
USAGE = """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({name!r})
documents = model.encode([{document!r}], prompt_name="document")
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
    taught = recipe.teacher.kind != "none"
    data = ModelCardData(
        license=recipe.card.license,
        language=recipe.card.languages or None,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", *(["distillation"] if taught else []), "eyas"],
        base_model=getattr(recipe.student.start, "model", None) if _on_hub(recipe) else None,
        ignore_metadata_errors=True,
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {recipe.name}", _opening(recipe)]
    parts += ["## Use", USAGE.format(name=str(model), document="a document", query="a question")]
    parts += [
        "Prompts, put before the text:",
        _table(("name", "prompt"), [(n, f"`{p!r}`") for n, p in prompts.items()]),
    ]
    parts += ["## What it kept of its teacher" if taught else "## What it kept of the model it began as"]
    parts += [] if taught else ["There was no teacher: in its column stands the model before this training."]
    parts += [markdown(card) if card else "Not measured."]
    rows = [(loss, ", ".join(stages)) for loss, stages in _losses(recipe).items()]
    parts += ["## Recipe", _table(("loss", "in the stages"), rows), _training(recipe)]
    parts += ["## Data", _data(recipe, summary)]
    parts += ["## Time", _table(("step", "seconds"), [(n, f"{s:,.1f}") for n, s in times.items()])]
    licence = recipe.card.license or "not given"
    parts += ["## Licence", f"Model: {licence}. Data: {_data_licence(recipe) or NO_DATA_LICENCE}."]
    return "\n\n".join(parts) + "\n"


def check_card(model: Path) -> list[str]:
    """What a reader would miss on a model's card: one line each.

    Raises:
        ValueError: the model has no card.
    """
    path = model / "README.md"
    if not path.is_file():
        raise ValueError(f"{path}: the model has no card; run `eyas run` of its recipe to the end, which writes it")
    card = ModelCard.load(path)
    missing = [] if card.data.to_dict().get("license") else ["license"]
    missing += ["data_licence"] if f"Data: {NO_DATA_LICENCE}." in card.text else []
    return [f"{name} is not given; set card.{name} in the recipe" for name in missing]


def published(card: str, repository: str) -> str:
    """A card whose usage code loads the model from a hub repository."""
    return re.sub(r"SentenceTransformer\((['\"]).*\1\)", f"SentenceTransformer({repository!r})", card, count=1)


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


def _training(recipe: Recipe) -> str:
    """What the training did, as the recipe says it: it stands nowhere else in what is published."""
    told = recipe.model_dump(mode="json", include={"seed", "student", "stages", "merge", "spikes"})
    text = yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=100)
    return f"<details><summary>Seed, student and stages</summary>\n\n```yaml\n{text}```\n\n</details>"


def _data_licence(recipe: Recipe) -> str:
    """What the recipe says of all of its data, else of its sources, where it says something of each."""
    each = [source.licence for source in recipe.data.used()]
    return recipe.card.data_licence or (", ".join(dict.fromkeys(each)) if all(each) else "")


def _data(recipe: Recipe, summary: dict[str, Any]) -> str:
    named = ((f"`{source.title()}`", source.licence) for source in recipe.data.used())
    names = ", ".join(f"{name} ({licence})" if licence else name for name, licence in named)
    counted = f"; {summary['texts']:,} texts in {summary['examples']:,} examples" if "texts" in summary else ""
    return f"Sources: {names}{counted}."


def _on_hub(recipe: Recipe) -> bool:
    name = getattr(recipe.student.start, "model", "teacher")
    return (
        name.count("/") == 1 and not Path(name).exists() and not name.startswith(("package:", ".", "/", "~", "runs/"))
    )


def _table(header: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def _optional(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}

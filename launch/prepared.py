"""Preparing a recipe's data: what must not be trained on is handed over from the suite, and one row is explained."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep.build import data_fingerprint, prepare
from data_prep.datacard import write_card
from data_prep.decontaminate import EvaluationTexts
from data_prep.dropped import explain
from data_prep.examine import Workers, examined
from data_prep.tables import Examples, Texts, Tokens
from embedding.files import fingerprint, sha256_file, stamps
from eval.suite import SuiteConfig
from eval.texts import suite_texts
from train.batches import source_shares
from train.recipe import Recipe


def evaluation_texts(recipe: Recipe) -> EvaluationTexts | None:
    """The texts of the recipe's suite; None where it tests on what the run itself holds out.

    Raises:
        ValueError: the suite's folder is not there.
    """
    suite = recipe.suite
    if not recipe.data.decontamination.enabled or not (suite.folder or suite.official):
        return None
    if suite.folder is not None and not suite.folder.is_dir():
        raise ValueError(f"suite.folder {suite.folder}: no such folder, and the data is compared with what it holds")
    files = sorted(path for path in suite.folder.rglob("*.parquet")) if suite.folder else []
    contents = {str(path.relative_to(suite.folder)): sha256_file(path) for path in files if suite.folder}
    made_from = {"tasks": suite.tasks, "official": suite.official, "files": fingerprint(contents)}
    if suite.official:  # whose texts are those that are drawn, from the revisions that this version of mteb names
        made_from["drawn"] = [suite.max_rows, suite.max_documents, suite.seed]
        made_from["tools"] = tool_facts(suite)
    return EvaluationTexts(made_from, lambda: suite_texts(suite))


def tool_facts(suite: SuiteConfig) -> dict[str, str]:
    """What decides scores, and the texts of official tasks, besides the suite's config and folder: the versions of what
    computes them, and the state of the mirror that official tasks are read from.

    Without a mirror an official task's data is of the revision that the config, or this version of mteb, names.
    """
    facts = {package: version(package) for package in ("mteb", "scikit-learn")}
    if suite.official and suite.mirror:
        # one by one, as each may be a link to where the copy lies; and not read, as it may be large
        copies = sorted(suite.mirror.glob("*/*"))
        facts["mirror"] = fingerprint({str(copy.relative_to(suite.mirror)): stamps(copy) for copy in copies})
    return facts


def prepared_facts(recipe: Recipe) -> dict[str, Any]:
    """What the recipe's tables are made from."""
    return data_fingerprint(recipe.data, evaluation_texts(recipe))


def data_folder(recipe: Recipe, made_from: dict[str, Any]) -> Path:
    """Where the recipe's tables lie; `made_from`: its `prepared_facts`."""
    return recipe.cache / "data" / fingerprint(made_from)


def prepare_data(
    recipe: Recipe, made_from: dict[str, Any], progress: bool = True, workers: Workers = examined
) -> dict[str, Any]:
    """Prepare the recipe's data in its cache, unless it is there; return the summary."""
    folder = data_folder(recipe, made_from)
    return prepare(recipe.data, folder, progress, evaluation_texts(recipe), workers, made_from)


def card(recipe: Recipe, out: Path, data: Path, tokens: Path | None) -> None:
    """Write the data card of prepared data; shares are those of the first stage."""
    examples, stage = Examples.load(data / "examples"), recipe.stages[0]
    drawn = source_shares(examples, stage.sources, stage.alpha)
    shares = dict(zip(examples.source_names, drawn.tolist(), strict=True))
    write_card(out, data, recipe.data, None if tokens is None else Tokens.load(tokens), shares)


def explain_row(recipe: Recipe, row: str, console: Console) -> None:
    """Print what happened to a row of the prepared data.

    Raises:
        ValueError: the data is not prepared, or has no such row.
    """
    folder = data_folder(recipe, prepared_facts(recipe))
    if not folder.is_dir():
        raise ValueError(f"{folder}: the data of this recipe is not prepared; run the same command without --explain")
    fate = explain(folder, row)
    place = f" ({fate.place})" if fate.place else ""
    detail = f": {fate.detail}" if fate.detail else ""
    lines = [f"{fate.source}:{fate.row}{place}", f"{fate.fate}{detail}"]
    if fate.example >= 0:
        examples, texts = Examples.load(folder / "examples"), Texts.load(folder / "texts")
        sides = {"positive": examples.positives_of(fate.example), "negative": examples.negatives_of(fate.example)}
        lines.append(f"example {fate.example}, query: {texts.text(int(examples.queries[fate.example]))}")
        lines += [f"{side}: {texts.text(int(text))}" for side, rows in sides.items() for text in rows]
    else:
        lines += [f"query: {fate.query}"] * bool(fate.query) + [f"positive: {text}" for text in fate.positives]
    for line in lines:
        console.print(line if len(line) < 1_000 else f"{line[:1_000]}…", markup=False, highlight=False, soft_wrap=True)

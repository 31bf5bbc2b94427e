"""The shipped mixtures: every recipe is read, and every source on a folder laid out as its data set is on the hub."""

import inspect
import json
import re
import statistics
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.build import prepare
from data_prep.sources import HubSource
from data_prep.tables import Examples, Texts
from embedding.config import load_config
from tests.launch.conftest import questions_and_answers
from train.recipe import Recipe

MIXTURES = ["custom", "harrier", "public"]
PINNED = re.compile("[0-9a-f]{40}")


def mixture(name: str) -> Recipe:
    return load_config(Recipe, f"mixtures/{name}")


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_a_recipe_with_pinned_and_instructed_sources(name: str) -> None:
    recipe = mixture(name)
    assert recipe.mine is not None
    for source in recipe.data.sources:
        assert source.instruction
        if isinstance(source, HubSource):
            assert source.licence
            assert PINNED.fullmatch(source.revision or "")


def test_the_sources_have_names_of_their_own_and_fill_a_batch_of_one_source() -> None:
    recipe = mixture("harrier")
    titles = [source.title() for source in recipe.data.sources]
    assert len(set(titles)) == len(titles)
    limits = [source.limit for source in recipe.data.sources if isinstance(source, HubSource) and source.limit]
    assert min(limits) > max(stage.batch_size for stage in recipe.stages if stage.one_source)


def lay_out(root: Path, source: HubSource) -> int:
    """A few rows as the data set has them: a folder for each subset, and a card that names them."""
    rows = []
    for number, pair in enumerate(questions_and_answers()[:12]):
        if source.label:
            rows.append({source.text: pair["question"], source.label: str(number % 3)})
            continue
        texts = {source.query: pair["question"], source.positive: pair["answer"]}
        if isinstance(source.negative, str):
            texts[source.negative] = f"Something else altogether, number {number}"
        if source.score:
            texts[source.score] = number / 12  # type: ignore[assignment]
        rows.append(texts)
    folder = root / source.repository
    part = folder / (source.subset or "data")
    part.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), part / "train-00000-of-00001.parquet")
    subsets = sorted(path.name for path in folder.iterdir() if path.is_dir())
    card = [{"config_name": name, "data_files": [{"split": "train", "path": f"{name}/train-*"}]} for name in subsets]
    name = "default" if source.subset is None else None
    (folder / "README.md").write_text(
        "---\nconfigs: " + json.dumps([c | ({"config_name": name} if name else {}) for c in card]) + "\n---\n"
    )
    return len(rows)


def test_every_source_is_read_from_folders_laid_out_as_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = mixture("public").data
    # One language of a family is as good as all: they differ in nothing but their name.
    kept = {(s.repository, s.query, s.text): s for s in data.sources if isinstance(s, HubSource)}
    expected = {source.title(): lay_out(tmp_path, source) for source in kept.values()}
    config = data.model_copy(
        update={"sources": list(kept.values()), "heldout": data.heldout.model_copy(update={"share": 0.0})}
    )
    summary = prepare(config, tmp_path / "out", progress=False)
    assert {name: part["rows"] for name, part in summary["sources"].items()} == expected
    assert {name: part["examples"] for name, part in summary["sources"].items()} == expected
    texts, examples = Texts.load(tmp_path / "out" / "texts"), Examples.load(tmp_path / "out" / "examples")
    instructions = {source.title(): source.instruction for source in kept.values()}
    for row in range(len(examples)):
        name = examples.source_names[examples.sources[row]]
        assert texts.task(int(examples.queries[row])) == instructions[name]


def test_the_custom_mixture_is_read_from_a_folder_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("documents").mkdir()
    Path("documents/statistics.py").write_text(inspect.getsource(statistics))
    Path("questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions_and_answers()[:12]))
    data = mixture("custom").data
    lay_out(tmp_path, next(source for source in data.sources if isinstance(source, HubSource)))
    summary = prepare(data, tmp_path / "out", progress=False)
    assert min(part["examples"] for part in summary["sources"].values()) > 0, "its only document was held out whole"

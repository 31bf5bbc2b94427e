"""Digests of what was measured: the same for every model, another where a text, a label or a judgement is another."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval import encoder, items
from eval.compare import as_card, compare, same_items
from eval.evaluate import encode, evaluate
from eval.kinds import KIND_NAMES
from eval.scorecard import scorecard
from eval.suite import SuiteConfig, load_suite
from tests.eval.conftest import write
from tests.eval.test_evaluate import Hashed


def digests(folder: Path, task: str = "*") -> dict[str, str]:
    return encode(Hashed(), load_suite(SuiteConfig(folder=folder, tasks=[task]))).items


def changed(folder: Path, target: Path, file: str, change: Callable[[dict[str, list[Any]]], None]) -> Path:
    """A copy of the folder with one file changed."""
    shutil.copytree(folder, target)
    columns = pq.read_table(target / file).to_pydict()
    change(columns)
    write(target / file, **columns)
    return target


@pytest.fixture(scope="module")
def known(folder: Path) -> dict[str, str]:
    return digests(folder)


def test_a_digest_does_not_depend_on_the_model_or_the_load(folder: Path, known: dict[str, str]) -> None:
    class Other(Hashed):
        tokenizer = None

    assert {name.split("/")[0] for name in known} == set(KIND_NAMES)
    assert len(set(known.values())) == len(known)
    suite = load_suite(SuiteConfig(folder=folder))
    assert encode(Other(), suite).items == known
    scores = evaluate(Hashed(), suite)
    assert {name: task["items"] for name, task in scores["tasks"].items()} == known
    assert as_card(scores)["items"] == known
    assert scorecard(scores, scores, scores)["items"] == known


def turned(column: str) -> Callable[[dict[str, list[Any]]], None]:
    """The first value in the place of the last one: as many of each as before."""

    def change(columns: dict[str, list[Any]]) -> None:
        first, *middle, last = columns[column]
        columns[column] = [last, *middle, first]

    return change


def swapped(one: str, other: str) -> Callable[[dict[str, list[Any]]], None]:
    def change(columns: dict[str, list[Any]]) -> None:
        columns[one][0][0], columns[other][0][0] = columns[other][0][0], columns[one][0][0]

    return change


def other_way_round(columns: dict[str, list[Any]]) -> None:
    columns["label"][:2] = columns["label"][1::-1]


@pytest.mark.parametrize(
    "file, change",
    [
        ("retrieval/docs/qrels.parquet", turned("doc_id")),
        ("retrieval/docs/corpus.parquet", turned("text")),
        ("retrieval/docs/queries.parquet", turned("text")),
        ("reranking/docs.parquet", swapped("positive", "negative")),
        ("instruction_reranking/docs.parquet", swapped("dropped", "negative")),
        ("sts/docs.parquet", turned("score")),
        ("pair_classification/docs.parquet", other_way_round),
        ("classification/modules-test.parquet", turned("label")),
        ("classification/modules-train.parquet", turned("label")),
        ("multilabel_classification/tags-test.parquet", turned("label")),
        ("clustering/modules.parquet", turned("label")),
        ("clustering/modules.parquet", turned("text")),
        ("bitext/docs.parquet", turned("sentence2")),
    ],
)
def test_other_data_of_the_same_size_has_another_digest(
    file: str, change: Any, folder: Path, tmp_path: Path, known: dict[str, str]
) -> None:
    kind, name = file.removesuffix(".parquet").split("/")[:2]
    task = f"{kind}/{name.removesuffix('-test').removesuffix('-train')}"
    found = digests(changed(folder, tmp_path / "changed", file, change), task)
    assert list(found) == [task]
    assert found[task] != known[task]


def test_all_of_a_streamed_corpus_counts(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def last(columns: dict[str, list[Any]]) -> None:
        columns["text"][-1] += "!"

    monkeypatch.setattr(encoder, "STREAMED_CORPUS", 5)
    monkeypatch.setattr(items, "ROWS", 7)
    other = changed(folder, tmp_path / "changed", "retrieval/docs/corpus.parquet", last)
    assert digests(folder, "retrieval/docs") == digests(folder, "retrieval/docs")
    assert digests(folder, "retrieval/docs") != digests(other, "retrieval/docs")


def test_runs_on_other_labels_are_not_compared(folder: Path, tmp_path: Path) -> None:
    tasks = ["clustering/*", "sts/*"]
    other = changed(folder, tmp_path / "changed", "clustering/modules.parquet", turned("label"))
    here, there = (evaluate(Hashed(), load_suite(SuiteConfig(folder=one, tasks=tasks))) for one in (folder, other))
    one, two = as_card(here), as_card(there)
    found = compare({"one": one, "two": two})
    assert (list(found["tasks"]), found["left_out"]) == (["sts/docs"], ["clustering/modules"])
    older = {**two, "items": {}}
    assert same_items("clustering/modules", one, older), "as long as nobody knows"
    short = {**older, "outcomes": {"sts/docs": [{"gold": [1.0, 0.0], "predicted": [0.1, 0.2]}]}}
    assert not same_items("sts/docs", one, short), "then by the numbers of items"


def test_digests_are_made_once_for_all_evaluations(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    true = items.items_digest

    def counted(entry: Any, requests: Any) -> str:
        made.append(entry.name)
        return true(entry, requests)

    monkeypatch.setattr(items, "items_digest", counted)
    suite = load_suite(SuiteConfig(folder=folder, tasks=["sts/*", "bitext/*"]))
    first, again = (evaluate(Hashed(), suite)["tasks"]["sts/docs"]["items"] for _ in range(2))
    assert first == again
    assert sorted(made) == ["bitext/docs", "sts/docs"]


def test_a_table_of_any_size_of_piece_is_whole(folder: Path) -> None:
    table = pa.table({"a": list(range(items.ROWS + 3))})
    from datasets import Dataset

    pieces = list(items._pieces(Dataset(table)))
    assert [value for piece in pieces for value in piece["a"]] == table["a"].to_pylist()

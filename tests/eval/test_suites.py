"""Suites by name: the shipped ones, folders, mteb's own tasks; a smaller search stays hard."""

import json
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest

from embedding.config import CONFIGS, Config, load_config, parse_config
from embedding.embedder import Embedder
from eval.evaluate import evaluate, failures
from eval.kinds import KIND_NAMES, kind_of
from eval.official import OfficialTask, _question
from eval.sample import CANDIDATES, keep_documents, smaller_search
from eval.suite import SuiteConfig, find_suite, load_suite
from tests.eval.conftest import write

PAIRS = [(f"sentence {n} about {word}", f"{word} in sentence {n}") for n in range(6) for word in ("hawks", "rain")]


def lite() -> list[OfficialTask]:
    return [task for task in find_suite("lite").official if isinstance(task, OfficialTask)]


def test_lite_is_a_pinned_part_of_the_benchmark_with_every_kind() -> None:
    of_benchmark = {task.metadata.name: task for task in mteb.get_benchmark("MTEB(Multilingual, v2)").tasks}
    kinds = set()
    for wanted in lite():
        whole = of_benchmark[wanted.name]
        assert wanted.revision == whole.metadata.dataset["revision"], wanted.name
        assert set(wanted.subsets or []) <= set(mteb.get_task(wanted.name).hf_subsets), wanted.name
        assert set(wanted.splits or []) <= set(whole.metadata.eval_splits), wanted.name
        kinds.add(kind_of(whole.metadata.type))
    assert kinds == set(KIND_NAMES)


def test_every_shipped_suite_can_be_read() -> None:
    for path in (CONFIGS / "suites").glob("*.yaml"):
        assert find_suite(path.stem).name == path.stem
        assert find_suite(path.stem, ["max_rows=7"]).max_rows == 7


def test_scores_are_shown_under_the_name_of_what_was_measured(folder: Path) -> None:
    assert SuiteConfig().label == "held-out"
    assert SuiteConfig(official=["STSBenchmark"]).label == "official"
    assert SuiteConfig(folder=folder).label == load_suite(SuiteConfig(folder=folder)).name == folder.name
    assert SuiteConfig(folder=folder, name="mine").label == "mine"


def test_a_suite_is_found_by_folder_file_and_official_name(folder: Path, tmp_path: Path) -> None:
    assert find_suite(str(folder), ["tasks=[sts/*]"]).folder == folder
    (tmp_path / "mine.yaml").write_text("extends: suites/lite\nname: mine\nmax_rows: 9\n")
    found = find_suite(str(tmp_path / "mine.yaml"))
    assert (found.name, found.max_rows, len(found.official)) == ("mine", 9, len(lite()))
    assert find_suite("STSBenchmark").official == ["STSBenchmark"]
    assert find_suite("MTEB(Multilingual, v2)").official == ["MTEB(Multilingual, v2)"]
    with pytest.raises(ValueError, match="did you mean 'docstrings'"):
        find_suite("docstring")


def test_a_recipe_may_name_its_suite(tmp_path: Path) -> None:
    class Holder(Config):
        suite: SuiteConfig = SuiteConfig()

    (tmp_path / "recipe.yaml").write_text("suite: lite\n")
    assert load_config(Holder, tmp_path / "recipe.yaml").suite == find_suite("lite")
    assert parse_config(Holder, {"suite": {"max_rows": 5}}).suite.max_rows == 5
    with pytest.raises(ValueError, match=r"suite.*did you mean 'lite'"):
        load_config(Holder, tmp_path / "recipe.yaml", ["suite=lit"])


def hub_copy(mirror: Path, name: str, configs: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """A data set laid out as on the hub: a JSONL file for each config and split, named in the card's YAML."""
    root = mirror / str(mteb.get_task(name).metadata.dataset["path"])
    root.mkdir(parents=True)
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            file = f"{config}-{split}.jsonl"
            (root / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
            lines += [f"  - split: {split}", f"    path: {file}"]
    (root / "README.md").write_text("\n".join([*lines, "---", ""]))


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mirror")
    graded = [{"sentence1": a, "sentence2": b, "score": float(n % 5)} for n, (a, b) in enumerate(PAIRS)]
    hub_copy(root, "STSBenchmark", {"default": {"train": graded, "validation": graded, "test": graded}})
    # all subsets in one table, as mteb's fast loading wants it
    parallel = [{"sentence1": a, "sentence2": b, "lang": lang} for lang in ("deu-eng", "tur-eng") for a, b in PAIRS]
    hub_copy(root, "Tatoeba", {"default": {"test": parallel}})
    judged = [{"query-id": f"q{n}", "corpus-id": f"d{n}", "score": 1} for n in range(len(PAIRS))]
    corpus = [{"_id": f"d{n}", "title": "", "text": b} for n, (_, b) in enumerate(PAIRS)]
    queries = [{"_id": f"q{n}", "text": a} for n, (a, _) in enumerate(PAIRS)]
    hub_copy(
        root, "ArguAna", {"corpus": {"corpus": corpus}, "queries": {"queries": queries}, "default": {"test": judged}}
    )
    first, second = (list(side) for side in zip(*PAIRS, strict=True))
    one_row = [{"sent1": first, "sent2": second, "labels": [n % 2 for n in range(len(PAIRS))]}]
    hub_copy(root, "SprintDuplicateQuestions", {"default": {"validation": one_row, "test": one_row}})
    return root


def test_official_tasks_come_from_a_copy_of_the_hub_and_become_smaller(mirror: Path, teacher: Embedder) -> None:
    names = [
        OfficialTask(name="STSBenchmark"),
        OfficialTask(name="Tatoeba", subsets=["deu-eng", "tur-eng"]),
        OfficialTask(name="ArguAna"),
        OfficialTask(name="SprintDuplicateQuestions", splits=["test"]),
        OfficialTask(name="STS12"),
        OfficialTask(name="STS13", splits=["tset"]),
        OfficialTask(name="STS31"),
    ]
    suite = load_suite(SuiteConfig(official=names, mirror=mirror, max_rows=5, max_documents=8))
    assert "no copy of the data set there" in suite.failed["STS12"]
    assert "STS13 has no 'tset'; did you mean 'test'" in suite.failed["STS13"]
    assert "did you mean 'STS" in suite.failed["STS31"]
    scores = evaluate(teacher, suite)
    assert set(failures(scores)) == {"STS12", "STS13", "STS31"}
    assert set(scores["tasks"]["Tatoeba"]["subsets"]) == {"deu-eng", "tur-eng"}
    sizes = {
        entry.name: {
            split: len(rows)
            for part in ([entry.task.dataset] if entry.name in ("STSBenchmark", "SprintDuplicateQuestions") else [])
            for split, rows in part.items()  # type: ignore[union-attr]
        }
        for entry in suite.tasks
    }
    assert sizes["STSBenchmark"]["test"] == 5
    assert sizes["SprintDuplicateQuestions"]["test"] == 5
    whole = evaluate(teacher, load_suite(SuiteConfig(official=names[3:4], mirror=mirror)))
    assert not failures(whole), "all pairs in one row"
    outcome = whole["tasks"]["SprintDuplicateQuestions"]["outcomes"][0]
    assert outcome["gold"] == [n % 2 for n in range(len(PAIRS))]
    assert len(outcome["predicted"]) == len(PAIRS)
    search = next(entry for entry in suite.tasks if entry.name == "ArguAna").task.dataset["default"]["test"]  # type: ignore[index]
    assert (len(search["queries"]), len(search["corpus"])) == (5, 8)


def test_hard_documents_are_kept_before_any_others() -> None:
    documents = {f"easy{n}": f"unrelated words number {n}" for n in range(50)}
    documents |= {"right": "how to bake bread", "near": "how to bake a cake", "judged": "something else entirely"}
    relevance = {"q": {"right": 1, "judged": 0}}
    kept = keep_documents({"q": "how do I bake bread at home"}, documents, relevance, 3, seed=0)
    assert set(kept) == {"right", "near", "judged"}
    assert kept == [doc for doc in documents if doc in set(kept)]
    assert len(keep_documents({"q": "bake"}, documents, relevance, 20, seed=0)) == 20
    assert keep_documents({"q": "bake"}, documents, relevance, None, seed=0) == list(documents)


def test_candidates_of_a_reranking_stay_with_their_query() -> None:
    from datasets import Dataset

    documents = [f"text {n} on {word}" for n in range(10) for word in ("hawks", "rain")]
    ids = [f"d{n}" for n in range(len(documents))]
    split = {
        "corpus": Dataset.from_dict({"id": ids, "title": [""] * len(ids), "text": documents}),
        "queries": Dataset.from_dict({"id": ["a", "b"], "text": ["hawks", "rain"]}),
        "relevant_docs": {"a": {"d0": 1, "d2": 0}, "b": {"d1": 1}},
        "top_ranked": {"a": ids[:12], "b": [*ids[8:], "d1"]},
    }
    small = smaller_search(split, None, 22, seed=0)
    assert {query: len(found) for query, found in small["top_ranked"].items()} == {"a": 11, "b": 11}
    fewest = smaller_search(split, None, 2, seed=0)
    assert [len(found) for found in fewest["top_ranked"].values()] == [CANDIDATES] * 2, "not the relevant one alone"
    assert {"d0", "d2"} <= set(small["top_ranked"]["a"])
    assert "d1" in small["top_ranked"]["b"]
    wanted = {doc for found in small["top_ranked"].values() for doc in found}
    assert set(small["corpus"]["id"]) == wanted
    one = smaller_search(split, 1, None, seed=0)
    assert len(one["queries"]) == len(one["top_ranked"]) == 1


def test_a_smaller_folder_keeps_the_documents_most_like_its_queries(tmp_path: Path) -> None:
    root = tmp_path / "retrieval" / "docs"
    texts = [f"filler {n}" for n in range(40)] + ["red kite over the hill", "a red kite nest"]
    write(root / "corpus.parquet", id=[f"d{n}" for n in range(len(texts))], text=texts)
    write(root / "queries.parquet", id=["q"], text=["where is the red kite"])
    write(root / "qrels.parquet", query_id=["q"], doc_id=["d40"], score=[1])
    suite = load_suite(SuiteConfig(folder=tmp_path, max_documents=2))
    split: Any = suite.tasks[0].task.dataset["default"]["test"]  # type: ignore[index]
    assert np.array_equal(sorted(split["corpus"]["id"]), ["d40", "d41"])


def test_a_smaller_folder_keeps_what_was_judged_and_found_wrong(tmp_path: Path) -> None:
    root = tmp_path / "retrieval" / "docs"
    texts = [f"filler {n}" for n in range(40)] + ["red kite over the hill", "a red kite nest"]
    write(root / "corpus.parquet", id=[f"d{n}" for n in range(len(texts))], text=texts)
    write(root / "queries.parquet", id=["q", "other"], text=["where is the red kite", "filler 7"])
    judged = [("q", "d3", 0), ("q", "d5", -1), ("q", "d40", 2), ("q", "d40", 0), ("q", "gone", 0), ("other", "d9", 0)]
    queries, documents, grades = (list(column) for column in zip(*judged, strict=True))
    write(root / "qrels.parquet", query_id=queries, doc_id=documents, score=grades)
    for most, expected in ((3, {"d3", "d5", "d40"}), (4, {"d3", "d5", "d40", "d41"})):
        suite = load_suite(SuiteConfig(folder=tmp_path, max_documents=most))
        split: Any = suite.tasks[0].task.dataset["default"]["test"]  # type: ignore[index]
        assert set(split["corpus"]["id"]) == expected
        assert split["relevant_docs"] == {"q": {"d40": 2}}, "mteb is told the right ones only"


def test_the_candidates_of_a_folder_all_stay(folder: Path) -> None:
    patterns = ["reranking/*", "instruction_reranking/*"]
    whole, few = (load_suite(SuiteConfig(folder=folder, tasks=patterns, max_documents=most)) for most in (None, 2))
    for one, other in zip(whole.tasks, few.tasks, strict=True):
        sizes = [len(entry.task.dataset["default"]["test"]["corpus"]) for entry in (one, other)]  # type: ignore[index]
        assert sizes[0] == sizes[1] > 2, one.name


def test_a_mistyped_instruction_of_an_official_task_is_named(tmp_path: Path) -> None:
    config = SuiteConfig(official=["STSBenchmark"], mirror=tmp_path, instructions={"STSBenchmrk": "Find", "sts": "Say"})
    suite = load_suite(config)
    assert "STSBenchmark" in suite.failed["STSBenchmrk"]
    assert "sts" not in suite.failed


def test_both_sides_of_a_followed_instruction_keep_the_same_candidates() -> None:
    """FollowIR asks where the documents go that an instruction makes irrelevant: a model that does not read it moves
    none."""
    from datasets import Dataset

    ids = [f"d{n}" for n in range(200)]
    split = {
        "corpus": Dataset.from_dict({"id": ids, "title": [""] * 200, "text": [f"hawk {n}" for n in range(200)]}),
        "queries": Dataset.from_dict({"id": ["1-og", "1-changed"], "text": ["hawk, any", "hawk, not brown"]}),
        "relevant_docs": {
            "1-og": dict.fromkeys(ids[100:160], 1),
            "1-changed": {
                **dict.fromkeys(ids[:60], 0),
                **dict.fromkeys(ids[100:130], 0),
                **dict.fromkeys(ids[130:160], 1),
            },
        },
        "top_ranked": {"1-og": ids, "1-changed": ids},
    }
    apart = smaller_search(split, None, 160, seed=0)["top_ranked"]
    together = smaller_search(split, None, 160, seed=0, question=_question)["top_ranked"]
    assert set(apart["1-og"]) != set(apart["1-changed"]), "else this shows nothing"
    assert together["1-og"] == together["1-changed"]
    assert set(ids[100:160]) <= set(together["1-og"])

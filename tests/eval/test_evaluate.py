"""An evaluation encodes each text once, leaves no trace, repeats exactly, and reports what fails."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from embedding.embedder import Embedder
from embedding.instruction import BARE, Template
from eval.evaluate import evaluate, failures
from eval.suite import SuiteConfig, load_suite
from tests.eval.conftest import write


class Hashed:
    """A model without weights: a text's vector is drawn from its own characters, so that equal texts are equal."""

    tokenizer = None

    def __init__(self, template: Template = BARE) -> None:
        self.template = template
        self.seen: list[str] = []

    def tokenize(self, texts: Sequence[str], prompts: Sequence[str]) -> list[np.ndarray]:
        joined = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        self.seen += joined
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in joined]

    def encode_ids(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([np.bincount(row, minlength=256) for row in ids]).astype(np.float32)


def test_each_distinct_text_is_encoded_once(folder: Path) -> None:
    model = Hashed()
    scores = evaluate(model, load_suite(SuiteConfig(folder=folder)))
    assert failures(scores) == {}
    assert len(model.seen) == len(set(model.seen)) == scores["texts"]


def test_queries_carry_the_instruction_and_documents_are_bare(folder: Path, pairs: list[tuple[str, str, str]]) -> None:
    body, summary = pairs[0][2], pairs[0][1]
    for task, instruct_bodies in (("retrieval/docs", False), ("reranking/docs", False), ("sts/docs", True)):
        model = Hashed(Template())
        evaluate(model, load_suite(SuiteConfig(folder=folder, tasks=[task], instructions={task: "Find it"})))
        assert f"Instruct: Find it\nQuery: {summary}" in model.seen
        assert any(text.startswith("Instruct") and text.endswith(body) for text in model.seen) == instruct_bodies
        assert any(not text.startswith("Instruct") for text in model.seen) == (not instruct_bodies)


def test_a_task_instruction_wins_over_its_kind_and_both_over_the_folder(folder: Path, tmp_path: Path) -> None:
    for path in folder.rglob("*.parquet"):
        target = tmp_path / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / "instructions.json").write_text('{"sts": "from the folder", "clustering": "folder only"}')
    config = SuiteConfig(folder=tmp_path, instructions={"sts": "by kind", "sts/docs": "by task", "bitext": "by kind"})
    found = {entry.kind: entry.instruction for entry in load_suite(config).tasks}
    assert found["sts"] == "by task"
    assert found["bitext"] == "by kind"
    assert found["clustering"] == "folder only"
    assert found["classification"] == "Classify user passages"


def test_a_second_evaluation_gives_the_same_numbers_whatever_ran_before(folder: Path, teacher: Embedder) -> None:
    kinds = ["classification/*", "multilabel_classification/*", "clustering/*", "retrieval/*"]
    suite = load_suite(SuiteConfig(folder=folder, tasks=kinds))
    first = evaluate(teacher, suite)
    random.seed(5)
    np.random.seed(6)  # noqa: NPY002
    again = evaluate(teacher, suite)
    alone = evaluate(teacher, load_suite(SuiteConfig(folder=folder, tasks=["clustering/*"])))
    assert [task["score"] for task in first["tasks"].values()] == [task["score"] for task in again["tasks"].values()]
    assert alone["tasks"]["clustering/modules"]["score"] == first["tasks"]["clustering/modules"]["score"]


def test_random_state_and_modes_are_restored(folder: Path, teacher: Embedder) -> None:
    model = Embedder(teacher.backbone, teacher.tokenizer, "mean", max_tokens=64)
    model.train()
    model.backbone.embeddings.eval()
    modes = [module.training for module in model.modules()]
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    suite = load_suite(SuiteConfig(folder=folder, tasks=["clustering/*", "sts/*"]))
    evaluate(model, suite)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert after == state
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
    model.eval()


class Broken(Hashed):
    """NaN for one text."""

    def encode_ids(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        vectors = super().encode_ids(ids)
        vectors[[len(row) == self.length for row in ids]] = np.nan
        return vectors

    length = 0


def test_a_task_with_nan_vectors_fails_and_the_others_run(folder: Path, tmp_path: Path) -> None:
    for name, last in (("a", "rrr"), ("b", "r")):
        texts = {"sentence1": ["x", "yy", "z"], "sentence2": ["x", "q", last]}
        write(tmp_path / "sts" / f"{name}.parquet", **texts, score=[5.0, 1.0, 0.0])
    model = Broken()
    model.length = 3
    scores = evaluate(model, load_suite(SuiteConfig(folder=tmp_path)))
    assert list(failures(scores)) == ["sts/a"]
    assert "NaN or infinity for 1 of 3 texts, e.g. 'rrr'" in failures(scores)["sts/a"]
    assert scores["means"]["task"] == scores["tasks"]["sts/b"]["score"]


def test_constant_vectors_are_a_failure_not_a_number(folder: Path) -> None:
    class Constant(Hashed):
        def encode_ids(self, ids: Sequence[np.ndarray]) -> np.ndarray:
            return np.ones((len(ids), 4), dtype=np.float32)

    scores = evaluate(Constant(), load_suite(SuiteConfig(folder=folder, tasks=["sts/*", "bitext/*"])))
    assert "cosine_spearman is nan" in failures(scores)["sts/docs"]
    assert "score" in scores["tasks"]["bitext/docs"]


def bad_folder(root: Path) -> Path:
    good = {"sentence1": ["a", "b", "c"], "sentence2": ["a", "d", "e"]}
    write(root / "sts" / "good.parquet", **good, score=[5.0, 2.0, 1.0])
    write(root / "sts" / "renamed.parquet", s1=good["sentence1"], sentence2=good["sentence2"], score=[5.0, 2.0, 1.0])
    write(root / "sts" / "nan.parquet", **good, score=[5.0, float("nan"), 1.0])
    write(root / "sts" / "flat.parquet", **good, score=[5.0, 5.0, 5.0])
    write(root / "sts" / "words.parquet", **good, score=["high", "low", "low"])
    write(root / "sts" / "hole.parquet", sentence1=["a", None, "c"], sentence2=good["sentence2"], score=[5.0, 2.0, 1.0])
    write(root / "sts" / "empty.parquet", **{name: values[:0] for name, values in good.items()}, score=[0.5][:0])
    (root / "sts" / "junk.parquet").write_text("not parquet")
    write(root / "pair_classification" / "range.parquet", **good, label=[0, 1, 2])
    write(root / "pair_classification" / "same.parquet", **good, label=[1, 1, 1])
    write(root / "classification" / "one-train.parquet", text=["a", "b"], label=["x", "x"])
    write(root / "classification" / "one-test.parquet", text=["a", "b"], label=["x", "x"])
    write(root / "classification" / "new-train.parquet", text=["a", "b"], label=["x", "y"])
    write(root / "classification" / "new-test.parquet", text=["a", "b"], label=["x", "z"])
    write(root / "classification" / "half-test.parquet", text=["a", "b"], label=["x", "z"])
    for name, doc, grade in (("none", "d", 0), ("stranger", "nowhere", 1), ("graded", "d", 0.5)):
        write(root / "retrieval" / name / "corpus.parquet", id=["d"], text=["doc"])
        write(root / "retrieval" / name / "queries.parquet", id=["q"], text=["query"])
        write(root / "retrieval" / name / "qrels.parquet", query_id=["q"], doc_id=[doc], score=[grade])
    write(root / "retrieval" / "partial" / "corpus.parquet", id=["d"], text=["doc"])
    write(root / "reranking" / "easy.parquet", query=["q"], positive=[["a"]], negative=pa_lists([[]]))
    return root


def pa_lists(values: list[list[str]]) -> object:
    import pyarrow as pa

    return pa.array(values, pa.list_(pa.string()))


@pytest.mark.parametrize(
    "task, why",
    [
        ("sts/renamed", "no column 'sentence1'; columns: s1, sentence2, score"),
        ("sts/nan", "row 1: the score is not a finite number"),
        ("sts/flat", "all scores are 5"),
        ("sts/words", "column 'score' is string, expected a number"),
        ("sts/hole", "row 1: column 'sentence1' has no value"),
        ("sts/empty", "no rows"),
        ("sts/junk", "not a Parquet file"),
        ("pair_classification/range", "labels must be 0 (different) or 1 (same), found '2'"),
        ("pair_classification/same", "only one class ('1')"),
        ("classification/one", "only one class ('x')"),
        ("classification/new", "labels that the train split does not have: 'z'"),
        ("classification/half", "half-train.parquet: no such file"),
        ("retrieval/none", "no query has a relevant document"),
        ("retrieval/stranger", "names documents that do not exist: 'nowhere'"),
        ("retrieval/graded", "graded/qrels.parquet: row 0: the score is 0.5, expected a whole number"),
        ("retrieval/partial", "queries.parquet: no such file"),
        ("reranking/easy", "no row has both positive and negative documents"),
        ("sts/godo", "has no such task; did you mean sts/good"),
        ("stss", "instructions name an unknown task or kind; did you mean 'sts'"),
    ],
)
def test_bad_data_fails_its_task_with_a_reason(task: str, why: str, bad: dict[str, str]) -> None:
    assert why in bad[task]


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = bad_folder(tmp_path_factory.mktemp("bad"))
    config = SuiteConfig(folder=root, tasks=["*", "sts/godo"], instructions={"stss": "Find it"})
    scores = evaluate(Hashed(), load_suite(config))
    assert [name for name, task in scores["tasks"].items() if "score" in task] == ["sts/good"]
    return failures(scores)


def test_a_suite_without_a_folder_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set `folder` to evaluation data"):
        load_suite(SuiteConfig())
    with pytest.raises(ValueError, match="is not a folder"):
        load_suite(SuiteConfig(folder=tmp_path / "missing"))
    with pytest.raises(ValueError, match="no evaluation tasks"):
        load_suite(SuiteConfig(folder=tmp_path))


def test_an_unknown_official_task_names_close_ones() -> None:
    suite = load_suite(SuiteConfig(official=["STSBenchmrak"]))
    assert "did you mean 'STSBenchmark'" in suite.failed["STSBenchmrak"]


def test_limits_keep_every_relevant_document(folder: Path) -> None:
    suite = load_suite(SuiteConfig(folder=folder, tasks=["retrieval/*"], max_rows=10, max_documents=20))
    split = suite.tasks[0].fresh().dataset["default"]["test"]
    assert len(split["queries"]) == 10
    assert len(split["corpus"]) == 20
    assert {doc for docs in split["relevant_docs"].values() for doc in docs} <= set(split["corpus"]["id"])


class Knows(Hashed):
    """Has a body where its summary is, near those of its module."""

    def __init__(self, pairs: list[tuple[str, str, str]]) -> None:
        super().__init__()
        self.places: dict[str, int] = {}
        for place, (_, *both) in enumerate(pairs):
            for text in both:
                self.places.setdefault(text.strip(), place)
        names = sorted({module for module, _, _ in pairs})
        modules = np.eye(len(names))[[names.index(module) for module, _, _ in pairs]]
        self.vectors = np.hstack([np.eye(len(pairs)), 2 * modules]).astype(np.float32)

    def encode_ids(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        texts = [bytes(row).decode().strip() for row in ids]  # a document of a search has its title in front
        places = [self.places[t if t in self.places else t.partition(" ")[2].strip()] for t in texts]
        return np.asarray(self.vectors[places])


def test_who_knows_the_answers_is_nearly_perfect(folder: Path, pairs: list[tuple[str, str, str]]) -> None:
    least = {"retrieval": 0.9, "reranking": 0.9, "pair_classification": 0.9, "bitext": 0.9}
    least |= {"classification": 0.9, "clustering": 0.8, "sts": 0.7}  # half of the STS grades is chance
    found = evaluate(Knows(pairs), load_suite(SuiteConfig(folder=folder, tasks=[f"{kind}/*" for kind in least])))
    assert failures(found) == {}
    assert {kind: score for kind, score in found["kinds"].items() if score < least[kind]} == {}


class Follows(Hashed):
    """Goes by the instruction."""

    places: ClassVar = {"ask any": (5, 8, 3), "ask not b": (8, 3, 5), "a": (1, 0, 0), "b": (0, 1, 0), "c": (0, 0, 1)}

    def encode_ids(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        return np.array([self.places[bytes(row).decode()] for row in ids], dtype=np.float32)


def test_a_document_that_falls_when_the_instruction_takes_it_out_counts_for_the_model(tmp_path: Path) -> None:
    """p-MRR of a document that falls from place 1 to 3: 1 - 1/3 (Weller et al. 2024, FollowIR, arXiv:2403.15246)."""
    columns = {"query": ["ask"], "instruction": ["any"], "changed_instruction": ["not b"]}
    lists = {"positive": [["a"]], "dropped": [["b"]], "negative": [["c"]]}
    write(tmp_path / "instruction_reranking" / "one.parquet", **columns, **lists)
    found = evaluate(Follows(), load_suite(SuiteConfig(folder=tmp_path)))
    assert found["tasks"]["instruction_reranking/one"]["score"] == pytest.approx(2 / 3)

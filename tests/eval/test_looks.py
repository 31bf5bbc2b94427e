"""The map, the regressions and the speed: small, and true to the vectors they are taken from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedding.embedder import Embedder
from eval.evaluate import encode
from eval.looks import look, side_by_side
from eval.speed import measure
from eval.suite import Suite, SuiteConfig, load_suite
from tests.eval.test_evaluate import Hashed
from tests.eval.test_suites import hub_copy


@pytest.fixture(scope="module")
def suite(folder: Path) -> Suite:
    return load_suite(SuiteConfig(folder=folder, tasks=["retrieval/*", "clustering/*"]))


def test_ranks_are_those_of_a_plain_search(suite: Suite, teacher: Embedder) -> None:
    encoded = encode(teacher, suite)
    found = look(encoded)["searches"]["retrieval/docs"]
    split = next(entry for entry in suite.tasks if entry.kind == "retrieval").task.dataset["default"]["test"]  # type: ignore[index]
    corpus, queries = split["corpus"].to_dict(), split["queries"].to_dict()
    documents = teacher.encode([f"{t} {x}".strip() for t, x in zip(corpus["title"], corpus["text"], strict=True)])
    for at, query in enumerate(queries["id"]):
        scores = documents @ teacher.encode([queries["text"][at]])[0]
        right = [corpus["id"].index(doc) for doc, grade in split["relevant_docs"][query].items() if grade > 0]
        place = int((scores > scores[right].max() + 1e-6).sum()) + 1
        assert found["ranks"][at] == pytest.approx(place, abs=0)
        assert scores[found["best"][at]] == pytest.approx(scores.max(), abs=1e-6)


def test_regressions_name_what_each_model_found_first(suite: Suite, teacher: Embedder) -> None:
    good, poor = look(encode(teacher, suite)), look(encode(Hashed(), suite))
    both = side_by_side(suite, good, poor)
    assert 0 < len(both["regressions"]) <= 8
    lost = [row["lost"] for row in both["regressions"]]
    assert lost == sorted(lost, reverse=True)
    for row in both["regressions"]:
        assert row["ranks"]["teacher"] < row["ranks"]["student"]
        assert row["student"] != row["right"]
    assert side_by_side(suite, good, good)["regressions"] == []


class Unit(Hashed):
    """Equal texts are most alike."""

    def encode_ids(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        vectors = super().encode_ids(ids)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_a_search_is_looked_at_as_mteb_scores_it(tmp_path: Path) -> None:
    """The queries of ArguAna are documents, which are no answers, and it judges documents that its corpus lacks."""
    texts = {"d0": "hawks hunt", "d1": "hawks hunt mice", "d2": "rain falls", "d3": "rain falls hard"}
    corpus = [{"_id": name, "title": "", "text": text} for name, text in texts.items()]
    judged = [("d0", "gone"), ("d0", "d0"), ("d0", "d1"), ("d2", "gone")]
    data: dict[str, Any] = {
        "corpus": {"corpus": corpus},
        "queries": {"queries": [{"_id": name, "text": texts[name]} for name in ("d0", "d2")]},
        "default": {"test": [{"query-id": q, "corpus-id": d, "score": 1} for q, d in judged]},
    }
    hub_copy(tmp_path, "ArguAna", data)
    suite = load_suite(SuiteConfig(official=["ArguAna"], mirror=tmp_path))
    assert suite.failed == {}
    seen = look(encode(Unit(), suite))
    assert seen["searches"]["ArguAna"] == {"ranks": [1, 0], "best": [1, 3]}
    fell = {**seen, "searches": {"ArguAna": {"ranks": [3, 0], "best": [2, 3]}}}
    (lost,) = side_by_side(suite, seen, fell)["regressions"]
    assert (lost["right"], lost["student"]) == ("hawks hunt mice", "rain falls")


def test_the_map_turns_one_model_onto_the_other(suite: Suite, teacher: Embedder) -> None:
    seen = look(encode(teacher, suite))
    turned = {**seen, "map": {**seen["map"], "points": [[-y, x] for x, y in seen["map"]["points"]]}}
    both = side_by_side(suite, seen, turned)["map"]
    assert both["task"] == "clustering/modules"
    assert np.allclose(both["teacher"], both["student"], atol=1e-3)
    assert len(both["teacher"]) == len(both["labels"]) == len(both["texts"])
    assert set(both["labels"]) <= {*both["names"], ""}
    assert side_by_side(suite, seen, {"map": None, "searches": {}})["map"] is None


def test_longer_texts_are_slower_and_too_long_ones_left_out(teacher: Embedder) -> None:
    small = Embedder(teacher.backbone, teacher.tokenizer, "mean", max_tokens=64).eval()
    found = measure(small)
    assert set(found) == {"texts/s, 16 tokens", "texts/s, 64 tokens", "on"}, "no peak: a process keeps freed memory"
    assert found["texts/s, 16 tokens"] > found["texts/s, 64 tokens"] > 0
    assert found["on"].endswith(f", {torch.get_num_threads()} threads")


@pytest.mark.gpu
def test_a_gpu_is_named_and_its_memory_measured(teacher: Embedder) -> None:
    try:
        found = measure(teacher.to("cuda"))
    finally:
        teacher.to("cpu")
    assert found["on"] == torch.cuda.get_device_name()
    assert found["peak MiB"] > sum(p.numel() * p.element_size() for p in teacher.parameters()) / 2**20

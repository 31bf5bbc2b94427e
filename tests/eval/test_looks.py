"""The map, the regressions and the speed: small, and true to the vectors they are taken from."""

from pathlib import Path

import numpy as np
import pytest

from embedding.embedder import Embedder
from eval.evaluate import encode
from eval.looks import look, side_by_side
from eval.speed import measure
from eval.suite import Suite, SuiteConfig, load_suite
from tests.eval.test_evaluate import Hashed


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
    assert set(found) == {"texts/s, 16 tokens", "texts/s, 64 tokens", "peak MiB"}
    assert found["texts/s, 16 tokens"] > found["texts/s, 64 tokens"] > 0
    assert found["peak MiB"] >= 0

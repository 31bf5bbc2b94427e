"""An evaluation shared by real processes gives the numbers of one process, and no share is taken for another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.processes import run_ranks
from embedding.embedder import Embedder
from eval.evaluate import evaluate
from eval.ranks import ALONE, Ranks
from eval.suite import SuiteConfig, load_suite
from tests.eval.conftest import TEACHER
from tests.eval.test_evaluate import Hashed
from train.distributed import gather_objects, join, rank, world_size

FITTED = ("classification", "multilabel_classification", "clustering")


def shared(folder: str) -> dict[str, Any]:
    """Two evaluations by one of several ranks: {tasks, views, again, texts}."""
    join()
    ranks = Ranks(world_size(), rank(), gather_objects)
    model = Embedder.from_pretrained(TEACHER)
    suite = load_suite(SuiteConfig(folder=Path(folder), widths=[64], precisions=["binary"]))
    first, again = (evaluate(model, suite, suite.views, ranks) for _ in range(2))
    return {
        "ranks": ranks.size,
        "texts": first["texts"],
        "tokens": first["tokens"],
        "tasks": {name: task["score"] for name, task in first["tasks"].items()},
        "again": {name: task["score"] for name, task in again["tasks"].items()},
        "views": {name: view["means"]["task_type"] for name, view in first["views"].items()},
    }


def test_two_ranks_give_the_numbers_of_one(folder: Path, teacher: Embedder) -> None:
    suite = load_suite(SuiteConfig(folder=folder, widths=[64], precisions=["binary"]))
    alone = evaluate(teacher, suite, suite.views)
    both = run_ranks(2, shared, str(folder))
    assert both[0] == both[1]
    assert both[0]["ranks"] == 2
    assert (both[0]["texts"], both[0]["tokens"]) == (alone["texts"], alone["tokens"])
    assert len({name.split("/")[0] for name in both[0]["tasks"]}) == 9
    for name, score in both[0]["tasks"].items():
        tolerance = 5e-3 if name.startswith(FITTED) else 1e-4
        assert score == pytest.approx(alone["tasks"][name]["score"], abs=tolerance), name
    assert both[0]["again"] == both[0]["tasks"]
    for name, mean in both[0]["views"].items():
        assert mean == pytest.approx(alone["views"][name]["means"]["task_type"], abs=5e-3), name


class Recorded(Hashed):
    """Remembers the rows that its last call encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[bytes] = []

    def encode_ids(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        self.encoded = sorted(row.tobytes() for row in ids)
        return super().encode_ids(ids)


def test_tokens_are_kept_for_the_same_share_only(folder: Path) -> None:
    suite = load_suite(SuiteConfig(folder=folder, tasks=["sts/*", "retrieval/*"]))
    model = Recorded()

    def of(ranks: Ranks) -> tuple[int, list[bytes]]:
        """How many texts a rank tokenizes, and what it encodes; its own share stands in for the other ranks'."""
        model.seen = []
        evaluate(model, suite, ranks=ranks)
        return len(model.seen), model.encoded

    count, whole = of(ALONE)
    assert count == len(whole)
    assert of(ALONE) == (0, whole)
    shares = [of(Ranks(2, at, lambda value: [value, value]))[1] for at in (0, 1)]
    assert sorted(shares[0] + shares[1]) == whole
    assert of(ALONE) == (count, whole)

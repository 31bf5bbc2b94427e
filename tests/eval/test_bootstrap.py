"""Chance: what is noted of each task gives back mteb's score, and the intervals are right."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, f1_score

from eval.bootstrap import REPLICATES, interval, replicates, within_noise
from eval.compare import _shown, compare, comparison_table
from eval.evaluate import evaluate, means
from eval.outcomes import _best_order, row_f1
from eval.scorecard import scorecard
from eval.suite import SuiteConfig, load_suite
from tests.eval.conftest import write
from tests.eval.test_evaluate import Hashed
from tests.eval.test_scorecard import shown


def test_the_outcomes_of_every_kind_give_its_score(folder: Path) -> None:
    scores = evaluate(Hashed(), load_suite(SuiteConfig(folder=folder)))
    for name, task in scores["tasks"].items():
        values = []
        for outcome in task["outcomes"]:
            if "values" in outcome:
                values.append(np.mean(outcome["values"]))
            elif task["kind"] == "sts":
                values.append(spearmanr(outcome["gold"], outcome["predicted"]).statistic)
            else:
                values.append(average_precision_score(outcome["gold"], outcome["predicted"]))
        assert bool(values) == (task["kind"] != "clustering"), name
        if not values:
            continue
        # mteb rounds the measures of searches to five digits, we most others to six
        tolerance = 1e-12 if task["kind"] == "pair_classification" else 2e-5
        assert np.mean(values) == pytest.approx(task["score"], abs=tolerance), name
        drawn = replicates(task["kind"], task["outcomes"])
        assert drawn is not None
        low, high = interval(drawn)
        assert low <= task["score"] <= high, name


class Lengths(Hashed):
    """A vector is as long as its text; what cosine sees, its direction, says nothing. All are short, so that distances
    differ in their last digits."""

    def encode_ids(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        angles = [int(row.sum()) * 37 % 101 / 1000 for row in ids]
        turned = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return np.asarray(1e-7 * np.array([[len(row)] for row in ids]) * turned, dtype=np.float32)


def test_pairs_are_ordered_by_the_similarity_that_won(tmp_path: Path) -> None:
    first = [chr(97 + n) * (3 + n) for n in range(24)]
    second = [chr(97 + n % 5) * (3 + n if n % 2 else 70 - n) for n in range(24)]
    labels = [n % 2 for n in range(24)]
    write(tmp_path / "pair_classification" / "pairs.parquet", sentence1=first, sentence2=second, label=labels)
    task = evaluate(Lengths(), load_suite(SuiteConfig(folder=tmp_path)))["tasks"]["pair_classification/pairs"]
    assert task["score"] > 0.9
    (outcome,) = task["outcomes"]
    assert average_precision_score(outcome["gold"], outcome["predicted"]) == pytest.approx(task["score"], abs=1e-12)
    best = _best_order([0, 1, 1], {"cosine_scores": [0.9, 0.1, 0.2], "euclidean_distances": [0.9, 0.1, 0.2]})
    assert best == [1, 3, 2], "the smaller a distance, the more alike"


def test_a_metric_that_is_no_average_of_items_has_no_outcomes(folder: Path) -> None:
    suite = load_suite(SuiteConfig(folder=folder, tasks=["pair_classification/*"]))
    task = suite.tasks[0].task
    task.metadata = task.metadata.model_copy(update={"main_score": "max_accuracy"})
    found = evaluate(Hashed(), suite)["tasks"]["pair_classification/docs"]
    assert found["score"] > 0.5
    assert found["outcomes"] == []


def test_row_f1_is_the_weighted_f1() -> None:
    found = [0, 0, 2, 3, 3, 3, 6]
    assert np.mean(row_f1(found)) == pytest.approx(f1_score(range(7), found, average="weighted", zero_division=0))


def test_replicates_are_the_statistics_of_redrawn_items() -> None:
    random = np.random.default_rng(3)
    gold, predicted = random.integers(0, 2, 40).astype(float), random.integers(0, 12, 40) / 12
    drawn = np.random.default_rng(0).integers(0, 40, (REPLICATES, 40), dtype=np.int32)
    outcome = {"gold": gold.tolist(), "predicted": predicted.tolist()}
    pairs, sts = replicates("pair_classification", [outcome]), replicates("sts", [outcome])
    assert pairs is not None
    assert sts is not None
    for b in range(20):
        rows = drawn[b]
        assert pairs[b] == pytest.approx(average_precision_score(gold[rows], predicted[rows]))
        assert sts[b] == pytest.approx(spearmanr(gold[rows], predicted[rows]).statistic)


def test_an_interval_of_a_mean_is_as_wide_as_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.2, 400)
    drawn = replicates("retrieval", [{"values": values.tolist()}])
    assert drawn is not None
    low, high = interval(drawn)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)
    assert replicates("retrieval", []) is None
    assert replicates("clustering", [{"values": values.tolist()}]) is None, "of older cards: k-means' starts"


def test_subsets_count_alike_whatever_their_size() -> None:
    drawn = replicates("bitext", [{"values": [1.0] * 100}, {"values": [0.0] * 3}])
    assert drawn is not None
    assert drawn == pytest.approx(0.5)


def a_run(shift: float, seed: int, noise: float = 0.05) -> dict[str, Any]:
    """Scores of a retrieval and an STS task; runs share how hard each item is."""
    hard = np.random.default_rng(7).random(200)
    values = np.clip(hard + shift + np.random.default_rng(seed).normal(0, noise, 200), 0, 1)
    tasks: dict[str, Any] = {
        "retrieval/a": {"kind": "retrieval", "metric": "ndcg_at_10", "instruction": "", "score": float(values.mean())},
        "sts/b": {"kind": "sts", "metric": "cosine_spearman", "instruction": "", "score": 0.5 + shift},
    }
    tasks["retrieval/a"]["outcomes"] = [{"values": values.tolist()}]
    tasks["sts/b"]["outcomes"] = []
    return {"suite": "s", "template": {}, "tasks": tasks, **means(tasks), "seconds": {"total": 1.0}}


def test_the_card_has_intervals_and_marks_what_is_noise() -> None:
    card = scorecard(a_run(0.0, 1), a_run(-0.3, 2), a_run(0.0, 3))
    low, high = card["intervals"]["tasks"]["retrieval/a"]["difference"]
    assert low < 0 < high
    assert high - low < 0.03  # paired: the items' own spread of 0.29 would give 0.08
    assert card["intervals"]["retention"][0] < card["means"]["retention"] < card["intervals"]["retention"][1]
    assert card["intervals"]["recovered"][0] < 1 < card["intervals"]["recovered"][1]
    worse = scorecard(a_run(0.0, 1), a_run(-0.3, 2), a_run(-0.1, 3))
    assert not within_noise(worse["intervals"]["tasks"]["retrieval/a"]["difference"])
    assert "sts/b" not in card["intervals"]["tasks"]


def card_of(run: dict[str, Any]) -> dict[str, Any]:
    return scorecard(a_run(0.05, 9), a_run(-0.3, 8), run)


def test_compare_tells_a_difference_from_noise() -> None:
    found = compare({"base": card_of(a_run(0, 1)), "same": card_of(a_run(0, 2)), "worse": card_of(a_run(-0.1, 3))})
    cells = found["tasks"]["retrieval/a"]["runs"]
    assert cells["same"]["noise"]
    assert not cells["worse"]["noise"]
    assert cells["worse"]["difference"] == pytest.approx(cells["worse"]["score"] - cells["base"]["score"])
    assert found["tasks"]["sts/b"]["runs"]["worse"]["interval"] is None
    assert _shown(found["tasks"]["sts/b"]["runs"]["worse"]) == "40.0 -10.0", "nobody knows: no colour, no ~"
    assert _shown(cells["worse"]).endswith("[/]")
    assert found["mean"]["worse"]["difference"] < 0
    text = shown(comparison_table(found))
    for part in ("Against base", "retrieval/a", "~", "Mean(TaskType)"):
        assert part in text


def test_compare_leaves_out_what_was_not_measured_alike() -> None:
    other = a_run(0, 2)
    other["tasks"]["retrieval/a"]["outcomes"] = [{"values": [0.5] * 10}]
    small = scorecard(a_run(0, 1) | {"tasks": other["tasks"]}, other, other)
    found = compare({"base": card_of(a_run(0, 1)), "other": small})
    assert found["left_out"] == ["retrieval/a"]
    assert list(found["tasks"]) == ["sts/b"]


def test_compare_refuses_what_it_cannot_compare() -> None:
    card = card_of(a_run(0, 1))
    with pytest.raises(ValueError, match="1 run given"):
        compare({"base": card})
    with pytest.raises(ValueError, match="no task in common: a has 'retrieval/a', 'sts/b'; b has none"):
        compare({"a": card, "b": card | {"tasks": {}}})

"""What a score is made of, item by item, so that chance can be measured: see `eval.bootstrap`.

mteb gives single numbers. What it computed them from it hands out in two places: a hook with every query's measures for
the search kinds, and a file of predictions for the others. Each outcome below gives back mteb's main score.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mteb.abstasks import AbsTask
from scipy.stats import rankdata  # type: ignore[import-untyped]
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import MultiLabelBinarizer

from eval.kinds import SEARCHED
from eval.suite import SuiteTask

Outcome = dict[str, list[float]]
"""One of a subset: {"values": ...}, whose mean is the score, or {"gold": ..., "predicted": ...}, whose rank correlation
(STS) or average precision (pair classification) it is."""
DIGITS = 6
SIMILARITIES = {
    "similarity_scores": 1,
    "cosine_scores": 1,
    "manhattan_distances": -1,
    "euclidean_distances": -1,
    "dot_scores": 1,
}
"""What mteb predicts of pairs, and the sign that makes more alike greater; its max_ap is the best of them."""


def note_queries(entry: SuiteTask, task: Any) -> list[Outcome]:
    """Make a task of a search kind note every query's measure as it is evaluated; the list fills with its subsets."""
    noted: list[Outcome] = []
    hook = task.task_specific_scores

    def noting(scores: Mapping[str, Mapping[str, float]], *args: Any, **kwargs: Any) -> Any:
        found = hook(scores, *args, **kwargs)
        if entry.metric == "p-MRR":  # no measure of a single ranking, so our own task class keeps it
            if values := getattr(task, "by_query", ()):
                noted.append({"values": _round(values)})
        elif (name := _trec(entry.metric)) and all(name in measures for measures in scores.values()):
            noted.append({"values": _round([measures[name] for measures in scores.values()])})
        return found

    task.task_specific_scores = noting
    return noted


def read_outcomes(entry: SuiteTask, task: AbsTask, folder: Path, scores: Mapping[str, Any]) -> list[Outcome]:
    """The outcomes of a task that wrote its predictions to `folder`; one for each subset, [] where it has none.

    A clustering has none: its ten experiments draw nearly the same documents where there are few, so that their spread
    is that of k-means alone and says nothing of other documents.
    """
    path = folder / task.prediction_file_name
    if entry.kind in SEARCHED or not path.is_file():
        return []
    written = json.loads(path.read_text(encoding="utf-8"))
    found = []
    for subset in scores:
        for split, predictions in written[subset].items():
            outcome = _outcome(entry, task, _data(task, subset)[split], predictions)
            if outcome is None:
                return []
            found.append(outcome)
    return found


def _outcome(entry: SuiteTask, task: Any, rows: Any, predictions: Any) -> Outcome | None:
    if entry.kind == "sts" and entry.metric == "cosine_spearman":
        return {"gold": _round(rows["score"]), "predicted": _round(predictions["cosine_scores"])}
    if entry.kind == "pair_classification" and entry.metric == "max_ap":
        gold = _round(rows[task.label_column_name])
        return {"gold": gold, "predicted": _best_order(gold, predictions)}
    if entry.kind == "classification" and entry.metric == "accuracy":
        right = np.asarray(predictions) == np.asarray(list(rows[task.label_column_name]))
        return {"values": _round(right.mean(axis=0))}
    if entry.kind == "multilabel_classification" and entry.metric == "accuracy":
        gold = MultiLabelBinarizer().fit_transform(list(rows[task.label_column_name]))
        if len(gold) != len(predictions[0]):
            return None  # mteb drew a part of a large split
        return {"values": _round((np.asarray(predictions) == gold).all(axis=2).mean(axis=0))}
    if entry.kind == "bitext" and entry.metric == "f1" and "sentence1-sentence2" in predictions:
        return {"values": _round(row_f1([hit["corpus_id"] for hit in predictions["sentence1-sentence2"]]))}
    return None


def _best_order(gold: Sequence[float], predictions: Mapping[str, Sequence[float]]) -> list[float]:
    """The places of the pairs, the most alike highest, by the similarity that has the best average precision.

    Places say all that average precision asks: rounded similarities would tie what mteb tells apart.
    """
    known = [sign * np.asarray(predictions[name]) for name, sign in SIMILARITIES.items() if name in predictions]
    best_N = max(known, key=lambda values_N: average_precision_score(gold, values_N))
    return [float(place) for place in rankdata(best_N, method="dense")]


def row_f1(found: Sequence[int]) -> list[float]:
    """Each row's part of the weighted F1 of bitext mining, where row i is the only one of its class.

    Precision of class i is 1 / (times i was found) where row i found it, recall is 1: F1 is 2 / (1 + times found).
    """
    times = Counter(found)
    return [2 / (1 + times[row]) if row == answer else 0.0 for row, answer in enumerate(found)]


def _trec(metric: str) -> str | None:
    """mteb's name of a measure as pytrec_eval writes it, where that has it by query."""
    name, _, k = metric.partition("_at_")
    known = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P"}
    return f"{known[name]}_{k}" if name in known else None


def _data(task: Any, subset: str) -> Any:
    return task.dataset.get(subset, task.dataset)


def _round(values: Any) -> list[float]:
    return [round(float(value), DIGITS) for value in values]

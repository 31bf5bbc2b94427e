"""Is a difference more than chance? Paired bootstrap over the items of the tasks (Efron & Tibshirani 1993, chapter 13).

Every replicate draws the items of a task again, with replacement, the same draw for every model: what two models find
equally hard cancels. Shapes: B replicates, N items.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata  # type: ignore[import-untyped]

REPLICATES = 1000
LEVEL = 0.95
Interval = tuple[float, float]


def replicates(kind: str, outcomes: Sequence[Mapping[str, Sequence[float]]], seed: int = 0) -> np.ndarray | None:
    """Scores of a task, float64 [B], over redrawn items; the mean over its subsets. None where nothing was noted, and
    for clustering: what scorecards of before 2026-11-29 noted there is the spread of k-means' starts, not of documents.

    Equal sizes and seeds draw equal items, which pairs the models.
    """
    if not outcomes or kind == "clustering":
        return None
    random = np.random.default_rng(seed)
    parts = []
    for outcome in outcomes:
        columns = {name: np.asarray(values, dtype=np.float64) for name, values in outcome.items()}
        size = len(next(iter(columns.values())))
        drawn_BN = random.integers(0, size, (REPLICATES, size), dtype=np.int32)
        if "values" in columns:
            parts.append(columns["values"][drawn_BN].mean(axis=1))
        elif kind == "sts":
            parts.append(_spearman(columns["gold"][drawn_BN], columns["predicted"][drawn_BN]))
        else:
            parts.append(_average_precision(columns["gold"], columns["predicted"], drawn_BN))
    return np.asarray(np.mean(parts, axis=0))


def interval(values_B: np.ndarray) -> Interval:
    """The middle 95 % of the replicates."""
    low, high = np.quantile(values_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def within_noise(difference: Sequence[float]) -> bool:
    """Whether an interval of a difference holds zero."""
    return difference[0] <= 0 <= difference[1]


def kind_replicates(
    tasks: Mapping[str, Mapping[str, Any]], drawn: Mapping[str, np.ndarray | None]
) -> dict[str, np.ndarray]:
    """The mean [B] of each kind from the replicates of its tasks; a task without any stays at its `score`."""
    kinds: dict[str, list[np.ndarray]] = {}
    for name, task in tasks.items():
        values_B = drawn.get(name)
        kinds.setdefault(task["kind"], []).append(np.full(REPLICATES, task["score"]) if values_B is None else values_B)
    return {kind: np.asarray(np.mean(of, axis=0)) for kind, of in kinds.items()}


def mean_of_kinds(kinds: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mean(TaskType) [B]."""
    return np.asarray(np.mean(list(kinds.values()), axis=0))


def _spearman(gold_BN: np.ndarray, predicted_BN: np.ndarray) -> np.ndarray:
    a_BN, b_BN = rankdata(gold_BN, axis=1), rankdata(predicted_BN, axis=1)
    a_BN -= a_BN.mean(axis=1, keepdims=True)
    b_BN -= b_BN.mean(axis=1, keepdims=True)
    scale_B = np.sqrt((a_BN**2).sum(axis=1) * (b_BN**2).sum(axis=1))
    return np.asarray((a_BN * b_BN).sum(axis=1) / np.maximum(scale_B, 1e-12))


def _average_precision(gold_N: np.ndarray, predicted_N: np.ndarray, drawn_BN: np.ndarray) -> np.ndarray:
    """Sum over thresholds of (recall gained) x (precision); a redrawn item counts as often as it was drawn."""
    order_N = np.argsort(-predicted_N, kind="stable")
    size = len(order_N)
    times_BN = np.stack([np.bincount(row, minlength=size) for row in drawn_BN])[:, order_N]
    right_BN = times_BN * gold_N[order_N]
    # equal similarities share one threshold: the last of them
    last_N = np.append(np.diff(predicted_N[order_N]) != 0, True)
    hits_BN = right_BN.cumsum(axis=1)[:, last_N]
    seen_BN = times_BN.cumsum(axis=1)[:, last_N]
    gained_BN = np.diff(hits_BN, axis=1, prepend=0)
    return np.asarray((gained_BN * hits_BN / np.maximum(seen_BN, 1)).sum(axis=1) / np.maximum(hits_BN[:, -1], 1))

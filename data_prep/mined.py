"""What a pass of mining found, in numbers for the report: how hard the negatives are, and how many relevant documents
may be among them or were kept out.

Shapes: M examples, b rows of a block, k candidates of each.
"""

from collections import Counter
from typing import Any

import numpy as np

from data_prep.negatives import Chosen
from data_prep.tables import Examples, Ragged

EDGES = np.round(np.arange(-0.5, 1.0001, 0.05), 2)
"""Of the histogram: the positive's score less the candidate's; what lies beyond counts in the outermost bin."""

OF_WHOLE = ("rows with some too near, share", "rows whose positive is not the nearest, share")
"""Of a random part of the pool they would be smaller, the more so the more parts there are: left out there."""


class Statistics:
    """Counts that grow block by block."""

    def __init__(self, whole: bool) -> None:
        """`whole`: each row is searched for in its whole pool, not in a random part of it."""
        self._whole = whole
        self.searched_again = 0
        """Rows whose part of the pool held too few negatives, and that had the whole pool searched."""
        self._counts: Counter[str] = Counter()
        self._positives = self._negatives = 0.0
        self._bins = {name: np.zeros(len(EDGES) - 1, dtype=np.int64) for name in ("chosen", "too near")}
        self._indexes: Counter[str] = Counter()
        self._recall: list[float] = []

    def indexed(self, facts: dict[str, Any]) -> None:
        """An index that was searched."""
        self._indexes[facts["index"]] += 1
        if "recall" in facts:
            self._recall.append(facts["recall"])

    def add_candidates(
        self, score_bk: np.ndarray, positive_b: np.ndarray, known_bk: np.ndarray, chosen: Chosen
    ) -> None:
        """What one block's search brought, each row once."""
        gap_bk = positive_b[:, None] - score_bk
        self._bins["too near"] += _histogram(gap_bk[chosen.near_bk])
        self._counts["known"] += int(known_bk.sum())
        self._counts["too near"] += int(chosen.near_bk.sum())
        self._counts["usable"] += int(chosen.usable_bk.sum())
        self._counts["rows with some too near"] += int(chosen.near_bk.any(axis=1).sum())
        self._counts["rows"] += len(positive_b)
        self._counts["rows whose positive is not the nearest"] += int(((gap_bk < 0) & ~known_bk).any(axis=1).sum())
        self._positives += float(positive_b.sum(dtype=np.float64))

    def add_chosen(self, score_bk: np.ndarray, positive_b: np.ndarray, place_bn: np.ndarray) -> None:
        """The negatives of rows that are done."""
        row, column = np.nonzero(place_bn >= 0)
        scores = score_bk[row, place_bn[row, column]]
        self._bins["chosen"] += _histogram(positive_b[row] - scores)
        self._counts["chosen"] += len(scores)
        self._negatives += float(scores.sum(dtype=np.float64))

    def report(self, examples: Examples, negatives: Ragged, mined_for: int, wanted: int) -> dict[str, Any]:
        """All of it as JSON values. Shares are of the candidates within the ranks."""
        count = negatives.counts
        eligible = (examples.positives.counts > 0) & np.isnan(examples.scores)
        candidates = max(self._counts["too near"] + self._counts["usable"], 1)
        rows = max(self._counts["rows"], 1)
        by_source = {}
        for source, name in enumerate(examples.source_names):
            own = (examples.sources == source) & eligible
            if own.any():
                by_source[name] = {
                    "rows": int(own.sum()),
                    "negatives a row": round(float(count[own].mean()), 3),
                    "rows without": int((count[own] == 0).sum()),
                }
        return {
            "rows": mined_for,
            "graded rows left out": int((~np.isnan(examples.scores)).sum()),
            "single texts left out": int((examples.positives.counts == 0).sum()),
            "negatives": int(count[eligible].sum()),
            "rows with all": int((count[eligible] >= wanted).sum()),
            "rows with some": int(((count[eligible] > 0) & (count[eligible] < wanted)).sum()),
            "rows with none": int((count[eligible] == 0).sum()),
            "rows searched again": self.searched_again,
            "candidates": self._counts["too near"] + self._counts["usable"],
            "known kept out": self._counts["known"],
            "too near": self._counts["too near"],
            "too near, share": round(self._counts["too near"] / candidates, 4),
            **{name: round(self._counts[name.removesuffix(", share")] / rows, 4) for name in OF_WHOLE if self._whole},
            "mean score of positives": round(self._positives / rows, 4),
            "mean score of negatives": round(self._negatives / max(self._counts["chosen"], 1), 4),
            "indexes": dict(self._indexes),
            **({"recall": min(self._recall)} if self._recall else {}),
            "histogram": {
                "positive's score less the candidate's": EDGES.tolist(),
                **{name: bins.tolist() for name, bins in self._bins.items()},
            },
            "sources": by_source,
        }


def _histogram(gaps: np.ndarray) -> np.ndarray:
    counts: np.ndarray = np.histogram(np.clip(gaps, EDGES[0], EDGES[-1]), EDGES)[0]
    return counts

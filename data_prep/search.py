"""The nearest documents of queries, in bounded memory: every document compared (FAISS on the CPU, torch on a GPU), or
FAISS's inverted lists and graphs where there are too many for that.

Shapes: Q queries, P documents, k neighbours, E width.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np

Vectors = Callable[[np.ndarray], np.ndarray]
"""Rows of the texts table -> their vectors, which belong to the caller: float32 [n, E]."""
Index = Literal["auto", "exact", "ivf", "hnsw"]

CHUNK_BYTES = 32 << 20
"""Documents in float32 at a time."""
EXACT_DOCUMENTS = 1_000_000
"""Up to so many documents the CPU compares them all. A matrix product does some 20 times as many comparisons a second
as the walk along inverted lists: at 60,000 documents of width 384, finding 95 % of the hundred nearest with lists took
three times as long as comparing all."""
RECALL, RECALL_NEAREST = 0.95, 50
"""An approximate index is tuned until it finds this share of the nearest of a sample of the queries."""
TUNED_WITH = 256
"""Queries of that sample."""
LIST_POINTS = 40
"""Documents that a list's centre is fitted to (FAISS asks for 39 at the least)."""
GRAPH_LINKS = 32
"""Links of a node of an HNSW graph (Malkov and Yashunin 2018: 5 to 48)."""
MOST_EFFORT = 2_048
HELD_SHARE = 0.5
"""Of a GPU's free memory, for documents; scores and queries want some too."""


class Search(Protocol):
    """Documents to search among."""

    def nearest(self, query_QE: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest documents, nearest first: scores float32 [Q, k], places int64 [Q, k]; -1: there is none."""
        ...


def search_among(
    rows_P: np.ndarray, vectors: Vectors, kind: Index, device: str, sample_QE: np.ndarray
) -> tuple[Search, dict[str, Any]]:
    """What to search the documents `rows_P` with, and its facts for the report.

    Args:
        device: a torch device; anything but `cpu` compares all documents there.
        sample_QE: queries that an approximate index is tuned with.
    """
    if kind == "auto":
        kind = "exact" if device != "cpu" or len(rows_P) <= EXACT_DOCUMENTS else "ivf"
    if kind == "exact":
        return (Exact(rows_P, vectors) if device == "cpu" else OnDevice(rows_P, vectors, device)), {"index": "exact"}
    found = Approximate(rows_P, vectors, kind)
    return found, {"index": kind, "recall": round(found.tune(sample_QE), 4), "effort": found.effort}


def unit(vectors_NE: np.ndarray) -> np.ndarray:
    """The vectors with length 1, in one piece of memory: the given ones themselves where they are float32 already.
    A zero vector stays zero."""
    unit_NE = np.ascontiguousarray(vectors_NE, dtype=np.float32)
    norms_N = np.sqrt(np.einsum("ne,ne->n", unit_NE, unit_NE))
    unit_NE /= np.maximum(norms_N, 1e-12)[:, None]
    return unit_NE


class _Chunks:
    """Documents in float32, some at a time; where they are few, they are read once."""

    def __init__(self, rows_P: np.ndarray, vectors: Vectors) -> None:
        self.rows_P, self.vectors = rows_P, vectors
        width = vectors(rows_P[:1]).shape[1]
        self.size = max(1_024, CHUNK_BYTES // (4 * width))
        self._held = unit(vectors(rows_P)) if len(rows_P) <= self.size else None

    def __call__(self, start: int) -> np.ndarray:
        if self._held is not None:
            return self._held
        return unit(self.vectors(self.rows_P[start : start + self.size]))

    def starts(self) -> range:
        return range(0, len(self.rows_P), self.size)


class Exact:
    """Every document compared, by FAISS."""

    def __init__(self, rows_P: np.ndarray, vectors: Vectors) -> None:
        self._chunks = _Chunks(rows_P, vectors)

    def nearest(self, query_QE: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Search`."""
        import faiss

        starts = self._chunks.starts()
        if len(starts) == 1:
            scores, places = faiss.knn(query_QE, self._chunks(0), k, metric=faiss.METRIC_INNER_PRODUCT)
            return scores, places
        best = faiss.ResultHeap(len(query_QE), k, keep_max=True)
        for start in starts:
            documents = self._chunks(start)
            scores, places = faiss.knn(query_QE, documents, min(k, len(documents)), metric=faiss.METRIC_INNER_PRODUCT)
            best.add_result(scores, places + start)
        best.finalize()
        return best.D, best.I


class OnDevice:
    """Every document compared, by torch on a GPU; where they fit, they lie there."""

    def __init__(self, rows_P: np.ndarray, vectors: Vectors, device: str) -> None:
        self._chunks, self._device = _Chunks(rows_P, vectors), device
        width = self._chunks(0).shape[1]
        fit = 4 * width * len(rows_P) <= HELD_SHARE * _free_bytes(device)
        self._held = {start: self._there(start) for start in self._chunks.starts()} if fit else {}

    def _there(self, start: int) -> Any:
        import torch

        return torch.from_numpy(self._chunks(start)).to(self._device)

    def nearest(self, query_QE: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Search`."""
        import torch

        query = torch.from_numpy(query_QE).to(self._device)
        best_scores, best_places = query.new_empty(len(query), 0), query.new_empty(len(query), 0, dtype=torch.int64)
        for start in self._chunks.starts():
            documents = self._held[start] if self._held else self._there(start)
            scores, places = (query @ documents.T).topk(min(k, len(documents)))
            scores, places = torch.cat([best_scores, scores], 1), torch.cat([best_places, places + start], 1)
            best_scores, order = scores.topk(min(k, scores.shape[1]))
            best_places = places.gather(1, order)
        missing = k - best_scores.shape[1]
        best_scores = torch.nn.functional.pad(best_scores, (0, missing), value=-torch.inf)
        best_places = torch.nn.functional.pad(best_places, (0, missing), value=-1)
        return best_scores.cpu().numpy(), best_places.cpu().numpy()


def _free_bytes(device: str) -> float:
    """Of a GPU's memory."""
    import torch

    return float(torch.cuda.mem_get_info(device)[0]) if torch.device(device).type == "cuda" else 0.0


class Approximate:
    """Inverted lists (`ivf`) or a graph (`hnsw`) over vectors in float16, which is what the store holds."""

    def __init__(self, rows_P: np.ndarray, vectors: Vectors, kind: Literal["ivf", "hnsw"]) -> None:
        import faiss

        self._chunks = chunks = _Chunks(rows_P, vectors)
        width = chunks(0).shape[1]
        # 4 sqrt(P) lists is FAISS's own advice below a million documents; each wants LIST_POINTS to be fitted to.
        lists = max(1, min(int(4 * np.sqrt(len(rows_P))), len(rows_P) // LIST_POINTS))
        name = f"IVF{lists},SQfp16" if kind == "ivf" else f"HNSW{GRAPH_LINKS},SQfp16"
        self._index = faiss.index_factory(width, name, faiss.METRIC_INNER_PRODUCT)
        self._effort_name = "nprobe" if kind == "ivf" else "efSearch"
        self.effort = 8 if kind == "ivf" else 2 * RECALL_NEAREST
        """Lists looked into, or nodes kept in the walk."""
        step = max(1, len(rows_P) // (LIST_POINTS * lists))
        self._index.train(unit(vectors(rows_P[::step][: LIST_POINTS * lists])))
        for start in chunks.starts():
            self._index.add(chunks(start))

    def tune(self, query_QE: np.ndarray) -> float:
        """Double the effort until RECALL of a sample's nearest are found; returns the share that is."""
        k = min(RECALL_NEAREST, len(self._chunks.rows_P))
        true = Exact(self._chunks.rows_P, self._chunks.vectors).nearest(query_QE, k)[1]
        while True:
            found = self.nearest(query_QE, k)[1]
            recall = float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(true, found, strict=True)]))
            if recall >= RECALL or self.effort >= MOST_EFFORT:
                return recall
            self.effort *= 2

    def nearest(self, query_QE: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Search`."""
        import faiss

        faiss.ParameterSpace().set_index_parameter(self._index, self._effort_name, max(self.effort, 1))
        scores, places = self._index.search(query_QE, k)
        return scores, places

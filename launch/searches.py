"""A few searches with the finished model, so that a person sees what it does before reading any score."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from embedding.embedder import Embedder

MAX_DOCUMENTS = 20_000
"""Documents searched at most: examples must not cost more than the evaluation."""


def example_searches(
    model: Embedder, retrieval: Path, instruction: str, queries: Sequence[str] = (), top: int = 3
) -> dict[str, Any]:
    """Search the corpus of a retrieval folder (corpus, queries, qrels as Parquet); the best hits as JSON values.

    Without `queries`, three of the folder's own are taken, evenly spaced: then a hit also says whether it is relevant.
    """
    corpus = pq.read_table(retrieval / "corpus.parquet").slice(0, MAX_DOCUMENTS).to_pydict()
    ids = corpus["id"]
    titles = corpus.get("title", [""] * len(ids))
    texts = [f"{title} {text}".strip() for title, text in zip(titles, corpus["text"], strict=True)]
    asked = [(query, None) for query in queries] or _own_queries(retrieval)
    documents_KD = model.encode(texts)
    queries_BD = model.encode([query for query, _ in asked], instruction=instruction, role="query")
    searches = []
    for (query, relevant), scores_K in zip(asked, queries_BD @ documents_KD.T, strict=True):
        hits = []
        for k in np.argsort(-scores_K, kind="stable")[:top]:
            hit = {"id": ids[k], "score": round(float(scores_K[k]), 4), "text": texts[k]}
            hits.append(hit if relevant is None else hit | {"relevant": ids[k] in relevant})
        searches.append({"query": query, "hits": hits})
    return {"corpus": retrieval.name, "documents": len(texts), "instruction": instruction, "searches": searches}


def _own_queries(retrieval: Path) -> list[tuple[str, set[str] | None]]:
    """Three queries of the folder, each with the ids of its relevant documents."""
    relevant: dict[str, set[str]] = {}
    for row in pq.read_table(retrieval / "qrels.parquet").to_pylist():
        if row["score"] > 0:
            relevant.setdefault(row["query_id"], set()).add(row["doc_id"])
    rows = [row for row in pq.read_table(retrieval / "queries.parquet").to_pylist() if row["id"] in relevant]
    chosen = sorted({len(rows) // 6, len(rows) // 2, len(rows) * 5 // 6}) if rows else []
    return [(rows[i]["text"], relevant[rows[i]["id"]]) for i in chosen]

"""A few searches with the finished model, so that a person sees what it does before reading any score."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape

from embedding.embedder import Embedder

MAX_DOCUMENTS = 20_000
"""Documents searched at most: examples must not cost more than the evaluation."""


def example_searches(
    model: Embedder, retrieval: Path, instruction: str, queries: Sequence[str] = (), top: int = 3
) -> dict[str, Any]:
    """Search the corpus of a retrieval folder (corpus, queries, qrels as Parquet) and return the best hits as JSON values.

    Without `queries`, three of the folder's own are taken, evenly spaced: then a hit also says whether it is relevant.
    """
    corpus = pq.read_table(retrieval / "corpus.parquet").slice(0, MAX_DOCUMENTS).to_pydict()
    ids, bodies = corpus["id"], corpus["text"]
    texts = [f"{title} {text}".strip() for title, text in zip(corpus.get("title", [""] * len(ids)), bodies, strict=True)]
    relevant: dict[str, set[str]] = {}
    if not queries:
        asked = pq.read_table(retrieval / "queries.parquet").to_pydict()
        for row in pq.read_table(retrieval / "qrels.parquet").to_pylist():
            if row["score"] > 0:
                relevant.setdefault(row["query_id"], set()).add(row["doc_id"])
        count = len(asked["id"])
        chosen = sorted({count // 6, count // 2, count * 5 // 6})
        queries = [asked["text"][i] for i in chosen]
        answers = [relevant.get(asked["id"][i], set()) for i in chosen]
    else:
        answers = [set() for _ in queries]
    documents_KD = model.encode(texts)
    queries_BD = model.encode(list(queries), instruction=instruction, role="query")
    scores_BK = queries_BD @ documents_KD.T
    searches = []
    for query, answer, scores_K in zip(queries, answers, scores_BK, strict=True):
        best = np.argsort(-scores_K, kind="stable")[:top]
        hits = [
            {
                "id": ids[k],
                "score": round(float(scores_K[k]), 4),
                "text": texts[k],
                **({"relevant": ids[k] in answer} if answer else {}),
            }
            for k in best
        ]
        searches.append({"query": query, "hits": hits})
    return {"corpus": retrieval.name, "documents": len(texts), "instruction": instruction, "searches": searches}


def print_searches(found: dict[str, Any], console: Console) -> None:
    """Print each query with its hits, a line each."""
    console.print(f"\n[bold]Searches[/] among {found['documents']:,} held-out documents ({escape(found['corpus'])})")
    for search in found["searches"]:
        console.print(f"\n  [bold]{escape(_line(search['query'], 110))}[/]", highlight=False)
        for rank, hit in enumerate(search["hits"], start=1):
            mark = "[green]✓[/] " if hit.get("relevant") else ""
            text = escape(_line(f"{hit['id']}: {hit['text']}", 100))
            console.print(f"    {rank}. [cyan]{hit['score']:.3f}[/]  {mark}{text}", highlight=False)


def _line(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"

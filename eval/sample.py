"""Smaller searches that stay hard: which queries and documents are kept of a corpus too large for a quick look.

Documents drawn at random are easy to tell from the right one, so a score on them says little. Those that look most like
a query (and those that somebody judged and found wrong) are kept before any others.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

Relevance = Mapping[str, Mapping[str, int]]
"""Query ID -> document ID -> grade; a grade of 0 is a judgement too."""
CHUNK = 64
"""Queries compared with the whole corpus at once."""
CANDIDATES = 10
"""A query that comes with its own candidates keeps so many of them, however few are asked for: among the right ones
alone every model is perfect."""


def draw(candidates: Iterable[int], n: int | None, seed: int) -> list[int]:
    """At most `n` of the candidates without replacement, in their order."""
    pool = np.asarray(list(candidates), dtype=np.int64)
    if n is None or len(pool) <= n:
        return [int(i) for i in pool]
    return [int(i) for i in np.sort(np.random.default_rng(seed).choice(pool, n, replace=False))]


def lexical_order(queries: Sequence[str], documents: Sequence[str], top: int) -> np.ndarray:
    """The `top` documents of each query by the cosine of TF-IDF vectors, best first: int64 [Q, top].

    Features are groups of 2 to 4 characters within words, which needs no knowledge of the language.
    """
    hashing = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), n_features=2**18, alternate_sign=False)
    weigh = TfidfTransformer(sublinear_tf=True)
    documents_KF = weigh.fit_transform(hashing.transform(documents))
    queries_QF = weigh.transform(hashing.transform(queries))
    found = []
    for start in range(0, len(queries), CHUNK):
        scores_QK = (queries_QF[start : start + CHUNK] @ documents_KF.T).toarray()
        found.append(np.argsort(-scores_QK, axis=1, kind="stable")[:, :top])
    return np.concatenate(found)


def keep_documents(
    queries: Mapping[str, str], documents: Mapping[str, str], relevance: Relevance, most: int | None, seed: int
) -> list[str]:
    """At most `most` documents in the order of the corpus: the relevant ones (always), judged ones, the ones most like
    each query in turn, and for what room is left a draw of the others.

    Args:
        queries: ID -> text of the queries that stay.
        documents: ID -> text of the corpus.
    """
    if most is None or len(documents) <= most:
        return list(documents)
    grades = [(doc, grade) for query in queries for doc, grade in relevance.get(query, {}).items() if doc in documents]
    kept = dict.fromkeys(doc for doc, grade in grades if grade > 0)
    hard = list(dict.fromkeys(doc for doc, grade in grades if grade <= 0 and doc not in kept))
    ids = list(documents)
    if len(kept) + len(hard) < most:
        near_QK = lexical_order(list(queries.values()), list(documents.values()), 1 + most // max(1, len(queries)))
        hard += [ids[k] for k in near_QK.T.ravel()]
    for doc in hard:
        if len(kept) >= most:
            break
        kept[doc] = None
    rest = [i for i, doc in enumerate(ids) if doc not in kept]
    kept |= dict.fromkeys(ids[i] for i in draw(rest, max(0, most - len(kept)), seed))
    return [doc for doc in ids if doc in kept]


def smaller_search(
    split: Any, queries: int | None, documents: int | None, seed: int, question: Callable[[str], str] = str
) -> dict[str, Any]:
    """A split of one of mteb's search tasks with at most so many queries and documents.

    Where each query comes with its own candidates, they all stay with it while there is room; beyond that, each keeps
    its judged ones and those most like it, CANDIDATES at least.

    Args:
        question: of a query's ID; queries of one question keep the same candidates.
    """
    relevance: Relevance = split["relevant_docs"]
    columns = split["queries"].to_dict()
    usable = [i for i, query in enumerate(columns["id"]) if any(g > 0 for g in relevance.get(query, {}).values())]
    rows = draw(usable, queries, seed)
    asked = {columns["id"][i]: str(columns["text"][i]) for i in rows}
    corpus = split["corpus"].to_dict()
    titles = corpus.get("title") or [""] * len(corpus["id"])
    texts = {
        doc: f"{title or ''} {text}".strip()
        for doc, title, text in zip(corpus["id"], titles, corpus["text"], strict=True)
    }
    ranked = split["top_ranked"]
    if ranked:
        room = None if documents is None else max(CANDIDATES, documents // max(1, len(asked)))
        alike: dict[str, list[str]] = {}
        for query in asked:
            if query in ranked:
                alike.setdefault(question(query), []).append(query)
        kept_by: dict[str, list[str]] = {}
        for together in alike.values():
            theirs = dict.fromkeys(doc for query in together for doc in ranked[query] if doc in texts)
            some = {query: asked[query] for query in together}
            kept_by |= dict.fromkeys(together, keep_documents(some, {d: texts[d] for d in theirs}, relevance, room, 0))
        own = {query: set(ranked[query]) for query in kept_by}
        ranked = {query: [doc for doc in found if doc in own[query]] for query, found in kept_by.items()}
        wanted = {doc for found in ranked.values() for doc in found}
        kept = [doc for doc in texts if doc in wanted]
    else:
        kept = keep_documents(asked, texts, relevance, documents, seed)
    place = {doc: i for i, doc in enumerate(corpus["id"])}
    known = set(kept)
    judged = {
        query: {doc: grade for doc, grade in relevance[query].items() if doc in known or grade > 0} for query in asked
    }
    return {
        "corpus": split["corpus"].select([place[doc] for doc in kept]),
        "queries": split["queries"].select(rows),
        "relevant_docs": judged,
        "top_ranked": ranked,
    }

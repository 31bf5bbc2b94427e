"""What to look at beside the scores: a map of the same texts by two models, and the queries on which one lost most.

A look at one model is small enough to be kept with its scores; two looks are put side by side for the report.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial import procrustes  # type: ignore[import-untyped]
from sklearn.decomposition import PCA

from eval.evaluate import Encoded
from eval.suite import Suite, SuiteTask

Look = dict[str, Any]
"""JSON: {map: {task, rows, points [n][2]}, searches: {task: {ranks, best}}}: for each query the rank (from 1) of its
first relevant document (0: the corpus has none), and the row in the corpus of the document that came first."""
POINTS = 240
"""Texts of a map: more would cover each other."""
LABELS = 6
"""Labels of a map that get a colour, the most frequent ones."""
WORST = 8
QUERIES, DOCUMENTS = 2_000, 20_000
"""A larger search is not looked at: its similarities would cost more than the evaluation."""
SHOWN = 320
"""Characters of a text in the report."""


def look(encoded: Encoded) -> Look:
    """What one model makes of the suite's texts."""
    searches = {}
    for entry in encoded.tasks:
        found = _search(encoded, entry) if entry.kind == "retrieval" else None
        if found is not None:
            searches[entry.name] = found
    return {"map": _map(encoded), "searches": searches}


def side_by_side(suite: Suite, teacher: Look, student: Look) -> dict[str, Any]:
    """Two looks at one suite: {map: {task, texts, labels, teacher, student} or None, regressions: [...]}.

    The student's map is moved, turned and scaled onto the teacher's (Procrustes), because the directions of principal
    components mean nothing by themselves. A regression is a query whose relevant document fell; they are ordered by
    what its reciprocal rank lost.
    """
    entries = {entry.name: entry for entry in suite.tasks}
    regressions: list[dict[str, Any]] = []
    for name, of in teacher["searches"].items():
        if name in student["searches"] and name in entries:
            regressions += _regressions(entries[name], of, student["searches"][name])
    regressions.sort(key=lambda row: row["lost"], reverse=True)
    return {"map": _maps(entries, teacher["map"], student["map"]), "regressions": regressions[:WORST]}


def _map(encoded: Encoded) -> dict[str, Any] | None:
    """The first two principal components (scikit-learn's PCA) of the texts of the first task that has labels."""
    for entry in sorted(encoded.tasks, key=lambda e: e.kind != "clustering"):
        labelled = _labelled(entry)
        if labelled is None:
            continue
        texts, _ = labelled
        rows = np.unique(np.linspace(0, len(texts) - 1, POINTS).astype(int))
        found = encoded.table.find(encoded.prompts[entry.name]["query"], [texts[row] for row in rows])
        vectors = encoded.table.values[found]
        if len(rows) < 3 or (found < 0).any() or not np.isfinite(vectors).all():
            continue
        points = PCA(n_components=2, svd_solver="full").fit_transform(vectors)
        return {"task": entry.name, "rows": rows.tolist(), "points": np.round(points, 4).tolist()}
    return None


def _maps(entries: dict[str, SuiteTask], teacher: Any, student: Any) -> dict[str, Any] | None:
    if not teacher or not student or teacher["rows"] != student["rows"] or teacher["task"] != student["task"]:
        return None
    labelled = _labelled(entries[teacher["task"]])
    if labelled is None:
        return None
    texts, labels = labelled
    try:
        a_N2, b_N2, _ = procrustes(np.asarray(teacher["points"]), np.asarray(student["points"]))
    except ValueError:  # all points of one model are the same
        return None
    chosen = [labels[row] for row in teacher["rows"]]
    frequent = sorted(set(chosen), key=lambda label: (-chosen.count(label), label))[:LABELS]
    return {
        "task": teacher["task"],
        "texts": [_short(texts[row], 120) for row in teacher["rows"]],
        "labels": [label if label in frequent else "" for label in chosen],
        "names": frequent,
        "teacher": np.round(a_N2, 4).tolist(),
        "student": np.round(b_N2, 4).tolist(),
    }


def _labelled(entry: SuiteTask) -> tuple[list[str], list[str]] | None:
    """Texts and labels of a task that says of each text which one label it has."""
    task: Any = entry.task
    data = task.dataset
    if entry.kind not in ("clustering", "classification") or data is None or "test" not in data:
        return None
    columns = (task.input_column_name, task.label_column_name)
    if not all(column in getattr(data["test"], "column_names", ()) for column in columns):
        return None
    texts, labels = (list(data["test"][name]) for name in columns)
    if not all(isinstance(text, str) for text in texts[:1]) or not all(isinstance(v, str | int) for v in labels[:1]):
        return None
    return texts, [str(label) for label in labels]


def _split(entry: SuiteTask) -> Any:
    """The search of a task with a single one, not too large to look at; else None."""
    splits = [split for subset in entry.task.dataset.values() for split in subset.values()]  # type: ignore[union-attr]
    if len(splits) != 1 or len(splits[0]["corpus"]) > DOCUMENTS or len(splits[0]["queries"]) > QUERIES:
        return None
    return splits[0]


def _corpus(split: Any) -> tuple[list[str], list[str]]:
    columns = split["corpus"].to_dict()
    titles = columns.get("title") or [""] * len(columns["id"])
    texts = [f"{title or ''} {text}".strip() for title, text in zip(titles, columns["text"], strict=True)]
    return list(columns["id"]), texts


def _search(encoded: Encoded, entry: SuiteTask) -> dict[str, Any] | None:
    split = _split(entry)
    if split is None:
        return None
    prompts, (ids, texts) = encoded.prompts[entry.name], _corpus(split)
    documents = encoded.table.find(prompts["document"], texts)
    queries = encoded.table.find(prompts["query"], list(split["queries"]["text"]))
    vectors = encoded.table.values
    if (documents < 0).any() or (queries < 0).any() or not np.isfinite(vectors).all():
        return None
    place = {doc: row for row, doc in enumerate(ids)}
    ranks, best = [], []
    for query, scores_K in zip(split["queries"]["id"], vectors[queries] @ vectors[documents].T, strict=True):
        right = _right(entry, split, query, place)
        if _leaves_out_itself(entry) and query in place:
            scores_K[place[query]] = -np.inf
        ranks.append(1 + int((scores_K > scores_K[right].max()).sum()) if right else 0)
        best.append(int(np.argmax(scores_K)))
    return {"ranks": ranks, "best": best}


def _right(entry: SuiteTask, split: Any, query: str, place: dict[str, int]) -> list[int]:
    """Rows of the relevant documents that can be found: mteb's ArguAna judges a few that its corpus does not have."""
    judged = split["relevant_docs"].get(query, {})
    itself = query if _leaves_out_itself(entry) else None
    return [place[doc] for doc, grade in judged.items() if grade > 0 and doc in place and doc != itself]


def _leaves_out_itself(entry: SuiteTask) -> bool:
    """Whether mteb leaves the document whose ID is the query's out of what is found: there it is the same text."""
    return bool(getattr(entry.task, "ignore_identical_ids", False))


def _regressions(entry: SuiteTask, teacher: Any, student: Any) -> list[dict[str, Any]]:
    split = _split(entry)
    if split is None or len(teacher["ranks"]) != len(student["ranks"]):
        return []
    ids, texts = _corpus(split)
    place = {doc: row for row, doc in enumerate(ids)}
    asked, names = list(split["queries"]["text"]), list(split["queries"]["id"])
    found = []
    for at, (before, after) in enumerate(zip(teacher["ranks"], student["ranks"], strict=True)):
        if not 0 < before < after:
            continue
        right = _right(entry, split, names[at], place)
        found.append(
            {
                "task": entry.name,
                "query": _short(asked[at], SHOWN),
                "lost": 1 / before - 1 / after,
                "ranks": {"teacher": before, "student": after},
                "right": _texts(texts, right[:1]),
                "teacher": _texts(texts, [teacher["best"][at]]),
                "student": _texts(texts, [student["best"][at]]),
            }
        )
    return found


def _texts(texts: Sequence[str], rows: Sequence[int]) -> str:
    return " ".join(_short(texts[row], SHOWN) for row in rows)


def _short(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"

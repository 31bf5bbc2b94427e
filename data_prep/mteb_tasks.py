"""Training splits of mteb's own tasks as records. What a task's data is called and how it is changed when it is loaded
is mteb's affair: its classes load it, at the commit that its metadata names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.readers import UNREADABLE
from data_prep.rows import Record
from embedding.config import suggest
from embedding.hub import cache_of

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

PAIRED = {"query": "query", "positive": "positive"}
TYPES: dict[str, dict[str, Any]] = {
    "Classification": {"text": "text", "label": "label"},
    "STS": {**PAIRED, "score": "score", "symmetric": True},
    "PairClassification": {**PAIRED, "symmetric": True},
    "BitextMining": {**PAIRED, "symmetric": True},
    "Retrieval": {**PAIRED, "negative": "negative"},
    "Reranking": {**PAIRED, "negative": "negative"},
}
"""How a row of each type of task is mapped. Pairs that a pair classification calls different are no rows."""


def task_settings(name: str) -> dict[str, Any]:
    """What a source takes over from a task: mapping, revision, instruction.

    Raises:
        ValueError: no such task, or one of a type that is no training data.
    """
    task = _find(name)
    prompt: Any = task.metadata.prompt or task.abstask_prompt
    instruction = prompt.get("query", "") if isinstance(prompt, Mapping) else prompt or ""
    source = task.metadata.dataset
    return {"revision": source["revision"], "instruction": instruction, **TYPES[task.metadata.type]}


def task_folder(name: str, mirror: str | None) -> Path | None:
    """The folder of a copy of the task's data set; None: the hub's.

    Raises:
        ValueError: the copy is not there.
    """
    if mirror is None:
        return None
    folder = Path(mirror) / str(_find(name).metadata.dataset["path"])
    if not folder.is_dir():
        raise ValueError(f"{folder}: no copy of the data set there")
    return folder


def read_task(name: str, split: str, subset: str | None, revision: str, mirror: str | None) -> Iterator[Record]:
    """The rows of a split of a task.

    Args:
        mirror: a folder of copies of the hub's data sets; None: the hub.

    Raises:
        ValueError: the data cannot be loaded, or has no such split or subset.
    """
    from datasets.exceptions import DatasetsError

    task = _find(name)
    subsets = list(task.hf_subsets)
    if task.metadata.is_multilingual and subset not in subsets:
        close = suggest(subset, subsets) if subset else f": {', '.join(subsets)}"
        raise ValueError(f"{name}: set `subset` to one of its subsets{close}")
    folder = task_folder(name, mirror)
    source = {**task.metadata.dataset, "revision": revision}
    if folder is not None:
        source["path"] = str(folder)
    task.metadata = task.metadata.model_copy(update={"dataset": source})
    if subset is not None:
        task.hf_subsets = [subset]
    place = "/".join(filter(None, (name, subset, split)))
    errors: tuple[type[BaseException], ...] = (*UNREADABLE, DatasetsError)
    searches = task.metadata.type in ("Retrieval", "Reranking")
    with cache_of(folder):
        try:
            rows = _judged(source, split, subset) if searches else _rows(task, split, subset)
        except errors as error:
            raise ValueError(f"{place}: cannot be loaded: {' '.join(str(error).split())[:200]}") from None
    for number, values in enumerate(rows, start=1):
        yield Record(f"{place} row {number}", values)


def _find(name: str) -> AbsTask:
    import mteb

    if name not in _names():
        raise ValueError(f"mteb has no task {name!r}{suggest(name, _names())}")
    task = mteb.get_task(name)
    if task.metadata.type not in TYPES:
        found = task.metadata.type
        raise ValueError(f"mteb's task {name} is of type {found}, which is no training data; {', '.join(TYPES)} are")
    return task


@cache
def _names() -> list[str]:
    """The names of all tasks. Listing them makes an object of each: once is enough."""
    import mteb

    return sorted({task.metadata.name for task in mteb.get_tasks(exclude_superseded=False)})


def _rows(task: Any, split: str, subset: str | None) -> Iterator[dict[str, Any]]:
    """The rows of a task whose data is a table for each split."""
    task.load_data()
    data = task.dataset if subset is None or subset not in task.dataset else task.dataset[subset]
    if split not in data:
        raise ValueError(f"no split {split!r}{suggest(split, list(data))}")
    table = data[split]
    kind = task.metadata.type
    if kind == "Classification":
        columns = {"text": task.input_column_name, "label": task.label_column_name}
    elif kind == "STS":
        columns = {"query": task.column_names[0], "positive": task.column_names[1], "score": "score"}
    elif kind == "BitextMining":
        columns = {"query": "sentence1", "positive": "sentence2"}
    else:
        columns = {
            "query": task.input1_column_name,
            "positive": task.input2_column_name,
            "same": task.label_column_name,
        }
    if missing := [column for column in columns.values() if column not in table.column_names]:
        raise ValueError(f"no column {missing[0]!r}; columns: {', '.join(table.column_names)}")
    return _renamed(table, columns)


def _renamed(table: Any, columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for whole in table:
        values = {name: whole[column] for name, column in columns.items()}
        # mteb's older pair sets hold all their pairs in one row
        many = isinstance(next(iter(values.values())), list)
        rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)] if many else [values]
        for row in rows:
            if "label" in row:
                row["label"] = str(row["label"])
            if int(row.pop("same", 1)) == 1:
                yield row


def _judged(source: Mapping[str, Any], split: str, subset: str | None) -> Iterator[dict[str, Any]]:
    """The judged queries of a search task, in the order of the queries; documents judged 0 or less are negatives."""
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalDatasetLoader

    loader = RetrievalDatasetLoader(source["path"], source["revision"], split=split, config=subset or "default")
    data = loader.load()
    judged = data["relevant_docs"]
    wanted = {document for documents in judged.values() for document in documents}
    documents: dict[str, str] = {}
    for row in data["corpus"]:
        if row["id"] in wanted:
            parts = (row.get("title") or "", row["text"])
            documents[row["id"]] = " ".join(part for part in parts if part.strip())
    return _answered(data["queries"], judged, documents)


def _answered(
    queries: Any, judged: Mapping[str, Mapping[str, int]], documents: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    for query in queries:
        scores: dict[str, int] = {}
        for doc, score in judged[query["id"]].items():
            if doc in documents:  # two documents may have one text: it answers where either does
                text = documents[doc]
                scores[text] = max(score, scores.get(text, score))
        positives = [text for text, score in scores.items() if score > 0]
        negatives = [text for text, score in scores.items() if score <= 0]
        yield {"query": query["text"], "positive": positives, "negative": negatives}

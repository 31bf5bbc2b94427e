"""mteb's own task objects over local tables: each builder reads one entry of a folder and fills a task class with it.

Only the data comes from here. Splits, sampling, classifiers, seeds and metrics are the ones of the mteb class.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTask, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.clustering import AbsTaskClustering
from mteb.abstasks.multilabel_classification import AbsTaskMultilabelClassification
from mteb.abstasks.pair_classification import AbsTaskPairClassification
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.text.bitext_mining import AbsTaskBitextMining

from eval.instructed import InstructionReranking
from eval.kinds import KINDS, Kind
from eval.sample import draw, keep_documents
from eval.tables import Shape, labels, read_table, some, texts

CLUSTERED_DOCUMENTS = 2048
"""Documents a clustering task embeds and draws in each of its ten experiments (mteb's recent tasks embed as many)."""


class Limits(NamedTuple):
    """Upper bounds for a smaller suite; None keeps everything. What stays is drawn with the seed, in file order."""

    rows: int | None = None
    """Rows of a flat set (per language pair for bitext), or queries."""
    documents: int | None = None
    """Documents of a retrieval corpus; those relevant to a kept query always stay, then those judged and found wrong,
    then those most like the queries."""
    seed: int = 42


class Data(NamedTuple):
    """What a builder hands to `make_task`."""

    base: type[AbsTask]
    dataset: Any
    """subset -> split -> rows, or split -> rows, as the mteb class wants it."""
    subsets: list[str] | None = None
    attributes: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple's default is never mutated here


class Columns(Dataset):  # type: ignore[misc]
    """A Dataset whose columns are plain lists. mteb indexes and iterates label columns row by row, which on the lazy
    columns of `datasets` costs more than everything else in a classification task."""

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str) and self._indices is None:
            return self.data.table[key].to_pylist()
        return super().__getitem__(key)


def make_task(kind: Kind, name: str, path: Path, limits: Limits, seed: int) -> AbsTask:
    """The mteb task `name` of a kind with its data loaded from `path`.

    Raises:
        ValueError: the data cannot give a score; the message names the file and what is wrong with it.
    """
    facts = KINDS[kind]
    labelled = kind in ("classification", "multilabel_classification", "clustering")
    data = BUILDERS[kind](path, limits)
    language = ["und-Zyyy"]  # mteb wants a code; local data may be in any language
    metadata = TaskMetadata(
        name=name,
        description=f"{facts.title} over local data.",
        dataset={"path": name, "revision": "local"},
        type=facts.mteb_type,
        category="t2c" if labelled else "t2t",
        eval_langs=dict.fromkeys(data.subsets, language) if data.subsets else language,
        main_score=facts.metric,
    )
    task: AbsTask = type(kind, (data.base,), {"metadata": metadata, **data.attributes})(seed=seed)
    task.dataset = data.dataset
    task.data_loaded = True
    return task


# ---------------------------------------------------------------------------------------------- queries and documents


def _retrieval(path: Path, limits: Limits) -> Data:
    queries = read_table(path / "queries.parquet", {"id": "text", "text": "text"})
    corpus = read_table(path / "corpus.parquet", {"id": "text", "text": "text"}, {"title": "text"})
    qrels = read_table(path / "qrels.parquet", {"query_id": "text", "doc_id": "text", "score": "number"})
    query_ids, doc_ids = texts(queries, "id"), texts(corpus, "id")
    for ids, file in ((query_ids, "queries.parquet"), (doc_ids, "corpus.parquet")):
        if len(set(ids)) < len(ids):
            twice = {i for i in ids if ids.count(i) > 1} if len(ids) < 10_000 else set()
            raise ValueError(f"{path / file}: ids must be unique; repeated: {some(twice) or 'some'}")
    judged: dict[str, dict[str, int]] = {}
    for at, row in enumerate(qrels.to_pylist()):
        if not float(row["score"]).is_integer():
            raise ValueError(
                f"{path / 'qrels.parquet'}: row {at}: the score is {row['score']}, expected a whole number (0: judged "
                "and not relevant); choose from where a graded score counts as relevant, and write whole grades"
            )
        grades = judged.setdefault(row["query_id"], {})
        if row["score"] > 0 or row["doc_id"] not in grades:  # of a pair that is judged twice, that it is right counts
            grades[row["doc_id"]] = int(row["score"])
    right = {query: {doc: grade for doc, grade in docs.items() if grade > 0} for query, docs in judged.items()}
    relevant = {query: docs for query, docs in right.items() if docs}
    for named, known, what in (
        (set(relevant), set(query_ids), "queries"),
        ({d for docs in relevant.values() for d in docs}, set(doc_ids), "documents"),
    ):
        if strangers := named - known:
            raise ValueError(f"{path / 'qrels.parquet'}: names {what} that do not exist: {some(strangers)}")
    kept_queries = draw([i for i, q in enumerate(query_ids) if q in relevant], limits.rows, limits.seed)
    if not kept_queries:
        raise ValueError(f"{path / 'qrels.parquet'}: no query has a relevant document (a row with score > 0)")
    relevant = {query_ids[i]: relevant[query_ids[i]] for i in kept_queries}
    titles = texts(corpus, "title") if "title" in corpus.column_names else [""] * len(doc_ids)
    bodies, asked = texts(corpus, "text"), texts(queries, "text")
    whole = {d: f"{title} {body}" for d, title, body in zip(doc_ids, titles, bodies, strict=True)}
    kept = {query_ids[i]: asked[i] for i in kept_queries}
    known = set(keep_documents(kept, whole, judged, limits.documents, limits.seed))
    kept_docs = [i for i, d in enumerate(doc_ids) if d in known]
    return _search(
        AbsTaskRetrieval,
        [(query_ids[i], asked[i], None) for i in kept_queries],
        [(doc_ids[i], titles[i], bodies[i]) for i in kept_docs],
        relevant,
    )


def _reranking(path: Path, limits: Limits) -> Data:
    table = read_table(path, {"query": "text", "positive": "texts", "negative": "texts"})
    rows = table.to_pylist()
    # mteb leaves out the queries that have nothing to tell apart
    usable = [i for i, row in enumerate(rows) if row["positive"] and row["negative"]]
    if not usable:
        raise ValueError(f"{path}: no row has both positive and negative documents")
    queries, documents, relevant, ranked = [], [], {}, {}
    for i in draw(usable, limits.rows, limits.seed):
        query = f"test_query{i}"
        # mteb's ids: positives sort first when scores tie, as in its reranking tasks
        named = [(f"apositive_{query}_{n:05}", text, 1) for n, text in enumerate(rows[i]["positive"])]
        named += [(f"negative_{query}_{n:05}", text, 0) for n, text in enumerate(rows[i]["negative"])]
        queries.append((query, rows[i]["query"], None))
        documents += [(doc, "", text) for doc, text, _ in named]
        relevant[query] = {doc: grade for doc, _, grade in named}
        ranked[query] = [doc for doc, _, _ in named]
    return _search(AbsTaskRetrieval, queries, documents, relevant, ranked)


def _instruction_reranking(path: Path, limits: Limits) -> Data:
    """Pairs of instructions for one query: `dropped` documents are relevant under the first, not under the second."""
    lists: dict[str, Shape] = {"positive": "texts", "dropped": "texts", "negative": "texts"}
    table = read_table(path, {"query": "text", "instruction": "text", "changed_instruction": "text", **lists})
    rows = table.to_pylist()
    usable = [i for i, row in enumerate(rows) if row["positive"] and row["dropped"] and row["negative"]]
    if not usable:
        raise ValueError(f"{path}: no row has positive, dropped and negative documents")
    queries, documents, relevant, ranked, changed = [], [], {}, {}, {}
    for i in draw(usable, limits.rows, limits.seed):
        row, query = rows[i], f"query{i}"
        groups = {name: [f"{name}_{query}_{n:05}" for n in range(len(row[name]))] for name in lists}
        for name, ids in groups.items():
            documents += [(doc, "", text) for doc, text in zip(ids, row[name], strict=True)]
        everything = [doc for ids in groups.values() for doc in ids]
        for side, instruction, right in (
            ("og", row["instruction"], [*groups["positive"], *groups["dropped"]]),
            ("changed", row["changed_instruction"], groups["positive"]),
        ):
            queries.append((f"{query}-{side}", row["query"], instruction))
            relevant[f"{query}-{side}"] = {doc: int(doc in set(right)) for doc in everything}
            ranked[f"{query}-{side}"] = everything
        changed[query] = groups["dropped"]
    data = _search(InstructionReranking, queries, documents, relevant, ranked)
    return data._replace(attributes={"changed_relevance": changed})


def _search(
    base: type[AbsTask],
    queries: Sequence[tuple[str, str, str | None]],
    documents: Sequence[tuple[str, str, str]],
    relevant: dict[str, dict[str, int]],
    ranked: dict[str, list[str]] | None = None,
) -> Data:
    query_ids, asked, instructions = zip(*queries, strict=True)
    doc_ids, titles, bodies = zip(*documents, strict=True)
    columns = {"id": list(query_ids), "text": list(asked)}
    if any(instructions):
        columns["instruction"] = list(instructions)
    split = {
        "corpus": Columns.from_dict({"id": list(doc_ids), "title": list(titles), "text": list(bodies)}),
        "queries": Columns.from_dict(columns),
        "relevant_docs": relevant,
        "top_ranked": ranked,
    }
    return Data(base, {"default": {"test": split}})


# ------------------------------------------------------------------------------------------------------------- pairs


def _sts(path: Path, limits: Limits) -> Data:
    table = read_table(path, {"sentence1": "text", "sentence2": "text", "score": "number"})
    scores = np.asarray(table["score"].to_pylist(), dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ValueError(f"{path}: row {int(np.argmin(np.isfinite(scores)))}: the score is not a finite number")
    rows = draw(range(table.num_rows), limits.rows, limits.seed)
    if len(np.unique(scores[rows])) < 2:
        raise ValueError(f"{path}: all scores are {scores[0]:g}; a rank correlation needs at least two values")
    return Data(AbsTaskSTS, DatasetDict({"test": _rows(table, rows)}))


def _pair_classification(path: Path, limits: Limits) -> Data:
    table = read_table(path, {"sentence1": "text", "sentence2": "text", "label": "number"})
    found = set(table["label"].to_pylist())
    if found - {0, 1}:
        raise ValueError(f"{path}: labels must be 0 (different) or 1 (same), found {some(set(labels(found - {0, 1})))}")
    rows = draw(range(table.num_rows), limits.rows, limits.seed)
    data = _rows(table.rename_columns(["sentence1", "sentence2", "labels"]), rows)
    _two_classes(path, data["labels"])
    return Data(AbsTaskPairClassification, DatasetDict({"test": data}))


def _bitext(path: Path, limits: Limits) -> Data:
    table = read_table(path, {"sentence1": "text", "sentence2": "text"}, {"lang1": "text", "lang2": "text"})
    names = ["default"] * table.num_rows
    if {"lang1", "lang2"} <= set(table.column_names):
        names = [f"{a}-{b}" for a, b in zip(texts(table, "lang1"), texts(table, "lang2"), strict=True)]
    subsets: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        subsets.setdefault(name, []).append(row)
    if small := {name for name, rows in subsets.items() if len(rows) < 2}:
        raise ValueError(f"{path}: a language pair needs at least two rows to search among: {some(small)}")
    table = table.select(["sentence1", "sentence2"])
    drawn = {name: draw(rows, limits.rows, limits.seed) for name, rows in subsets.items()}
    dataset = {name: DatasetDict({"test": _rows(table, rows)}) for name, rows in drawn.items()}
    return Data(AbsTaskBitextMining, dataset, subsets=list(dataset))


# -------------------------------------------------------------------------------------------------------------- labels


def _classification(path: Path, limits: Limits) -> Data:
    """`path` is NAME.parquet; the files are NAME-train.parquet and NAME-test.parquet beside it."""
    splits = {}
    for split in ("train", "test"):
        table = read_table(_split(path, split), {"text": "text", "label": "label"})
        splits[split] = texts(table, "text"), labels(table["label"].to_pylist())
    classes = _two_classes(_split(path, "train"), splits["train"][1])
    if strange := set(splits["test"][1]) - set(classes):
        raise ValueError(f"{_split(path, 'test')}: labels that the train split does not have: {some(strange)}")
    rows = draw(range(len(splits["test"][0])), limits.rows, limits.seed)
    splits["test"] = [splits["test"][0][i] for i in rows], [splits["test"][1][i] for i in rows]
    code = {label: i for i, label in enumerate(classes)}
    dataset = {s: Columns.from_dict({"text": t, "label": [code[v] for v in y]}) for s, (t, y) in splits.items()}
    return Data(AbsTaskClassification, DatasetDict(dataset))


def _multilabel_classification(path: Path, limits: Limits) -> Data:
    splits = {}
    for split in ("train", "test"):
        table = read_table(_split(path, split), {"text": "text", "label": "texts"})
        rows = list(range(table.num_rows))
        splits[split] = _rows(table, rows if split == "train" else draw(rows, limits.rows, limits.seed))
    known = {label for row in splits["train"]["label"] for label in row}
    _two_classes(_split(path, "train"), known)
    if strange := {label for row in splits["test"]["label"] for label in row} - known:
        raise ValueError(f"{_split(path, 'test')}: labels that the train split does not have: {some(strange)}")
    return Data(AbsTaskMultilabelClassification, DatasetDict(splits))


def _clustering(path: Path, limits: Limits) -> Data:
    table = read_table(path, {"text": "text", "label": "label"})
    rows = draw(range(table.num_rows), limits.rows, limits.seed)
    all_texts, all_labels = texts(table, "text"), labels(table["label"].to_pylist())
    chosen = [all_labels[i] for i in rows]
    _two_classes(path, chosen)
    dataset = Columns.from_dict({"sentences": [all_texts[i] for i in rows], "labels": chosen})
    attributes = {
        "max_fraction_of_documents_to_embed": None,
        "max_document_to_embed": CLUSTERED_DOCUMENTS,
        "max_documents_per_cluster": CLUSTERED_DOCUMENTS,
    }
    return Data(AbsTaskClustering, DatasetDict({"test": dataset}), attributes=attributes)


# ------------------------------------------------------------------------------------------------------------- helpers


def _split(path: Path, split: str) -> Path:
    return path.with_name(f"{path.stem}-{split}.parquet")


def _two_classes(path: Path, found: Iterable[Any]) -> list[Any]:
    classes = sorted(set(found))
    if len(classes) < 2:
        raise ValueError(f"{path}: only one class ({some(set(labels(classes)))}); at least two are needed")
    return classes


def _rows(table: Any, rows: list[int]) -> Columns:
    rows_kept: Columns = Columns.from_dict(table.take(rows).to_pydict())
    return rows_kept


BUILDERS: dict[Kind, Callable[[Path, Limits], Data]] = {
    "retrieval": _retrieval,
    "reranking": _reranking,
    "instruction_reranking": _instruction_reranking,
    "sts": _sts,
    "pair_classification": _pair_classification,
    "classification": _classification,
    "multilabel_classification": _multilabel_classification,
    "clustering": _clustering,
    "bitext": _bitext,
}

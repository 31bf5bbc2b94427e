"""The held-out part of the training text as evaluation data: Parquet in one folder for each kind of task.

retrieval/NAME/{corpus,queries,qrels}.parquet      id, title, text | id, text | query_id, doc_id, score
reranking/NAME.parquet                             query, positive [texts], negative [texts]
pair_classification/NAME.parquet                   sentence1, sentence2, label
classification/NAME-{train,test}.parquet           text, label
clustering/NAME.parquet                            text, label
instructions.json                                  "kind/NAME" -> the instruction of the task's queries
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from data_prep.assemble import Pair
from data_prep.clean import digest, normal_form, order
from data_prep.docstrings import Docstring
from embedding.config import Config
from embedding.files import write_json

PACKAGE_INSTRUCTION = "Identify the Python package that a text documents"
RERANKED = 10
"""Documents of one reranking query, at most."""
CLASSES, TRAIN_PER_CLASS, TEST_PER_CLASS, FEWEST_TESTED = 12, 16, 32, 4
"""The package tasks: the most frequent packages; mteb's classification draws 8 training texts a class."""


class HeldoutConfig(Config):
    """How much of each source is kept from training and becomes evaluation data."""

    share: float = Field(default=0.05, ge=0.0, le=0.5)
    """Of the rows (docstrings: of the modules). 0: nothing is held out."""
    queries: int = Field(default=400, ge=1)
    """Queries of the retrieval task, at most."""
    documents: int = Field(default=1_000, ge=2)
    """Documents of the retrieval task, at most; all other tasks draw their texts from these."""


class Task(NamedTuple):
    """A task that was written: its rows, and the instruction of its queries ("": the default of its kind)."""

    rows: int
    instruction: str = ""


def write_pair_tasks(folder: Path, name: str, pairs: Sequence[Pair], instruction: str, queries: int) -> dict[str, Task]:
    """Write what can be asked of held-out pairs: an STS task where they are graded, else a retrieval task.

    Returns the tasks that were written, by kind; none for a single document or grade.
    """
    graded = [pair for pair in pairs if pair.score is not None]
    if graded:
        if len({pair.score for pair in graded}) < 2:
            return {}
        _write(
            folder / "sts" / f"{name}.parquet",
            sentence1=[pair.query for pair in graded],
            sentence2=[pair.document for pair in graded],
            score=[pair.score for pair in graded],
        )
        return {"sts": Task(len(graded), instruction)}
    if len({digest(pair.document) for pair in pairs}) < 2:
        return {}
    written = write_retrieval(folder, name, [(pair.query, pair.document) for pair in pairs], queries)
    return {"retrieval": Task(written, instruction)}


def write_retrieval(folder: Path, name: str, pairs: Sequence[tuple[str, str]], queries: int) -> int:
    """Write `retrieval/NAME`: the documents of all pairs, and the queries of a sample of them.

    Documents and queries that are equal in normal form are one; a query's relevant documents are those of all its
    pairs, so that no right answer counts as wrong.

    Returns the number of queries.
    """
    documents = {digest(document): document for _, document in reversed(pairs)}
    doc_ids = {key: f"d{i}" for i, key in enumerate(documents)}
    asked = {digest(query): query for query, _ in reversed(pairs)}
    chosen = sorted(asked, key=lambda key: order(0, str(key)))[:queries]
    query_ids = {key: f"q{i}" for i, key in enumerate(chosen)}
    judged = {(digest(query), digest(document)) for query, document in pairs}
    qrels = sorted((query_ids[q], doc_ids[d]) for q, d in judged if q in query_ids)
    target = folder / "retrieval" / name
    corpus = list(documents.values())
    _write(target / "corpus.parquet", id=list(doc_ids.values()), title=[""] * len(corpus), text=corpus)
    _write(target / "queries.parquet", id=list(query_ids.values()), text=[asked[key] for key in chosen])
    query_column, doc_column = [q for q, _ in qrels], [d for _, d in qrels]
    _write(target / "qrels.parquet", query_id=query_column, doc_id=doc_column, score=[1] * len(qrels))
    return len(chosen)


def write_docstring_tasks(
    folder: Path, name: str, docstrings: Sequence[Docstring], instruction: str, queries: int
) -> dict[str, Task]:
    """Write the five tasks over held-out docstrings; a task that the installed packages cannot fill is left out.

    Returns the tasks that were written, by kind.
    """
    if len(docstrings) < 2:
        return {}
    pairs = [(pair.summary, pair.body) for pair in docstrings]
    tasks = {"retrieval": Task(write_retrieval(folder, name, pairs, queries), instruction)}
    by_module: dict[str, list[Docstring]] = defaultdict(list)
    for pair in docstrings:
        by_module[pair.module].append(pair)
    with_siblings = [p for p in docstrings if _siblings(p, by_module)]
    chosen = sorted(with_siblings, key=lambda p: order(0, f"{p.module}:{p.name}"))[:queries]
    if chosen:
        siblings = [_siblings(pair, by_module) for pair in chosen]
        _write(
            folder / "reranking" / f"{name}.parquet",
            query=[pair.summary for pair in chosen],
            positive=[[pair.body] for pair in chosen],
            negative=[bodies[: RERANKED - 1] for bodies in siblings],
        )
        _write(
            folder / "pair_classification" / f"{name}.parquet",
            sentence1=[pair.summary for pair in chosen for _ in range(2)],
            sentence2=[text for pair, bodies in zip(chosen, siblings, strict=True) for text in (pair.body, bodies[0])],
            label=[1, 0] * len(chosen),
        )
        tasks |= {"reranking": Task(len(chosen), instruction), "pair_classification": Task(2 * len(chosen))}
    return tasks | _write_package_tasks(folder, name, docstrings)


def write_instructions(folder: Path, instructions: Mapping[str, str]) -> None:
    """Write the instructions of the tasks by `kind/NAME`; those without one get the default of their kind."""
    write_json(folder / "instructions.json", {task: text for task, text in instructions.items() if text})


def _siblings(pair: Docstring, by_module: Mapping[str, Sequence[Docstring]]) -> list[str]:
    """Bodies of the same module under another summary, nearest in the source first: the hard ones."""
    module = by_module[pair.module]
    place = module.index(pair)
    near = sorted(range(len(module)), key=lambda i: (abs(i - place), i))
    summary = normal_form(pair.summary)
    return [module[i].body for i in near if i != place and normal_form(module[i].summary) != summary]


def _write_package_tasks(folder: Path, name: str, docstrings: Sequence[Docstring]) -> dict[str, Task]:
    """Classification and clustering: which package does a text come from?

    Train and test come from different modules, since a module's texts repeat its subject.
    """
    train: dict[str, list[str]] = defaultdict(list)
    test: dict[str, list[str]] = defaultdict(list)
    for pair in docstrings:
        side, room = (train, TRAIN_PER_CLASS) if order(2, pair.module) % 2 else (test, TEST_PER_CLASS)
        if len(side[pair.package]) < room:
            side[pair.package].append(pair.body)
    sizes = Counter(
        {package: len(test[package]) for package, texts in train.items() if len(texts) >= TRAIN_PER_CLASS // 2}
    )
    classes = sorted(package for package, size in sizes.most_common(CLASSES) if size >= FEWEST_TESTED)
    if len(classes) < 2:
        return {}
    for file, side in ((f"{name}-train", train), (f"{name}-test", test)):
        _write_labelled(folder / "classification" / f"{file}.parquet", side, classes)
    _write_labelled(folder / "clustering" / f"{name}.parquet", test, classes)
    tested = sum(len(test[package]) for package in classes)
    return dict.fromkeys(("classification", "clustering"), Task(tested, PACKAGE_INSTRUCTION))


def _write_labelled(path: Path, texts: Mapping[str, Sequence[str]], classes: Sequence[str]) -> None:
    rows = [(text, label) for label in classes for text in texts[label]]
    _write(path, text=[text for text, _ in rows], label=[label for _, label in rows])


def _write(path: Path, **columns: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path, compression="zstd")

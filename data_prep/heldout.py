"""The held-out part of the training text as evaluation data: Parquet in one folder for each kind of task.

retrieval/NAME/{corpus,queries,qrels}.parquet      id, title, text | id, text | query_id, doc_id, score
reranking/NAME.parquet                             query, positive [texts], negative [texts]
instruction_reranking/NAME.parquet                 query, instruction, changed_instruction,
                                                   positive [texts], dropped [texts], negative [texts]
sts/NAME.parquet                                   sentence1, sentence2, score
pair_classification/NAME.parquet                   sentence1, sentence2, label
classification/NAME-{train,test}.parquet           text, label
multilabel_classification/NAME-{train,test}.parquet   text, label [texts]
clustering/NAME.parquet                            text, label
bitext/NAME.parquet                                sentence1, sentence2
instructions.json                                  "kind/NAME" -> the instruction of the task's queries
"""

import re
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

INSTRUCTED, DROPPED = 100, 4
"""Queries of the instruction task, and documents of each that the changed instruction takes out, at most."""
GRADED = 200
"""Pairs of the STS task, and of the bitext task, at most."""
NAME_INSTRUCTION = "Given the name of a function or class in code, retrieve what it does"
ANYTHING = "Anything documented in the same module is relevant."
ITSELF = "Only the documentation of exactly this function or class is relevant."
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
"""The words of a name in snake or camel case."""
ARGUMENTS = re.compile(r"^\s*(Args|Arguments|Parameters|:param|@param)", re.MULTILINE)
LONG_WORDS = 40
"""Words from which the multilabel task calls a text long: about the median of the bodies."""


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
    others: int = 0
    """Held-out pairs that have another instruction, or none: a task has one for all its queries."""


def write_pair_tasks(folder: Path, name: str, pairs: Sequence[Pair], queries: int) -> dict[str, Task]:
    """Write what can be asked of held-out pairs: an STS task of those that are graded, a retrieval task of the others.
    Each is asked with the most frequent instruction of its pairs.

    Returns the tasks that were written, by kind; none for a single document or grade.
    """
    tasks = {}
    graded = [pair for pair in pairs if pair.score is not None]
    if len({pair.score for pair in graded}) > 1:
        _write(
            folder / "sts" / f"{name}.parquet",
            sentence1=[pair.query for pair in graded],
            sentence2=[pair.document for pair in graded],
            score=[pair.score for pair in graded],
        )
        tasks["sts"] = Task(len(graded), *_instruction_of(graded))
    plain = [pair for pair in pairs if pair.score is None]
    if len({digest(pair.document) for pair in plain}) > 1:
        rows = write_retrieval(folder, name, [(pair.query, pair.document) for pair in plain], queries)
        tasks["retrieval"] = Task(rows, *_instruction_of(plain))
    return tasks


def _instruction_of(pairs: Sequence[Pair]) -> tuple[str, int]:
    """The most frequent instruction, "" only where no pair has one; and how many pairs have another or none."""
    counts = Counter(pair.instruction for pair in pairs)
    chosen = max(counts, key=lambda instruction: (instruction != "", counts[instruction]))
    return chosen, len(pairs) - counts[chosen]


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
    """Write a task of each of the nine kinds over held-out docstrings; one that they cannot fill is left out.

    Two kinds have no set of their own in code and take the nearest thing: STS grades a text by how near it stands to
    the summary in the source (its own body 3, the same module 2, the same package 1, another package 0), and bitext
    pairs the words of a name in code with its summary in English.

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
    tasks |= _write_instructed(folder, name, docstrings, by_module, chosen, instruction)
    tasks |= _write_graded(folder, name, docstrings, by_module, chosen) | _write_names(folder, name, docstrings)
    return tasks | _write_package_tasks(folder, name, docstrings)


def write_instructions(folder: Path, instructions: Mapping[str, str]) -> None:
    """Write the instructions of the tasks by `kind/NAME`; those without one get the default of their kind."""
    write_json(folder / "instructions.json", {task: text for task, text in instructions.items() if text})


def _write_instructed(
    folder: Path,
    name: str,
    docstrings: Sequence[Docstring],
    by_module: Mapping[str, Sequence[Docstring]],
    chosen: Sequence[Docstring],
    instruction: str,
) -> dict[str, Task]:
    """A summary asks first for anything of its module, then for its own documentation alone."""
    columns: dict[str, list[object]] = defaultdict(list)
    for pair in chosen[:INSTRUCTED]:
        strangers = [p.body for p in _spread_from(docstrings, pair, RERANKED) if p.module != pair.module]
        if strangers:
            columns["query"].append(pair.summary)
            columns["instruction"].append(ANYTHING)
            columns["changed_instruction"].append(ITSELF)
            columns["positive"].append([pair.body])
            columns["dropped"].append(_siblings(pair, by_module)[:DROPPED])
            columns["negative"].append(strangers)
    if not columns:
        return {}
    _write(folder / "instruction_reranking" / f"{name}.parquet", **columns)
    return {"instruction_reranking": Task(len(columns["query"]), instruction)}


def _write_graded(
    folder: Path,
    name: str,
    docstrings: Sequence[Docstring],
    by_module: Mapping[str, Sequence[Docstring]],
    chosen: Sequence[Docstring],
) -> dict[str, Task]:
    """Summaries with texts that stand ever farther from them in the source; four grades in turn."""
    rows: list[tuple[str, str, float]] = []
    for at, pair in enumerate(chosen[:GRADED]):
        others = [p for p in _spread_from(docstrings, pair, len(docstrings)) if p.module != pair.module]
        texts = {
            3: [pair.body],
            2: _siblings(pair, by_module),
            1: [p.body for p in others if p.package == pair.package],
            0: [p.body for p in others if p.package != pair.package],
        }
        grade = 3 - at % 4
        if texts[grade]:
            rows.append((pair.summary, texts[grade][0], float(grade)))
    if len({score for _, _, score in rows}) < 2:
        return {}
    first, second, scores = zip(*rows, strict=True)
    _write(folder / "sts" / f"{name}.parquet", sentence1=first, sentence2=second, score=scores)
    return {"sts": Task(len(rows))}


def _write_names(folder: Path, name: str, docstrings: Sequence[Docstring]) -> dict[str, Task]:
    """Bitext: the words of a name (`Task.add_done_callback` as `task add done callback`) and its summary, both once."""
    found: dict[str, str] = {}
    for pair in sorted(docstrings, key=lambda p: order(3, f"{p.module}:{p.name}")):
        words = " ".join(WORDS.findall(pair.name)).lower()
        if len(words.split()) > 1 and words not in found and pair.summary not in found.values():
            found[words] = pair.summary
        if len(found) == GRADED:
            break
    if len(found) < 2:
        return {}
    _write(folder / "bitext" / f"{name}.parquet", sentence1=list(found), sentence2=list(found.values()))
    return {"bitext": Task(len(found), NAME_INSTRUCTION)}


def _spread_from(docstrings: Sequence[Docstring], pair: Docstring, most: int) -> list[Docstring]:
    """At most so many docstrings, evenly from all of them, beginning behind `pair`."""
    start, step = docstrings.index(pair), max(1, len(docstrings) // (most + 1))
    return [docstrings[(start + k * step) % len(docstrings)] for k in range(1, min(most, len(docstrings)) + 1)]


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
        _write_tagged(folder / "multilabel_classification" / f"{file}.parquet", side, classes)
    _write_labelled(folder / "clustering" / f"{name}.parquet", test, classes)
    tested = sum(len(test[package]) for package in classes)
    kinds = ("classification", "multilabel_classification", "clustering")
    return dict.fromkeys(kinds, Task(tested, PACKAGE_INSTRUCTION))


def _write_tagged(path: Path, texts: Mapping[str, Sequence[str]], classes: Sequence[str]) -> None:
    """Each text with its package and what can be seen of it: its length, an example, its arguments."""
    rows = [(text, label) for label in classes for text in texts[label]]
    tags = [
        [
            label,
            "long" if len(text.split()) > LONG_WORDS else "short",
            *(["example"] if ">>>" in text or "xample" in text else []),
            *(["arguments"] if ARGUMENTS.search(text) else []),
        ]
        for text, label in rows
    ]
    _write(path, text=[text for text, _ in rows], label=tags)


def _write_labelled(path: Path, texts: Mapping[str, Sequence[str]], classes: Sequence[str]) -> None:
    rows = [(text, label) for label in classes for text in texts[label]]
    _write(path, text=[text for text, _ in rows], label=[label for _, label in rows])


def _write(path: Path, **columns: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path, compression="zstd")

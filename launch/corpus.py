"""One's own texts to try a model on: a text file, a table, or a folder; and the nearest of them to a query."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.rows import Tally
from data_prep.sources import CsvSource, JsonlSource, ParquetSource, read_rows
from embedding.config import parse_config
from embedding.embedder import Embedder

TABLES: dict[str, type[JsonlSource] | type[CsvSource] | type[ParquetSource]] = {
    ".jsonl": JsonlSource,
    ".csv": CsvSource,
    ".tsv": CsvSource,
    ".parquet": ParquetSource,
}
PLAIN = (".txt", ".md", ".rst")


class Hit(NamedTuple):
    """A text that was found."""

    score: float
    place: str
    text: str


def read_corpus(path: Path, column: str = "text") -> list[tuple[str, str]]:
    """(place, text) of every text: a line of a .txt, a row of a .jsonl, .csv, .tsv or .parquet, or a file of a folder.

    Raises:
        ValueError: no such file, a format that is not read, a column that does not exist, or no text at all.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in PLAIN and file.is_file())
        found = [(str(file.relative_to(path)), _read(file).strip()) for file in files]
        expected = f"expected files such as NAME{' or NAME'.join(PLAIN)} in the folder"
    elif path.suffix in PLAIN:
        found = [(f"line {n}", line.strip()) for n, line in enumerate(_read(path).splitlines(), start=1)]
        expected = "expected a text on each line"
    elif path.suffix in TABLES:
        kind = path.suffix.removeprefix(".").replace("tsv", "csv")
        source = parse_config(TABLES[path.suffix], {"kind": kind, "path": str(path), "text": column})
        rows = list(read_rows(source, Tally()))
        found = [(f"row {n}", row.positives[0] if row.positives else row.query) for n, row in enumerate(rows, start=1)]
        expected = f"expected texts in the column {column!r}"
    else:
        raise ValueError(f"{path}: expected a folder or a file that ends in {', '.join((*PLAIN, *TABLES))}")
    found = [(place, text) for place, text in found if text]
    if not found:
        raise ValueError(f"{path}: no text; {expected}")
    return found


class Corpus:
    """Texts with their vectors [K, D]."""

    def __init__(self, model: Embedder, texts: list[tuple[str, str]], instruction: str) -> None:
        self.model, self.texts, self.instruction = model, texts, instruction
        self.vectors_KD = model.encode([text for _, text in texts], role="document", progress=True)

    def nearest(self, query: str, top: int) -> list[Hit]:
        """The best texts for a query, best first."""
        query_1D = self.model.encode([query], instruction=self.instruction, role="query")
        scores_K = (query_1D @ self.vectors_KD.T)[0]
        order_K = np.argsort(-scores_K, kind="stable")[:top]
        return [Hit(float(scores_K[k]), *self.texts[k]) for k in order_K]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); convert it first") from None


def as_json(query: str, hits: list[Hit]) -> dict[str, Any]:
    """A query with its hits, for programs."""
    return {"query": query, "hits": [hit._asdict() for hit in hits]}

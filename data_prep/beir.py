"""Retrieval data as training rows: a folder with a corpus, queries, and which document answers which query.

BEIR's layout (github.com/beir-cellar/beir): corpus.jsonl (_id, title, text), queries.jsonl (_id, text) and
qrels/SPLIT.tsv (query-id, corpus-id, score). Also the same as Parquet (id, query_id, doc_id instead), or compressed.
Only the judged documents are held in memory; the corpus is streamed past them.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.readers import COMPRESSED, csv_reader, find_files, read_jsonl, read_parquet
from data_prep.rows import SHOWN, Record


class _Layout(NamedTuple):
    id: str
    query_id: str
    doc_id: str


_JSONL = _Layout("_id", "query-id", "corpus-id")
_PARQUET = _Layout("id", "query_id", "doc_id")


def beir_files(path: str, split: str) -> tuple[Path, Path, Path]:
    """The files of corpus, queries and judgements of a folder.

    Raises:
        ValueError: one of them is missing.
    """
    folder = find_files(path)[0]
    found = []
    for names in (("corpus",), ("queries",), (f"qrels/{split}", "qrels")):
        endings = [f"{kind}{packed}" for kind in (".jsonl", ".tsv", ".parquet") for packed in ("", *COMPRESSED)]
        files = [folder / f"{name}{ending}" for name in names for ending in endings]
        here = [file for file in files if file.is_file()]
        if not here:
            raise ValueError(f"{folder}: no {names[0]}; expected corpus.jsonl, queries.jsonl and qrels/{split}.tsv")
        found.append(here[0])
    return found[0], found[1], found[2]


def read_beir(corpus: Path, queries: Path, qrels: Path) -> Iterator[Record]:
    """The judged queries: query, positive, negative. A judgement that names an unknown text is a bad row."""
    judged: dict[str, dict[str, tuple[float, str]]] = defaultdict(dict)
    problems: list[Record] = []
    layout = _layout(qrels)
    for record in _read(qrels, [layout.query_id, layout.doc_id, "score"]):
        try:
            score = float(record.values["score"])
            ids = str(record.values[layout.query_id]), str(record.values[layout.doc_id])
            if not math.isfinite(score):
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError):
            problems.append(record._replace(problem=record.problem or "no number in 'score'"))
            continue
        before = judged[ids[0]].setdefault(ids[1], (score, record.place))
        if before[0] != score:
            problems.append(record._replace(problem="another judgement of a pair that is judged already"))
    wanted = {doc for documents in judged.values() for doc in documents}
    asked = _texts(queries, judged.__contains__, ["text"], problems)
    documents = _texts(corpus, wanted.__contains__, ["title", "text"], problems)
    yield from problems
    for query, found in judged.items():
        place = next(iter(found.values()))[1]
        unknown = [doc for doc in found if doc not in documents]
        if query not in asked:
            yield Record(f"{place} (query {query})", {}, "a judgement names an unknown query")
            continue
        if unknown:
            names = ", ".join(unknown[:SHOWN])
            yield Record(f"{found[unknown[0]][1]} (document {names})", {}, "a judgement names an unknown document")
        known = {doc: score for doc, (score, _) in found.items() if doc in documents}
        positives = list(dict.fromkeys(documents[doc] for doc, score in known.items() if score > 0))
        negatives = [documents[doc] for doc, score in known.items() if score <= 0]
        if known:
            values = {"negative": [text for text in dict.fromkeys(negatives) if text not in positives]}
            yield Record(place, {"query": asked[query], "positive": positives, **values})


def _texts(path: Path, wanted: Callable[[str], bool], fields: list[str], problems: list[Record]) -> dict[str, str]:
    """The wanted texts of a corpus or of queries by id; what is wrong goes to `problems`."""
    texts: dict[str, str] = {}
    name = _layout(path).id
    for record in _read(path, [name, "text"], ["title"] if "title" in fields else []):
        if record.problem or name not in record.values:
            problems.append(record._replace(problem=record.problem or f"has no {name!r}"))
            continue
        key = str(record.values[name])
        if not wanted(key):
            continue
        parts = [record.values.get(field) for field in fields]
        if not isinstance(parts[-1], str):
            problems.append(record._replace(problem="'text' is no text"))
        elif key in texts:
            problems.append(record._replace(problem="an id that is there already"))
        else:
            texts[key] = " ".join(part for part in parts if isinstance(part, str) and part.strip()).strip()
    return texts


def _layout(path: Path) -> _Layout:
    return _PARQUET if path.suffix == ".parquet" else _JSONL


def _read(path: Path, columns: list[str], optional: list[str] | None = None) -> Iterator[Record]:
    reader: Any = read_jsonl
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        columns = columns + [name for name in optional or [] if name in pq.read_schema(path).names]
        reader = read_parquet
    elif ".tsv" in path.suffixes:
        reader = csv_reader("\t", quotes=False)
    return iter(reader(path, columns))

"""Rows a second of read -> clean -> near-duplicates -> decontaminate -> tables -> tokens, with planted faults to find.

Rows are real text (EYAS_DATA: pairs and sentences, long texts in pieces). Planted among them: copies with a word
changed (near-duplicates), texts that share a third with another (no duplicates), and evaluation texts of the same
folder in other case, inside other text, or with their last word changed. Recall is over the planted copies. Precision
is over all rows that went as near-duplicates, planted or there from the beginning: each is compared with the row it is
said to repeat, as sets of strings. The limit is the time to read and tokenize the same rows and do nothing else.
"""

import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import arguments, report, say
from benchmarks.pairs import TEACHER
from data_prep.build import DataConfig, prepare
from data_prep.clean import normal_form
from data_prep.decontaminate import EvaluationTexts
from data_prep.near_duplicates import SHINGLE
from data_prep.rows import Tally
from data_prep.sources import ParquetSource, numbered_rows
from data_prep.tokenized import tokenize_texts
from embedding.config import parse_config
from embedding.instruction import BARE
from embedding.tokens import tokenize
from eval.suite import SuiteConfig
from eval.texts import suite_texts

PIECE_CHARS = 300
"""Longer texts are cut into rows of about this size."""
NEAR_EVERY, DECOY_EVERY, TEST_EVERY = 100, 200, 500
LEAST_CHARS = 120
"""Of a text that is copied with a change: one word of it is then less than a tenth of its shingles."""
FILE_ROWS = 100_000
CHECKED = 5_000
THRESHOLD = 0.8
EVALUATED = ["retrieval/scifact", "retrieval/cranfield", "sts/*", "classification/*-test", "classification/banking77"]


class Planted(NamedTuple):
    """Numbers of the rows that were put there."""

    near: set[int]
    decoys: set[int]
    tests: set[int]


def real_rows(data: Path, count: int) -> Iterator[tuple[str, str]]:
    """(query, positive) rows; "" for the positive: a single text. Pairs first, then pieces of everything long."""
    made = 0
    for long in (False, True):
        for path in sorted([*(data / "pairs").glob("*.parquet"), *(data / "sentences").glob("*.parquet")]):
            names = ["query", "positive"] if path.parent.name == "pairs" else ["text"]
            for batch in pq.ParquetFile(path).iter_batches(2_000, columns=names):
                for values in batch.to_pylist():
                    text = values[names[-1]]
                    rows = [(values["query"], text[: 4 * PIECE_CHARS])] if len(names) == 2 and not long else []
                    rows = rows or [(piece, "") for piece in _pieces(text, long)]
                    for row in rows:
                        yield row
                        made += 1
                        if made >= count:
                            return


def _pieces(text: str, long: bool) -> Iterator[str]:
    if not long:
        yield text[: 4 * PIECE_CHARS]
        return
    words, piece, size = text.split(), list[str](), 0
    for word in words:
        piece.append(word)
        size += len(word) + 1
        if size >= PIECE_CHARS:
            yield " ".join(piece)
            piece, size = [], 0


def write_rows(data: Path, folder: Path, count: int) -> Planted:
    """Write rows as Parquet, with what is planted among them, in pieces."""
    folder.mkdir()
    rng = random.Random(0)
    tests = [text for text in _distinct_tests(data) if LEAST_CHARS <= len(text) <= 4 * PIECE_CHARS]
    planted = Planted(set(), set(), set())
    rows: list[dict[str, str]] = []
    number = files = 0
    kept: list[str] = []

    def put(text: str, positive: str = "") -> None:
        nonlocal number
        number += 1
        rows.append({"query": text if positive else "", "positive": positive, "text": text})

    def flush() -> None:
        nonlocal files
        pq.write_table(pa.Table.from_pylist(rows), folder / f"rows-{files:03}.parquet")
        files += 1
        rows.clear()

    for serial, (query, positive) in enumerate(real_rows(data, count), start=1):
        put(f"{query}\n{positive}" if positive else query)
        if len(query) >= LEAST_CHARS and not positive and len(kept) < 20_000:
            kept.append(query)
        if serial % NEAR_EVERY == 0 and kept:
            words = kept.pop(rng.randrange(len(kept))).split(" ")
            words[rng.randrange(len(words) // 4, len(words))] = "zebra"
            put(" ".join(words))
            planted.near.add(number)
        if serial % DECOY_EVERY == 0 and len(kept) > 1:
            one, other = rng.sample(kept, 2)
            put(f"{one[: len(one) // 3]} {other[len(other) // 3 :][: 2 * len(one) // 3][::-1]}")
            planted.decoys.add(number)
        if serial % TEST_EVERY == 0 and kept:
            test = rng.choice(tests)
            other = rng.choice(kept)
            put(
                [test.upper() + " !", f"{other} {test}", " ".join([*test.split()[:-1], "zebra"])][
                    serial // TEST_EVERY % 3
                ]
            )
            planted.tests.add(number)
        if len(rows) >= FILE_ROWS:
            flush()
    flush()
    return planted


def _distinct_tests(data: Path) -> list[str]:
    return list(dict.fromkeys(text for _, text in suite_texts(_suite(data))))


def _suite(data: Path) -> SuiteConfig:
    return SuiteConfig(folder=data, tasks=EVALUATED)


class Peak:
    """The largest memory of this process and its children while a block runs, shared pages once: bytes."""

    def __enter__(self) -> "Peak":
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(0.25):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    facts = process.memory_full_info()
                except psutil.NoSuchProcess:
                    continue
                total += getattr(facts, "pss", facts.rss)
            self.bytes = max(self.bytes, total)


def measure(data: Path, count: int) -> dict[str, Any]:
    """Plant, prepare, tokenize, and see what was found."""
    from transformers import AutoTokenizer

    from embedding.layout import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(TEACHER, None))
    with TemporaryDirectory() as name:
        work = Path(name)
        planted = write_rows(data, work / "rows", count)
        source = {"kind": "parquet", "name": "rows", "path": str(work / "rows" / "*.parquet"), "text": "text"}
        values = {
            "sources": [{**source, "hold_out": False}],
            "filters": {"unicode": "nfc", "repetition": True},
            "near_duplicates": {"threshold": THRESHOLD},
        }
        config = parse_config(DataConfig, values)
        evaluation = EvaluationTexts({}, lambda: suite_texts(_suite(data)))
        begin = time.perf_counter()
        with Peak() as peak:
            summary = prepare(config, work / "out", progress=False, evaluation=evaluation)
            prepared = time.perf_counter() - begin
            tokenize_texts(work / "out", tokenizer, BARE, work / "tokens")
        seconds = time.perf_counter() - begin
        rows = summary["sources"]["rows"]["rows"]
        say(f"{rows:,} rows in {seconds:.1f} s, of it {prepared:.1f} s until the tables; {summary['dropped']}")
        return {
            "rows": rows,
            "rows_per_s": rows / seconds,
            "prepare_rows_per_s": rows / prepared,
            "limit_rows_per_s": rows / _least(config, tokenizer),
            "peak_gb": peak.bytes / 1e9,
            **_found(work, planted),
            "dropped": summary["dropped"],
            "evaluation_texts": summary["evaluation texts"],
        }


def _least(config: DataConfig, tokenizer: Any) -> float:
    """Seconds to read and tokenize the rows, and nothing else."""
    begin = time.perf_counter()
    source = config.sources[0]
    assert isinstance(source, ParquetSource)
    texts: list[str] = []
    for found in numbered_rows(source, Tally()):
        texts.append(found.row.query)
        if len(texts) == 20_000:
            tokenize(tokenizer, [""] * len(texts), texts)
            texts = []
    if texts:
        tokenize(tokenizer, [""] * len(texts), texts)
    return time.perf_counter() - begin


def _found(work: Path, planted: Planted) -> dict[str, float]:
    dropped = pq.read_table(work / "out" / "dropped.parquet", columns=["row", "reason", "detail", "query"]).to_pylist()
    reasons = {row["row"]: row["reason"] for row in dropped}
    near = [row for row in dropped if row["reason"] == "near-duplicate"]
    checked = random.Random(0).sample(near, min(CHECKED, len(near)))
    others = {int(row["detail"].split()[2]) for row in checked}
    texts: dict[int, str] = {}
    number = 0
    for path in sorted((work / "rows").glob("*.parquet")):
        for text in pq.read_table(path, columns=["text"])["text"].to_pylist():
            number += 1
            if number in others:
                texts[number] = text
    right = sum(_similarity(row["query"], texts[int(row["detail"].split()[2])]) >= THRESHOLD for row in checked)
    wrong = sum(reasons.get(row) == "near-duplicate" for row in planted.decoys)
    repeats = ("near-duplicate", "duplicate")
    tests = sum("evaluation text" in reasons.get(row, "") for row in planted.tests)
    return {
        "near_dup_recall": sum(reasons.get(row) in repeats for row in planted.near) / len(planted.near),
        "near_dup_precision": right / (len(checked) + wrong) if checked else 0.0,
        "near_dup_decoys_dropped": wrong / max(len(planted.decoys), 1),
        "contamination_found": tests / len(planted.tests),
    }


def _similarity(one: str, other: str) -> float:
    sets = [{text[i : i + SHINGLE] for i in range(len(text) - SHINGLE + 1)} for text in map(normal_form, (one, other))]
    return len(sets[0] & sets[1]) / max(len(sets[0] | sets[1]), 1)


def main() -> None:
    """Parse the options, measure, report."""
    options = arguments(__doc__)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--smoke", action="store_true", help="a few thousand rows, to see that it runs")
    given = options.parse_args()
    if not os.environ.get("EYAS_DATA"):
        sys.exit("EYAS_DATA is not set: point it at the folder of data sets")
    rows = 15_000 if given.smoke else given.rows
    report({"benchmark": "prepare", **measure(Path(os.environ["EYAS_DATA"]), rows)}, save=given.save)


if __name__ == "__main__":
    main()

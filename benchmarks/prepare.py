"""Rows a second of read -> clean -> near-duplicates -> decontaminate -> tables -> tokens, with planted faults to find:
`python -m benchmarks.prepare`, with EYAS_DATA.

A row is a single text of at most about 300 characters: the texts of EYAS_DATA's pairs and sentences, in pieces of whole
words, from all files in turn. Planted among them:

copies      of a text of 120 characters or more with a word exchanged, left out or misspelt, with two words swapped, or
            with words added, whose exact similarity (Jaccard, of sets of strings, computed here) is 0.8 or more, the
             numbers in it as in the original
decoys      the first third of one text with another text backwards: no copy of either
evaluation  texts of the same folder in capitals, inside other text, or with their last word exchanged

near_dup_recall      of the copies whose original is trained on: the share that is not
near_dup_precision   of all rows that went as near-duplicates, planted or in the data from the beginning, a sample: the
                     share that is similar to the row it is said to repeat, by the same computation; a decoy counts
                     against it
contamination_found  of the planted evaluation texts: the share that went as such
limit_rows_per_s     the same rows only read and tokenized
peak_gb              of all processes together, mapped files included, shared pages once (PSS)

Expected: 3,000 rows/s or more on two cores, 4 GB at most, recall 0.95, precision 0.99, all contamination found.

`--memory` measures instead what grows with the number of rows: short pairs (two texts of six and eight words), three
sizes, each in a process of its own; the slope, and what ten million rows take (`gb_at_10m`, expected 8 at most).
"""

import json
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from benchmarks.common import arguments, report, say
from benchmarks.pairs import TEACHER
from data_prep.build import DataConfig, prepare
from data_prep.clean import normal_form
from data_prep.decontaminate import EvaluationTexts
from data_prep.near_duplicates import NUMBER, SHINGLE
from data_prep.rows import Tally
from data_prep.sources import ParquetSource, numbered_rows
from data_prep.tokenized import tokenize_texts
from embedding.config import parse_config
from embedding.instruction import BARE
from embedding.layout import resolve_model
from embedding.tokens import tokenize
from eval.suite import SuiteConfig
from eval.texts import suite_texts

PIECE_CHARS = 300
"""Longer texts are cut into rows of about this size."""
NEAR_EVERY, DECOY_EVERY, TEST_EVERY = 100, 200, 500
LEAST_CHARS = 120
"""Of a text that is copied with a change: in a shorter one, one word is more than a fifth of its shingles."""
REMEMBERED = 20_000
"""Texts to copy from, at a time."""
READ_ROWS = 200
FILE_ROWS = 100_000
CHECKED = 5_000
THRESHOLD = 0.8
EVALUATED = ["retrieval/scifact", "retrieval/cranfield", "sts/*", "classification/*-test", "classification/banking77"]
MEMORY_SIZES = (200_000, 400_000, 800_000)


class Planted(NamedTuple):
    """Numbers of the rows that were put there."""

    near: dict[int, int]
    """Of each copy, the row it was made from."""
    decoys: set[int]
    tests: set[int]


def real_rows(data: Path, count: int) -> Iterator[str]:
    """Up to `count` pieces of the texts of all files, some of each file in turn.

    Raises:
        SystemExit: the data has not so many.
    """
    paths = sorted([*(data / "pairs").glob("*.parquet"), *(data / "sentences").glob("*.parquet")])
    files = [_file_pieces(path) for path in paths]
    made = 0
    while files:
        for file in list(files):
            found = list(islice(file, READ_ROWS))
            if not found:
                files.remove(file)
            yield from found[: count - made]
            made += len(found)
            if made >= count:
                return
    sys.exit(f"{data}: holds {made:,} rows of this size, {count:,} were asked for; give fewer --rows")


def _file_pieces(path: Path) -> Iterator[str]:
    names = ["query", "positive"] if path.parent.name == "pairs" else ["text"]
    for batch in pq.ParquetFile(path).iter_batches(READ_ROWS, columns=names):
        for values in batch.to_pylist():
            for name in names:
                yield from textwrap.wrap(values[name], PIECE_CHARS, break_on_hyphens=False)


def write_rows(data: Path, folder: Path, count: int) -> Planted:
    """Write rows as Parquet, with what is planted among them, in files of bounded size."""
    folder.mkdir()
    rng = random.Random(0)
    tests = [text for text in _distinct_tests(data) if LEAST_CHARS <= len(text) <= 4 * PIECE_CHARS]
    planted = Planted({}, set(), set())
    kept: list[tuple[int, str]] = []
    texts: list[str] = []
    number = files = 0

    def put(text: str) -> int:
        nonlocal number, files
        texts.append(text)
        number += 1
        if len(texts) == FILE_ROWS:
            flush()
        return number

    def flush() -> None:
        nonlocal files
        pq.write_table(pa.table({"text": texts}), folder / f"rows-{files:03}.parquet")
        files += 1
        texts.clear()

    for serial, text in enumerate(real_rows(data, count), start=1):
        here = put(text)
        if len(text) >= LEAST_CHARS and len(kept) < REMEMBERED:
            kept.append((here, text))
        if serial % NEAR_EVERY == 0 and kept:
            original, copied = kept.pop(rng.randrange(len(kept)))
            changed = _changed(copied, rng)
            if _similarity(copied, changed) >= THRESHOLD and NUMBER.findall(copied) == NUMBER.findall(changed):
                planted.near[put(changed)] = original
        if serial % DECOY_EVERY == 0 and len(kept) > 1:
            (_, one), (_, other) = rng.sample(kept, 2)
            planted.decoys.add(put(f"{one[: len(one) // 3]} {other[len(other) // 3 :][::-1]}"))
        if serial % TEST_EVERY == 0 and kept:
            test, (_, other) = rng.choice(tests), rng.choice(kept)
            forms = (f"{test.upper()} !", f"{other} {test}", " ".join([*test.split()[:-1], "zebra"]))
            planted.tests.add(put(forms[serial // TEST_EVERY % len(forms)]))
    if texts:
        flush()
    return planted


def _changed(text: str, rng: random.Random) -> str:
    """A text with a small change."""
    words = text.split()
    place = rng.randrange(len(words))
    match rng.randrange(5):
        case 0:
            words[place] = "zebra"
        case 1:
            del words[place]
        case 2:
            middle = len(words[place]) // 2
            words[place] = f"{words[place][:middle]}x{words[place][middle:]}"
        case 3:
            words[place - 1], words[place] = words[place], words[place - 1]
        case _:
            words += ["and", "so", "on"]
    return " ".join(words)


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
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(TEACHER, None))
    with TemporaryDirectory() as name:
        work = Path(name)
        planted = write_rows(data, work / "rows", count)
        say(f"planted {len(planted.near):,} copies, {len(planted.tests):,} evaluation texts")
        config = _config(work / "rows", text="text")
        begin = time.perf_counter()
        with Peak() as peak:
            summary = prepare(config, work / "out", progress=False, evaluation=_evaluation(data))
            prepared = time.perf_counter() - begin
            tokens = tokenize_texts(work / "out", tokenizer, BARE, work / "tokens")
        seconds = time.perf_counter() - begin
        rows = summary["sources"]["rows"]["rows"]
        say(f"{rows:,} rows in {seconds:.1f} s, of it {prepared:.1f} s until the tables; {summary['dropped']}")
        return {
            "rows": rows,
            "tokens_per_text": float(tokens.lengths.mean()),
            "rows_per_s": rows / seconds,
            "prepare_rows_per_s": rows / prepared,
            "limit_rows_per_s": rows / _least(config, tokenizer),
            "peak_gb": peak.bytes / 1e9,
            **_found(work, planted),
            "dropped": summary["dropped"],
            "evaluation_texts": summary["evaluation texts"],
        }


def _config(rows: Path, **columns: str) -> DataConfig:
    source = {"kind": "parquet", "name": "rows", "path": str(rows / "*.parquet"), "hold_out": False, **columns}
    values = {
        "sources": [source],
        "filters": {"unicode": "nfc", "repetition": True},
        "near_duplicates": {"threshold": THRESHOLD},
    }
    return parse_config(DataConfig, values)


def _evaluation(data: Path) -> EvaluationTexts:
    return EvaluationTexts({}, lambda: suite_texts(_suite(data)))


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
    copies = [copy for copy, original in planted.near.items() if original not in reasons]
    return {
        "near_dup_recall": sum(copy in reasons for copy in copies) / max(len(copies), 1),
        "near_dup_precision": right / max(len(checked) + wrong, 1),
        "near_dup_decoys_dropped": wrong / max(len(planted.decoys), 1),
        "near_dup_planted": len(copies),
        "contamination_found": sum("evaluation text" in reasons.get(row, "") for row in planted.tests)
        / max(len(planted.tests), 1),
        "contamination_planted": len(planted.tests),
    }


def _similarity(one: str, other: str) -> float:
    texts = [normal_form(text).ljust(SHINGLE) for text in (one, other)]
    sets = [{text[i : i + SHINGLE] for i in range(len(text) - SHINGLE + 1)} for text in texts]
    return len(sets[0] & sets[1]) / max(len(sets[0] | sets[1]), 1)


def measure_memory(data: Path, sizes: Sequence[int]) -> dict[str, Any]:
    """Peak memory of preparing short pairs at each size, and the line through them."""
    peaks = []
    for size in sizes:
        words = [sys.executable, "-m", "benchmarks.prepare", "--one-size", str(size)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{size:,} rows: {done.stderr[-2_000:]}")
        peaks.append(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])
        say(f"{size:,} rows: {peaks[-1] / 1e9:.2f} GB")
    slope, base = np.polyfit(sizes, peaks, 1)
    return {
        "sizes": list(sizes),
        "peak_gb": [peak / 1e9 for peak in peaks],
        "bytes_per_row": float(slope),
        "base_gb": float(base) / 1e9,
        "gb_at_10m": (base + slope * 1e7) / 1e9,
    }


def peak_of_short_pairs(data: Path, count: int) -> int:
    """Bytes that preparing so many pairs of a few random words takes at most."""
    rng = random.Random(0)
    words = sorted({word for text in real_rows(data, 20_000) for word in text.split() if 2 < len(word) < 12})
    with TemporaryDirectory() as name:
        rows = Path(name) / "rows"
        rows.mkdir()
        for start in range(0, count, FILE_ROWS):
            made = range(start, min(start + FILE_ROWS, count))
            sides = {side: [" ".join(rng.choices(words, k=k)) for _ in made] for side, k in (("q", 6), ("p", 8))}
            pq.write_table(pa.table(sides), rows / f"{start:012}.parquet")
        with Peak() as peak:
            config = _config(rows, query="q", positive="p")
            prepare(config, Path(name) / "out", progress=False, evaluation=_evaluation(data))
        return peak.bytes


def main() -> None:
    """Parse the options, measure, report."""
    options = arguments(__doc__)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--smoke", action="store_true", help="a few thousand rows, to see that it runs")
    options.add_argument("--memory", action="store_true", help="what grows with the rows, and what ten million take")
    options.add_argument("--sizes", type=int, nargs="+", default=MEMORY_SIZES, help="of --memory")
    options.add_argument("--one-size", type=int, help="one of the sizes of --memory, in this process")
    given = options.parse_args()
    if not os.environ.get("EYAS_DATA"):
        sys.exit("EYAS_DATA is not set: point it at the folder of data sets")
    data = Path(os.environ["EYAS_DATA"])
    if given.one_size:
        print(json.dumps({"peak_bytes": peak_of_short_pairs(data, given.one_size)}))
    elif given.memory:
        sizes = (4_000, 8_000) if given.smoke else given.sizes
        report({"benchmark": "prepare", **measure_memory(data, sizes)}, save=given.save, name="prepare_memory")
    else:
        report({"benchmark": "prepare", **measure(data, 4_000 if given.smoke else given.rows)}, save=given.save)


if __name__ == "__main__":
    main()

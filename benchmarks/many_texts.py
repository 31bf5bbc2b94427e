"""A pass over very many texts: its memory grows by some bytes a text, whatever the texts and the vectors weigh.

    python -m benchmarks.many_texts [--texts 1000000] [--save] [--smoke]

The teacher adds up one random row of 8 numbers for each byte of a text, so that the pass itself is measured: keys,
units, shards, the index. A process of its own embeds a tenth of the texts, another one all of them; a sample of the
vectors is compared with what the teacher gives. 10 million texts want 2 GB of disk.

peak_gib          the highest anonymous memory of the process that embeds all texts (files it maps are not counted: the
                  kernel takes their pages back when it needs them)
bytes_per_text    how much of it a text more costs: (all - a tenth) / texts between them
texts_per_second, index_bytes_per_text, disk_gib (texts and vectors), shards
"""

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.common import arguments, report, say
from benchmarks.processes import start
from data_prep.embed import embed_texts
from data_prep.tables import TEXTS, Texts, pieces, write_table
from data_prep.teacher import TeacherConfig, vector_keys
from data_prep.vectors import VectorStore
from embedding.files import content_keys, read_json, write_json
from embedding.instruction import BARE

WIDTH = 8
ROWS = 65_536
CHECKED = 1_000
TOLERANCE = 1e-3
"""Half precision keeps 11 bits of a number below 1."""


class Bytes:
    """A teacher that costs next to nothing: the sum of a random row for each byte, at unit length."""

    tokenizer = "utf-8"
    template = BARE
    max_tokens = 1_024
    width = WIDTH

    def __init__(self) -> None:
        self.rows = np.random.default_rng(0).standard_normal((256, WIDTH)).astype(np.float32)

    def tokenize(self, texts: Sequence[str], prompts: Sequence[str]) -> list[np.ndarray]:
        """The bytes of each text."""
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def encode_ids(self, ids: Sequence[np.ndarray], *, token_budget: int | None = None) -> np.ndarray:
        """float32 [N, 8]."""
        starts_N = np.cumsum([0, *(len(row) for row in ids[:-1])])
        sum_N8 = np.add.reduceat(self.rows[np.concatenate(ids)], starts_N, axis=0)
        unit_N8: np.ndarray = sum_N8 / np.linalg.norm(sum_N8, axis=1, keepdims=True)
        return unit_N8

    def identity(self) -> dict[str, Any]:
        """Its name."""
        return {"kind": "bytes"}


def write_texts(folder: Path, count: int) -> None:
    """A table of so many distinct texts, some 60 bytes each."""

    def batches() -> Iterator[pa.RecordBatch]:
        for rows in pieces(count, ROWS):
            texts = [f"Text number {row} of very many, of which no two are the same." for row in rows.tolist()]
            keys_N2 = content_keys([""] * len(texts), texts)
            same = [pa.repeat(value, len(texts)) for value in ("document", "", "en")]
            yield pa.record_batch([*keys_N2.T, same[0], same[1], pa.array(texts), same[2]], schema=TEXTS)

    write_table(folder, TEXTS, batches())


class Watch:
    """The highest anonymous memory of this process while it is open: bytes."""

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(0.05):
            self.peak = max(self.peak, _anonymous())

    def close(self) -> int:
        """Stop looking."""
        self._done.set()
        self._thread.join()
        return max(self.peak, _anonymous())


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1_024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def embed(texts: str, stores: str, result: str) -> None:
    """The pass, in a process of its own; writes what it took."""
    watch = Watch()
    begun = time.perf_counter()
    table, teacher = Texts.load(Path(texts)), Bytes()
    done = embed_texts(TeacherConfig(model="bytes"), table, Path(stores), progress=True, embedder=teacher)
    seconds, peak = time.perf_counter() - begun, watch.close()
    store = VectorStore.existing(done.store)
    some = table.take(np.linspace(0, len(table) - 1, CHECKED).astype(np.int64))
    expected = teacher.encode_ids(teacher.tokenize(some.texts.to_pylist(), [""] * CHECKED))
    difference = float(np.abs(store.rows(vector_keys(some, BARE)) - expected).max())
    assert len(store) == len(table), f"{len(table)} texts, {len(store)} vectors"
    assert difference < TOLERANCE, f"a vector differs by {difference} from the teacher's"
    facts = {"peak": peak, "seconds": seconds, "index_bytes": store.index_bytes, "shards": len(list(store.shards()))}
    write_json(Path(result), facts)


def measure(folder: Path, count: int) -> dict[str, Any]:
    """Write so many texts and embed them."""
    texts, stores, result = folder / "texts", folder / "stores", folder / "result.json"
    write_texts(texts, count)
    process = start(embed, str(texts), str(stores), str(result))
    process.join()
    assert process.exitcode == 0, f"the pass ended with exit code {process.exitcode}"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    found = {**read_json(result), "disk": size}
    say(f"{count:,} texts: {found['peak'] / 2**20:,.0f} MiB at most, {found['seconds']:.0f} s")
    return found


def main() -> None:
    """A tenth, then all."""
    options = arguments(__doc__)
    options.add_argument("--texts", type=int, default=1_000_000)
    options.add_argument("--smoke", action="store_true", help="20,000 texts, to see that it works")
    given = options.parse_args()
    count = 20_000 if given.smoke else given.texts
    found = []
    for part in (count // 10, count):
        with TemporaryDirectory() as name:
            found.append(measure(Path(name), part))
    few, all_ = found
    report(
        {
            "benchmark": "many_texts",
            "texts": count,
            "peak_gib": all_["peak"] / 2**30,
            "bytes_per_text": (all_["peak"] - few["peak"]) / (count - count // 10),
            "texts_per_second": count / all_["seconds"],
            "index_bytes_per_text": all_["index_bytes"] / count,
            "disk_gib": all_["disk"] / 2**30,
            "shards": all_["shards"],
        },
        save=given.save,
    )


if __name__ == "__main__":
    main()

"""The two sides of `benchmarks.mine`, each a program: `python -m benchmarks.mine_sides SIDE FOLDER SETTINGS`.

What a side needs lies in the folder, and each times its own work from there: the tables and the store of vectors
(ours), a Parquet file of pairs and the vectors in the cache that sentence-transformers reads (the peer). Its last line
is JSON.
"""

import json
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq


def ours(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """`data_prep.mine` over the tables and the store of `folder`."""
    import faiss

    from data_prep.mine import MineConfig, mine
    from data_prep.tables import Examples, Texts
    from data_prep.vectors import VectorStore

    faiss.omp_set_num_threads(settings["threads"])
    config = MineConfig(
        negatives=settings["negatives"],
        ranks=(1, settings["last"]),
        relative=1 - settings["margin"],
        pick=settings["pick"],
        pool="all",
    )
    base = _high_water()
    begin = time.perf_counter()
    store = VectorStore.existing(folder / "store")
    texts = Texts.load(folder / "texts")
    positions = store.locate(texts.keys)
    out = folder / f"mined-{settings['pick']}-{settings['seed']}-{time.time_ns()}"
    found = mine(
        config,
        folder,
        lambda rows: store.read(positions[rows]),
        {"settings": settings},
        out,
        seed=settings["seed"],
        progress=False,
    )
    seconds = time.perf_counter() - begin
    peak = _high_water()
    mined = Examples.load(out / "examples")
    mined_for = np.flatnonzero(mined.positives.counts > 0)
    negatives = [
        (texts.text(int(mined.queries[row])), [texts.text(int(d)) for d in mined.negatives_of(row)])
        for row in mined_for[: settings["listed"]].tolist()
    ]
    return {
        "seconds": seconds,
        "peak_mb": peak,
        "base_mb": base,
        "rows": len(mined_for),
        "rows_full": found["rows with all"],
        "negatives": found["negatives"],
        "searched_again": found["rows searched again"],
        "mined": negatives,
    }


def peer(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """`sentence_transformers.util.mine_hard_negatives` over the pairs and the cached vectors of `folder`."""
    import faiss
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from sentence_transformers.util import mine_hard_negatives
    from transformers import AutoTokenizer

    torch.set_num_threads(settings["threads"])
    faiss.omp_set_num_threads(settings["threads"])
    tokenizer: Any = AutoTokenizer.from_pretrained(settings["tokenizer"])
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=settings["width"])], device="cpu")
    random.seed(settings["seed"])
    base = _high_water()
    begin = time.perf_counter()
    pairs = Dataset(pq.read_table(folder / "pairs.parquet"))
    corpus = pq.read_table(folder / "corpus.parquet")["text"].to_pylist()
    found = mine_hard_negatives(
        pairs,
        model,
        corpus=corpus,
        range_max=settings["last"],
        relative_margin=settings["margin"],
        num_negatives=settings["negatives"],
        sampling_strategy="top" if settings["pick"] == "nearest" else "random",
        use_faiss=settings["use_faiss"],
        faiss_batch_size=settings["batch"],
        output_format=settings["format"],
        verbose=False,
        cache_folder=str(folder / "cache"),
    )
    seconds = time.perf_counter() - begin
    peak = _high_water()
    listed = found.select(range(min(len(found), settings["listed"])))
    columns = [name for name in found.column_names if name.startswith("negative")]
    return {
        "seconds": seconds,
        "peak_mb": peak,
        "base_mb": base,
        "rows": len(pairs),
        "rows_full": len(found),
        "negatives": len(found) * len(columns),
        "mined": [(row["query"], [row[name] for name in columns]) for row in listed],
    }


def _high_water() -> float:
    """The most memory this process has held: MB. `ru_maxrss` would also count what its parent held when it started."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    side, where, given = sys.argv[1:]
    print(json.dumps({"ours": ours, "peer": peer}[side](Path(where), json.loads(given))))

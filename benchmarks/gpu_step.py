"""Training steps on a GPU: the shapes of Harrier's students, bf16, long-tailed lengths, against sentence-transformers.

    python -m benchmarks.gpu_step [--models gemma3_270m] [--tokens 512] [--smoke] [--save]

Qwen3-0.6B and Gemma3-270M from random weights, InfoNCE over the batch and AdamW on both sides, weights in fp32 under
bf16 autocast. Texts are docstrings laid end to end; their lengths are drawn from a log-normal distribution of which one
text in twenty reaches the cut, at 512 tokens (256 pairs) and at 8,192 (32 pairs). Our layers are compiled
(`compute.compile`), the peer's where that is faster; `benchmarks.compare` says how the peer is brought to its best
setting, attention included. What is saved grows case by case. Needs CUDA; `--smoke` runs two tiny models of the same
two families wherever it is started, and measures nothing.

ratio_CASE   pairs/s, ours / theirs                                                              aim 2.0
mfu_CASE     our operations (nothing recomputed counts) / seconds / the measured bf16 matrix rate; aim 0.4 for
             Qwen3-0.6B and 0.25 for Gemma3-270M
peak_gib     of both sides, in `cases`
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer, Gemma3TextConfig, PreTrainedConfig, Qwen3Config

from benchmarks.common import arguments, matrix_rate, report, say
from benchmarks.compare import SideFailed, compare
from benchmarks.pairs import TEACHER, docstring_pairs, ranking_rows, write_inputs
from benchmarks.sides import Case
from embedding.embedder import Embedder
from embedding.layout import resolve_model
from embedding.tokens import append_eos

GEMM_SIZES = (4_096, 8_192)
BATCHES = {512: 256, 8_192: 32}
"""Pairs of a batch, by the tokens that texts are cut at."""
TAIL = 1.645
"""Standard deviations above the median at which one normal number in twenty lies."""
SPREAD = 1.2
"""Standard deviation of the logarithm of the lengths: the median is 1 / 7 of the cut."""


def shapes() -> dict[str, PreTrainedConfig]:
    """The two students of the Harrier family, by their published sizes."""
    qwen = Qwen3Config(
        vocab_size=151_936,
        hidden_size=1_024,
        intermediate_size=3_072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=32_768,
    )
    gemma = Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2_048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
        max_position_embeddings=32_768,
    )
    return {"qwen3_0.6b": qwen, "gemma3_270m": gemma}


def tiny_shapes() -> dict[str, PreTrainedConfig]:
    """The same families in small, with the vocabulary that the texts need."""
    size: dict[str, Any] = {
        "vocab_size": 30_522,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "head_dim": 16,
    }
    size |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    return {"qwen3": Qwen3Config(**size), "gemma3": Gemma3TextConfig(**size, sliding_window=16)}


def write_model(folder: Path, config: PreTrainedConfig) -> Embedder:
    """A model of this shape with random weights in `folder`; its tokenizer is all-MiniLM-L6-v2's."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(TEACHER))
    append_eos(tokenizer)
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(0)
    backbone = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    model = Embedder(backbone, tokenizer, "last", max_tokens=int(config.max_position_embeddings))
    model.save_pretrained(folder)
    return model


def long_tailed_pairs(count: int, max_tokens: int, sources: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs of which every text is made of words of `sources`, with long-tailed lengths (about a token for a word)."""
    words = " ".join(f"{summary} {body}" for summary, body in sources).split()
    draws = np.random.default_rng(0)
    length_2N = np.exp(draws.normal(np.log(max_tokens) - TAIL * SPREAD, SPREAD, size=2 * count))
    ends_2N = np.cumsum(np.clip(length_2N, 4, max_tokens).astype(np.int64))
    texts = [
        f"{number} " + " ".join(words[(start + i) % len(words)] for i in range(end - start))
        for number, (start, end) in enumerate(zip([0, *ends_2N[:-1].tolist()], ends_2N.tolist(), strict=True))
    ]
    return list(zip(texts[:count], texts[count:], strict=True))


def measure(
    root: Path, configs: dict[str, PreTrainedConfig], sizes: dict[int, int], device: str
) -> Iterator[dict[str, Any]]:
    """Every model at every length, one by one; `sizes`: pairs of a batch by the tokens that texts are cut at."""
    cuda = device == "cuda"
    sources, steps = docstring_pairs(4_000 if cuda else 40), 4 if cuda else 2
    for name, config in configs.items():
        model = write_model(root / name, config)
        for max_tokens, batch in sizes.items():
            rows = ranking_rows(long_tailed_pairs(steps * batch, max_tokens, sources))
            texts = root / f"{name}-{max_tokens}"
            write_inputs(texts, rows, model, vectors=False)
            case = Case(
                name=f"{name}_{max_tokens}",
                folder=str(texts),
                model=str(root / name),
                max_tokens=max_tokens,
                batch=batch,
                steps=steps,
                device=device,
                bf16=cuda,
                compiled=cuda,
            )
            yield {case.name: compare(case)}


def result_of(found: dict[str, Any], rate: float) -> dict[str, Any]:
    """The figures that count, from all cases and the matrix rate in FLOP/s."""
    facts = {f"ratio_{name}": case["ratio"] for name, case in found.items()}
    facts |= {f"mfu_{name}": case["flops_per_s"] / rate for name, case in found.items()}
    return {**facts, "matrix_tflops": rate / 1e12, "cases": found}


def main() -> None:
    """Measure all cases, or say why not."""
    parser = arguments(__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny models on any device: shows that it runs")
    parser.add_argument("--models", nargs="+", choices=sorted(shapes()), default=list(shapes()))
    parser.add_argument("--tokens", nargs="+", type=int, choices=sorted(BATCHES), default=list(BATCHES))
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not given.smoke:
        raise SystemExit("benchmarks.gpu_step measures a GPU, and torch sees none here; --smoke runs it in small")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rate = matrix_rate((512,) if given.smoke else GEMM_SIZES, dtype=dtype, device=device, seconds=0.2)
    say(f"{dtype} matrix rate: {rate / 1e12:.2f} TFLOP/s")
    configs, sizes = {name: shapes()[name] for name in given.models}, {n: BATCHES[n] for n in given.tokens}
    if given.smoke:
        configs, sizes = tiny_shapes(), {32: 4}
    found: dict[str, Any] = {}
    with TemporaryDirectory() as place:
        try:
            for case in measure(Path(place), configs, sizes, device):
                found |= case
                report({"benchmark": "gpu_step", **result_of(found, rate)}, save=given.save)
        except SideFailed as problem:
            raise SystemExit(f"benchmarks.gpu_step: {problem}") from None


if __name__ == "__main__":
    main()

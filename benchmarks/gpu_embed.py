"""How much of a GPU's matrix rate the teacher's pass uses: a 27B Gemma3 and a 0.6B Qwen3, random weights, bf16.

    python -m benchmarks.gpu_embed [--models 27b 0.6b] [--save] [--smoke]

Random token rows of log-normal lengths (median 200, at most 512 tokens), planned and packed as the pass plans them, go
through `Embedder.encode_ids`. The rate is the operations of the real tokens (two for each weight outside of the
embedding table, and attention's two products, causal) over the seconds, against the best measured bf16 matrix product
on the same device. The speed does not depend on what the weights are.

Prints one JSON line last; keys `tokens_per_second`, `gemm_fraction` (aim for the 27B: 0.65), `memory_gib` for each
model. Needs a CUDA GPU: about 60 GB for the 27B. `--smoke` runs the same code with two small layers, here also without.
"""

import sys
import time
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, Gemma3TextConfig, Gemma3TextModel, PretrainedConfig, Qwen3Config, Qwen3Model

from benchmarks.common import arguments, matrix_rate, report, say
from benchmarks.pairs import TEACHER
from embedding.embedder import Embedder
from embedding.layout import resolve_model
from train.student import training_flops

MAX_TOKENS = 512
ROWS = {"27b": 512, "0.6b": 8_192}
"""Of a pass, a second or more of work: two full chunks, and thirty."""
SHAPES: dict[str, tuple[type[torch.nn.Module], type[PretrainedConfig], dict[str, Any]]] = {
    # google/gemma-3-27b-pt's text model
    "27b": (
        Gemma3TextModel,
        Gemma3TextConfig,
        {
            "vocab_size": 262_208,
            "hidden_size": 5_376,
            "intermediate_size": 21_504,
            "num_hidden_layers": 62,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "head_dim": 128,
            "sliding_window": 1_024,
            "query_pre_attn_scalar": 168,
        },
    ),
    # Qwen/Qwen3-0.6B
    "0.6b": (
        Qwen3Model,
        Qwen3Config,
        {
            "vocab_size": 151_936,
            "hidden_size": 1_024,
            "intermediate_size": 3_072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
    ),
}
SMALL = {"vocab_size": 1_000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2}


def build(name: str, device: str, small: bool) -> Embedder:
    """The model with random weights, made on the device itself: 27B parameters in float32 fit in few machines."""
    kind, config_kind, shape = SHAPES[name]
    config = config_kind(**(shape | (SMALL if small else {}) | {"tie_word_embeddings": True}))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if small else torch.bfloat16)
    try:
        with torch.device(device):
            backbone: Any = kind(config)
    finally:
        torch.set_default_dtype(before)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(TEACHER))  # never asked: rows are ids already
    return Embedder(backbone, tokenizer, "last", max_tokens=MAX_TOKENS).requires_grad_(False).eval()


def rows_of(count: int, vocabulary: int) -> list[np.ndarray]:
    """Random rows of ids: int32 [length] each."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(200), 0.8, count), 4, MAX_TOKENS).astype(int)
    return [rng.integers(0, vocabulary, length, dtype=np.int32) for length in lengths]


def measure(name: str, device: str, rate: float, small: bool) -> dict[str, Any]:
    """Tokens/s and the fraction of the matrix rate, the best of three passes after one to warm up."""
    embedder = build(name, device, small)
    rows = rows_of(16 if small else ROWS[name], embedder.backbone.config.vocab_size)
    lengths_N = np.array([len(row) for row in rows])
    seconds = []
    for _ in range(2 if small else 4):
        begun = time.perf_counter()
        vectors_NE = embedder.encode_ids(rows)  # ends on the CPU, so the device is done
        seconds.append(time.perf_counter() - begun)
    assert np.isfinite(vectors_NE).all()
    best = min(seconds[1:])
    result = {
        "parameters": sum(p.numel() for p in embedder.backbone.parameters()),
        "packed": embedder.packs,
        "tokens_per_second": float(lengths_N.sum()) / best,
        "gemm_fraction": training_flops(embedder, lengths_N) / 3 / best / rate,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
    }
    say(f"{name}: {result['tokens_per_second']:,.0f} tokens/s, {result['gemm_fraction']:.2f} of the matrix rate")
    return result


def main() -> int:
    """Both models in turn."""
    options = arguments(__doc__)
    options.add_argument("--models", nargs="+", choices=sorted(SHAPES), default=["27b", "0.6b"])
    options.add_argument("--smoke", action="store_true", help="two small layers, to see that it works; any device")
    given = options.parse_args()
    if not torch.cuda.is_available() and not given.smoke:
        print("gpu_embed needs a CUDA GPU, and none is here; --smoke shows that it runs", file=sys.stderr)
        return 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = (256,) if given.smoke else (4_096, 8_192, 16_384)
    rate = matrix_rate(sizes, dtype=torch.float32 if given.smoke else torch.bfloat16, device=device)
    models = {}
    for name in given.models:
        models[name] = measure(name, device, rate, given.smoke)
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    report({"benchmark": "gpu_embed", "matrix_flops": rate, "models": models}, save=given.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""On a CUDA device: the variable-length kernel is what runs, and it gives what float64 gives."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from embedding import attention
from embedding.attention import packed_attention
from embedding.embedder import Embedder
from embedding.layout import resolve_model

from .conftest import TEACHER, backbone

pytestmark = pytest.mark.gpu
LENGTHS = [1, 7, 64, 65, 300]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of every call of the kernel."""
    kernel, found = attention.varlen_attn, []
    assert kernel is not None

    def counted(*arguments: Any, **options: Any) -> Any:
        found.append(options)
        return kernel(*arguments, **options)

    monkeypatch.setattr(attention, "varlen_attn", counted)
    return found


def off(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|."""
    expected = expected.to(found.device, torch.float64)
    return float((found.double() - expected).norm() / expected.norm())


def attend(inputs: list[Tensor], starts: Tensor, causal: bool, window: int | None) -> list[Tensor]:
    """The output and the gradients of the inputs, for a fixed random cotangent."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    module = torch.nn.Module()
    starts = starts.to(leaves[0].device)
    options: dict[str, Any] = {"is_causal": causal, "sliding_window": window, "scaling": 0.11}
    out, _ = packed_attention(module, *leaves, None, cu_seq_lens_q=starts, max_length_q=max(LENGTHS), **options)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out.backward(cotangent.to(out))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(12, 12, 32), (16, 8, 128), (4, 1, 256)])
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (True, 16)])
def test_the_kernel_gives_what_float64_gives_gradients_too(
    heads: int, kv_heads: int, width: int, causal: bool, window: int | None, calls: list[dict[str, Any]]
) -> None:
    starts = torch.tensor([0, *np.cumsum(LENGTHS)], dtype=torch.int32)
    shapes = [(1, count, sum(LENGTHS), width) for count in (heads, kv_heads, kv_heads)]
    inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]
    found = attend(inputs, starts, causal, window)
    assert len(calls) == 1
    expected = attend([x.cpu().double() for x in inputs], starts, causal, window)
    assert len(calls) == 1
    for ours, reference in zip(found, expected, strict=True):
        assert off(ours, reference) < 1e-2


def vectors_and_gradient(model: Embedder, rows: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Vectors, and the gradient of all weights in one, of a sum with fixed random weights."""
    model.zero_grad()
    vectors = model.embed_rows(rows)
    draws = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2))
    (vectors * draws.to(vectors.device)).sum().backward()
    gradients = [p.grad.double().flatten().cpu() for p in model.parameters() if p.grad is not None]
    return vectors.detach(), torch.cat(gradients)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
def test_a_student_in_training_runs_the_kernel_in_every_layer(kind: str, calls: list[dict[str, Any]]) -> None:
    """fp32 weights under bf16 autocast, as training has them, against fp32 on the CPU."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(TEACHER))
    wider = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}  # the kernel does not take heads of 12
    window = {"sliding_window": 16} if kind == "gemma3" else {}
    model = Embedder(backbone(kind, **wider, **window), tokenizer, "last", max_tokens=512).train()
    rows = [np.random.default_rng(n).integers(5, 30_000, n).astype(np.int32) for n in LENGTHS]
    expected, gradient = vectors_and_gradient(model, rows)
    assert not calls
    model.cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert model.packs
        calls.clear()  # of the trial
        found, its_gradient = vectors_and_gradient(model, rows)
    assert len(calls) == 3
    if kind == "gemma3":
        assert [options["window_size"] for options in calls] == [(15, 0), (-1, 0), (15, 0)]
    assert off(found.cpu(), expected) < 2e-2
    assert off(its_gradient, gradient) < 5e-2

"""Attention over packed texts: core PyTorch's variable-length kernel behind transformers' attention interface.

A packed chunk is one row of tokens, texts end to end, with offsets that say where each begins. On CUDA in half
precision `torch.nn.attention.varlen.varlen_attn` runs (flash attention); everywhere else each text goes through
`scaled_dot_product_attention` by itself, which is slow and exact, and is what the tests compare against.

Shapes: H query heads, K key-value heads, T tokens, d head width, N texts.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

varlen_attn: Callable[..., Any] | None
try:
    from torch.nn.attention import varlen
except ImportError:  # torch before 2.10
    varlen_attn = None
else:
    varlen_attn = varlen.varlen_attn

NAME = "eyas_varlen"
_PARAMETERS = inspect.signature(varlen_attn).parameters if varlen_attn is not None else {}
HAS_WINDOW = "window_size" in _PARAMETERS
HAS_GROUPED_HEADS = "enable_gqa" in _PARAMETERS


def computing_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What attention over numbers of `dtype` computes in: autocast's type where that is on, as with sdpa."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype


def kernel_runs(query: Tensor) -> bool:
    """Whether the variable-length kernel takes this tensor: it wants CUDA and half precision."""
    return varlen_attn is not None and query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature over one packed row: [1, H, T, d], [1, K, T, d] -> [1, T, H, d].

    `sliding_window` w lets a token see itself and the w - 1 before it (transformers' convention).

    Raises:
        ValueError: called on a padded batch (no offsets), or with attention dropout, which the kernel lacks.
    """
    if dropout:
        raise ValueError(f"{NAME} attention has no dropout, got {dropout}; set the model's attention dropout to 0")
    if cu_seq_lens_q is None or max_length_q is None or query.shape[0] != 1:
        raise ValueError(f"{NAME} attention got a padded batch; it takes one packed row with cu_seq_lens_q")
    causal = bool(module.is_causal) if is_causal is None else is_causal
    window = sliding_window if sliding_window and sliding_window < max_length_q else None
    # A norm with fp32 weights between projection and attention (Qwen3, Gemma3) leaves queries and keys in fp32 under
    # autocast, which the kernel does not take.
    query, key, value = (x.to(computing_dtype(x.device, x.dtype)) for x in (query, key, value))
    query_TH, key_TK, value_TK = (x[0].transpose(0, 1) for x in (query, key, value))
    if kernel_runs(query) and (window is None or HAS_WINDOW):
        out_TH = _varlen(query_TH, key_TK, value_TK, cu_seq_lens_q, max_length_q, scaling, causal, window)
    else:
        out_TH = _one_by_one(query_TH, key_TK, value_TK, cu_seq_lens_q, scaling, causal, window)
    return out_TH.unsqueeze(0), None


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts_N1: Tensor,
    longest: int,
    scaling: float | None,
    causal: bool,
    window: int | None,
) -> Tensor:
    assert varlen_attn is not None, "checked by kernel_runs"
    options: dict[str, Any] = {"scale": scaling}
    if HAS_WINDOW:
        # flash attention counts the tokens to the left of the current one
        left = -1 if window is None else window - 1
        options["window_size"] = (left, 0 if causal else left)
    else:
        options["is_causal"] = causal
    if query.shape[1] != key.shape[1]:
        if HAS_GROUPED_HEADS:
            options["enable_gqa"] = True
        else:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    out: Tensor = varlen_attn(
        query.contiguous(), key.contiguous(), value.contiguous(), starts_N1, starts_N1, longest, longest, **options
    )
    return out


def _one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts_N1: Tensor,
    scaling: float | None,
    causal: bool,
    window: int | None,
) -> Tensor:
    out = []
    bounds = starts_N1.tolist()
    for start, end in pairwise(bounds):
        q, k, v = (x[start:end].transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        mask = None
        if window is not None:
            at = torch.arange(end - start, device=query.device)
            distance = at[:, None] - at[None, :]
            mask = distance.abs() < window if not causal else (distance >= 0) & (distance < window)
        one = nn.functional.scaled_dot_product_attention(
            q, k, v, mask, is_causal=causal and mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        out.append(one[0].transpose(0, 1))
    return torch.cat(out)


def packed_mode(backbone: PreTrainedModel) -> AbstractContextManager[None]:
    """Run `backbone` with packed attention inside the block.

    transformers builds no mask for a name it does not know: right for a packed row, and the reason why padded batches
    must always go through `sdpa`.
    """
    return _mode(backbone, NAME)


def recomputed_alike(backbone: PreTrainedModel) -> Callable[[], tuple[Any, Any]]:
    """What `torch.utils.checkpoint` takes as `context_fn` for single layers: they are recomputed with the attention
    that they ran with. A layer looks up its name whenever it runs, and in the backward pass `packed_mode` has ended."""
    return lambda: (nullcontext(), _mode(backbone, backbone.config._attn_implementation))


@contextmanager
def _mode(backbone: PreTrainedModel, name: str | None) -> Iterator[None]:
    config = backbone.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


AttentionInterface.register(NAME, packed_attention)

"""Attention over packed texts, behind transformers' attention interface.

A packed chunk is one row of tokens, texts end to end, with offsets that say where each begins. On CUDA in half
precision core PyTorch's variable-length kernel runs, `torch.nn.attention.varlen.varlen_attn` (flash attention);
everywhere else texts of about one length go through `scaled_dot_product_attention` together, padded for it alone.

Shapes: H query heads, K key-value heads, T tokens, d head width, N texts; n texts of a group, L tokens of its longest.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from embedding.tokens import plan_chunks

varlen_attn: Callable[..., Any] | None
try:
    from torch.nn.attention import varlen
except ImportError:  # torch before 2.10
    varlen_attn = None
else:
    varlen_attn = varlen.varlen_attn

NAME = "eyas_varlen"
GROUP_TOKENS = 16_384
"""Padded tokens of a group at most."""
GROUP_COST = 64
"""What one more group costs, in padded tokens: one layer of all-MiniLM-L6-v2 on two cores is about equally fast from 64
to 1,024."""
_PARAMETERS = inspect.signature(varlen_attn).parameters if varlen_attn is not None else {}
HAS_WINDOW = "window_size" in _PARAMETERS
HAS_GROUPED_HEADS = "enable_gqa" in _PARAMETERS


def computing_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What attention over numbers of `dtype` computes in: autocast's type where that is on, as with sdpa."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype


def measured_in(device: torch.device) -> torch.dtype | None:
    """What a model computes in where it is measured; None: in the type of its weights.

    On a GPU bfloat16: PyTorch has no kernel for float32 with grouped heads (Qwen3, Gemma3) but the one that holds all
    scores of a text, 137 GB for 32k tokens and 32 heads.
    """
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None


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
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature over one packed row: [1, H, T, d], [1, K, T, d] -> [1, T, H, d].

    `sliding_window` w lets a token see itself and the w - 1 before it (transformers' convention).

    Raises:
        ValueError: called on a padded batch (no offsets), with attention dropout where the kernel runs, which lacks it,
            or with what neither way has: Gemma 2's cap on the scores, gpt-oss' sinks.
    """
    if softcap is not None or s_aux is not None:
        raise ValueError(f"{NAME} attention has no softcap ({softcap}) and no sinks; this model runs padded")
    if cu_seq_lens_q is None or max_length_q is None or query.shape[0] != 1:
        raise ValueError(f"{NAME} attention got a padded batch; it takes one packed row with cu_seq_lens_q")
    causal = bool(module.is_causal) if is_causal is None else is_causal
    window = sliding_window if sliding_window and sliding_window < max_length_q else None
    # A norm with fp32 weights between projection and attention (Qwen3, Gemma3) leaves queries and keys in fp32 under
    # autocast, which the kernel does not take.
    query, key, value = (x.to(computing_dtype(x.device, x.dtype)) for x in (query, key, value))
    query_TH, key_TK, value_TK = (x[0].transpose(0, 1) for x in (query, key, value))
    if kernel_runs(query) and (window is None or HAS_WINDOW):
        if dropout:
            raise ValueError(f"{NAME} attention has no dropout, got {dropout}; set the model's attention dropout to 0")
        out_TH = _varlen(query_TH, key_TK, value_TK, cu_seq_lens_q, max_length_q, scaling, causal, window)
    else:
        out_TH = _grouped(query_TH, key_TK, value_TK, cu_seq_lens_q, scaling, causal, window, dropout)
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


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it plans on the host
def _grouped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts_N1: Tensor,
    scaling: float | None,
    causal: bool,
    window: int | None,
    dropout: float,
) -> Tensor:
    """Texts of about one length together, padded to the longest of them for the attention alone."""
    starts = starts_N1.cpu().numpy().astype(np.int64)
    length_N = np.diff(starts)
    parts, places = [], []
    for group in plan_chunks(length_N, GROUP_TOKENS, cost=GROUP_COST):
        at_L = np.arange(int(length_N[group].max()))
        real_nL = at_L < length_N[group, None]
        place_nL = starts[group, None] + np.minimum(at_L, length_N[group, None] - 1)
        place = torch.from_numpy(place_nL.ravel()).to(query.device)
        q, k, v = (
            x.index_select(0, place).view(*place_nL.shape, *x.shape[1:]).transpose(1, 2) for x in (query, key, value)
        )
        mask = _mask(torch.from_numpy(real_nL).to(query.device), causal, window)
        out = nn.functional.scaled_dot_product_attention(
            q, k, v, mask, dropout, causal and mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        here = torch.from_numpy(np.flatnonzero(real_nL)).to(query.device)
        parts.append(out.transpose(1, 2).flatten(0, 1).index_select(0, here))
        places.append(place_nL[real_nL])
    back = torch.from_numpy(np.argsort(np.concatenate(places))).to(query.device)
    return torch.cat(parts).index_select(0, back)


def _mask(real_nL: Tensor, causal: bool, window: int | None) -> Tensor | None:
    """What a token may look at: bool, [n, 1, L, L] or a shape that is spread to it; None where no mask is needed.

    Padding on the right lies in the future of every token of a causal model.
    """
    if window is None and (causal or bool(real_nL.all())):
        return None
    mask = real_nL[:, None, None, :]
    if window is not None:
        at_L = torch.arange(real_nL.shape[1], device=real_nL.device)
        distance_LL = at_L[:, None] - at_L
        near_LL = (distance_LL >= 0) & (distance_LL < window) if causal else distance_LL.abs() < window
        # A row of padding, where no key is near, must see something: its own place.
        mask = mask & near_LL | torch.eye(len(at_L), dtype=torch.bool, device=real_nL.device)
    return mask


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

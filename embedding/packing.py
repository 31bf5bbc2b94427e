"""What a text's vector depends on: whether a model runs in packed chunks, and how long a text may be before what stands
beside it in a chunk shows in its vector."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from embedding.attention import NAME, packed_attention
from embedding.pooling import normalize

ALIKE, ALIKE_IN_HALF = 1e-5, 1e-2
"""1 - cosine that rounding makes between two ways to compute a vector, at most."""
KNOWN_LAYERS = {"full_attention", "sliding_attention"}


class TwoWays(Protocol):
    """What a trial asks of an embedder."""

    backbone: PreTrainedModel
    training: bool

    @property
    def device(self) -> torch.device:
        """Where it is."""

    def train(self, mode: bool = True) -> Any:
        """As of nn.Module."""

    def padded(self, rows: Sequence[np.ndarray]) -> Tensor:
        """Vectors of id rows in a padded chunk: [n, D]."""

    def packed(self, rows: Sequence[np.ndarray]) -> Tensor:
        """The same in a packed one."""


def comes_out_alike(model: TwoWays, dtype: torch.dtype) -> bool:
    """Whether a packed chunk has the vectors of a padded one, computed in `dtype` where `model` is. It has not where a
    model has an attention of its own (MPNet, DeBERTa), caps its scores (Gemma 2), or joins neighbouring tokens before
    the first layer (MobileBERT): there a text would see the one before it. Nor where the kernel refuses its heads.

    What short texts cannot show is read: layers that look at pieces of a text (Llama 4), and windows that a model puts
    into its mask alone and does not hand to the attention (Qwen2-MoE): a packed row has no mask.

    Raises:
        torch.OutOfMemoryError: the device is full, which says nothing of the model.
    """
    backbone: Any = model.backbone
    if not backbone._supports_attention_backend or not KNOWN_LAYERS.issuperset(_layer_types(backbone.config)):
        return False
    rows = [np.array([1005, 1006, 1007]), np.array([1008, 1009])]
    rows = [row % backbone.config.vocab_size for row in rows]
    half, device = dtype.itemsize < 4, model.device.type
    mixed = half and dtype != backbone.dtype
    before = model.training
    model.train(False)
    try:
        # Not with autocast's cache: it would keep casts of the weights without a gradient.
        with torch.no_grad(), torch.autocast(device, dtype if mixed else None, mixed, cache_enabled=False):
            padded_ND = normalize(model.padded(rows))
            with _noted_windows() as windows:
                try:
                    packed_ND = normalize(model.packed(rows))
                except torch.OutOfMemoryError:
                    raise
                except (RuntimeError, TypeError, ValueError):  # it takes no offsets, or its attention does more
                    return False
    finally:
        model.train(before)
    if "sliding_attention" in _layer_types(backbone.config) and not any(windows):
        return False
    return bool((packed_ND * padded_ND).sum(dim=1).min() > 1 - (ALIKE_IN_HALF if half else ALIKE))


def fixed_rotary(config: PreTrainedConfig) -> int | None:
    """Tokens up to which a rotary embedding turns a position by a fixed angle; None: it always does. Beyond, dynamic
    NTK and LongRoPE (arXiv:2402.13753) go by the longest text of a chunk (`transformers.modeling_rope_utils`), and
    dynamic NTK by those of earlier chunks too."""
    found = getattr(config, "rope_parameters", None) or {}
    kinds = [found] if "rope_type" in found else [kind for kind in found.values() if isinstance(kind, dict)]
    limits = []
    for kind in kinds:
        if "dynamic" in kind["rope_type"]:
            limits.append(config.max_position_embeddings)
        elif kind["rope_type"] == "longrope":
            limits.append(kind["original_max_position_embeddings"])
    return min(limits, default=None)


def _layer_types(config: PreTrainedConfig) -> list[str]:
    """What the layers look at; a config without such a list has one kind."""
    if types := getattr(config, "layer_types", None):
        return list(types)
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return ["sliding_attention" if windowed else "full_attention"]


@contextmanager
def _noted_windows() -> Iterator[list[int | None]]:
    """The windows that a model hands to packed attention within the block."""
    windows: list[int | None] = []

    def noting(*args: Any, **kwargs: Any) -> Any:
        windows.append(kwargs.get("sliding_window"))
        return packed_attention(*args, **kwargs)

    AttentionInterface.register(NAME, noting)
    try:
        yield windows
    finally:
        AttentionInterface.register(NAME, packed_attention)

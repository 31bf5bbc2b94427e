"""Some layers of a larger model as a student: which ones, by position or by what they do, and the smaller model."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig

from embedding.embedder import Embedder
from train.recipe import PrunedStudent

IMPORTANCE_TEXTS = 256
"""Texts that the layers are measured on: some ten thousand tokens of the run's own."""


def spaced(keep: int, total: int) -> list[int]:
    """`keep` of `total` layers at even distances, the last one among them."""
    return [(i + 1) * total // keep - 1 for i in range(keep)]


def importance(embedder: Embedder, texts: Sequence[str]) -> np.ndarray:
    """How much each layer changes a token's state: 1 - the mean cosine of its input and output over all tokens of the
    texts (block influence of ShortGPT, Men 2024, arXiv:2403.03853): [layers], float64.
    """
    backbone: Any = embedder.backbone
    layers = next(m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == _layers(embedder))
    moved, tokens = np.zeros(len(layers)), np.zeros(len(layers))

    def watch(number: int) -> Any:
        def note(module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = inputs[0] if inputs else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
            moved[number] += float((1 - cosine).sum())
            tokens[number] += cosine.numel()

        return note

    _ = embedder.causal, embedder.packs  # found out by passes of their own, which must not be counted
    hooks = [layer.register_forward_hook(watch(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        # one text at a time: padding would count as tokens
        embedder.encode(list(texts), role="document", token_budget=1)
    finally:
        for hook in hooks:
            hook.remove()
    return moved / tokens


def placed_layers(start: PrunedStudent, total: int) -> list[int]:
    """The layers that a recipe keeps of a model's `total`, ascending; where importance chooses them, so many at even
    distances.

    Raises:
        ValueError: the model has no such layers.
    """
    if start.layers is not None:
        if start.layers[-1] >= total:
            raise ValueError(f"student.start.layers {start.layers}: the model has layers 0 to {total - 1}")
        return start.layers
    assert start.keep is not None, "the recipe demands one of the two"
    if start.keep > total:
        raise ValueError(f"student.start.keep {start.keep}: the model has {total} layers")
    return list(range(total - start.keep, total)) if start.by == "top" else spaced(start.keep, total)


def chosen_layers(start: PrunedStudent, source: Embedder, texts: Sequence[str]) -> list[int]:
    """The layers that a recipe keeps of a model, ascending; `texts` are what importance is measured on.

    Raises:
        ValueError: the model has no such layers, or importance is asked for without a text.
    """
    placed = placed_layers(start, _layers(source))
    if start.layers is not None or start.by != "importance":
        return placed
    if not texts:
        raise ValueError("student.start.by is importance, which is measured on texts: prepare the data first")
    order = np.argsort(-importance(source, texts[:IMPORTANCE_TEXTS]), kind="stable")
    return sorted(int(layer) for layer in order[: len(placed)])


def pruned(source: Embedder, layers: Sequence[int]) -> Embedder:
    """A copy of some layers of a model, everything around them unchanged.

    Raises:
        ValueError: a layer has other parts in the place that it is to move to (the first of ModernBERT has no norm).
    """
    config = type(source.backbone.config).from_dict(source.backbone.config.to_dict())
    keep_layers(config, layers)
    backbone = AutoModel.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    place = {layer: position for position, layer in enumerate(layers)}
    state: dict[str, Tensor] = {}
    for name, tensor in source.backbone.state_dict().items():
        head, dot, rest = name.partition("layer." if "layer." in name else "layers.")
        if dot:
            number, _, tail = rest.partition(".")
            if int(number) not in place:
                continue
            name = f"{head}{dot}{place[int(number)]}.{tail}"
        state[name] = tensor.detach().clone()
    missing, unexpected = backbone.load_state_dict(state, strict=False)
    left = [key for key in missing if not key.startswith("pooler.")]
    if left or unexpected:
        raise ValueError(
            f"layers {list(layers)} of a {config.model_type} do not fit their new places "
            f"({', '.join(left + unexpected)}); keep its first layer too (student.start.layers)"
        )
    return Embedder(
        backbone,
        deepcopy(source.tokenizer),
        source.pooling,
        max_tokens=source.max_tokens,
        template=source.template,
        prompts=source.prompts,
        dense=[deepcopy(head).requires_grad_(True) for head in source.heads],  # a teacher's own are frozen
        normalize=source.normalize,
    )


def keep_layers(config: PreTrainedConfig, layers: Sequence[int]) -> None:
    """Make `config` that of a model with some of its layers: their number, and each list that has an entry for every
    layer (`layer_types`; SmolLM3's `no_rope_layers`, which nothing else would tell)."""
    for name, value in config.to_dict().items():
        if "layer" in name and isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(config, name, [value[layer] for layer in layers])
    config.num_hidden_layers = len(layers)


def _layers(embedder: Embedder) -> int:
    return int(embedder.backbone.config.num_hidden_layers)

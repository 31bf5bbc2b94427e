"""How large a model is, read off its configuration alone: no weights are loaded and no memory is taken.

Shapes: n texts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from embedding.files import expanded
from embedding.instruction import Template
from embedding.layout import PACKAGE, read_layout, resolve_model
from embedding.tokens import lower_case
from train.fold import check_foldable
from train.lora import check_targets
from train.pruning import keep_layers, placed_layers
from train.recipe import BuiltStudent, Lora, PrunedStudent
from train.student import built_config

TRACED_TOKENS = 16
"""Tokens of the texts that a model is traced with: so few that the scores between tokens, which the fused kernels of a
GPU do not keep, weigh nothing."""
TRACED_TEXTS = 256
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")


@dataclass(frozen=True)
class Weights:
    """A student's parameters in training, by how they are held."""

    trained: int
    """With gradient and AdamW's moments."""
    frozen: int
    """In fp32, as they are loaded."""
    packed: int
    """Frozen, in 4 bits."""
    adapters: int
    """Of the trained ones, those that are not the model's own; 0: no adapters."""
    products: int
    """In matrix products and not packed: autocast makes a bf16 copy of them."""

    @property
    def saved(self) -> int:
        """Of a checkpoint, without the optimizer: 4 bits are unpacked for it."""
        return self.trained + self.frozen + self.packed


@dataclass(frozen=True)
class Shape:
    """What decides time and memory."""

    parameters: int
    matrices: int
    """Parameters in matrix products: all but token and position embeddings, norms and biases."""
    attention: int
    """Layers x heads x head_dim; 0: unknown and left out."""
    causal: bool
    width: int
    """Of the vectors; 0: unknown."""
    layers: int
    live: int
    """Numbers of one token alive at once in a forward pass without gradient, about: five times the width and three
    times the feed-forward width."""
    config: Any = None
    """transformers' own; None where only a number of parameters is known."""

    def forward_flops(self, length_n: np.ndarray) -> float:
        """Operations of a forward pass: a third of `train.student.training_flops`, the same count."""
        pairs = float(np.square(length_n.astype(np.float64)).sum()) * (0.5 if self.causal else 1.0)
        return 2.0 * self.matrices * float(length_n.sum()) + 4.0 * self.attention * pairs

    def weights(self, lora: Lora | None) -> Weights:
        """How its parameters are held while it is trained whole, or with adapters (`train.lora.add_adapters`); those of
        an unknown configuration are left out."""
        if lora is None:
            return Weights(self.parameters, 0, 0, 0, self.matrices)
        layers = self._adapted(lora)
        adapters = lora.rank * sum(layer.in_features + layer.out_features for layer in layers)
        packed = sum(layer.weight.numel() for layer in layers) if lora.four_bit else 0
        return Weights(adapters, self.parameters - packed, packed, adapters, self.matrices - packed + adapters)

    def _adapted(self, lora: Lora) -> list[nn.Linear]:
        """The layers that adapters are put beside: the linear ones, or those whose name ends as the targets do."""
        if self.config is None:
            return []
        with torch.device("meta"):
            model = AutoModel.from_config(self.config)  # type: ignore[no-untyped-call]
        check_targets(model, lora.targets or [])
        linear = {name: x for name, x in model.named_modules() if isinstance(x, nn.Linear)}
        return [
            layer
            for name, layer in linear.items()
            if not name.startswith("pooler.")  # as in `shape_of`
            and (lora.targets is None or any(f".{name}".endswith(f".{target}") for target in lora.targets))
        ]

    def activation_bytes(self, dtype: torch.dtype) -> float:
        """Bytes a token that a forward pass keeps for the backward pass: traced on shapes, nothing is computed.
        Without dropout, which keeps a mask more."""
        if self.config is None:
            return 0.0
        with torch.device("meta"):
            model = AutoModel.from_config(self.config, dtype=dtype)  # type: ignore[no-untyped-call]
        weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        kept: dict[int, Any] = {}

        def note(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage
            return x

        ids_NL = torch.zeros(TRACED_TEXTS, TRACED_TOKENS, dtype=torch.long, device="meta")
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            model.eval()(input_ids=ids_NL)
        return float(sum(storage.nbytes() for storage in kept.values())) / ids_NL.numel()


def shape_of(config: Any, width: int | None = None) -> Shape:
    """The shape of the model that a transformers configuration describes; `width`: of its vectors, where a dense head
    changes it."""
    config = config.get_text_config()
    with torch.device("meta"):
        model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim >= 2 and "embed" not in name)
    pooler = sum(p.numel() for name, p in model.named_parameters() if name.startswith("pooler."))
    pooler_matrix = sum(p.numel() for n, p in model.named_parameters() if n.startswith("pooler.") and p.ndim >= 2)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()) - pooler,
        matrices=matrices - pooler_matrix,
        attention=config.num_hidden_layers * config.num_attention_heads * head_dim,
        causal=hasattr(config, "num_key_value_heads"),  # the decoders' configurations have it, BERT's relatives do not
        width=width or int(config.hidden_size),
        layers=int(config.num_hidden_layers),
        live=5 * int(config.hidden_size) + 3 * _feed_forward(config),
        config=config,
    )


def _feed_forward(config: Any) -> int:
    """Its width, whatever the configuration calls it (DistilBERT: hidden_dim; T5: d_ff)."""
    names = ("intermediate_size", "hidden_dim", "d_ff")
    return next((int(value) for name in names if (value := getattr(config, name, None))), 4 * int(config.hidden_size))


def shape_of_size(parameters: int, width: int) -> Shape:
    """What follows from a number of parameters alone; every one of them is taken to be in a matrix product,
    and the feed-forward width to be four times the width."""
    return Shape(parameters, parameters, 0, causal=True, width=width, layers=0, live=17 * width)


@dataclass(frozen=True)
class Known:
    """What could be read of a model without its weights."""

    shape: Shape | None
    tokenizer: PreTrainedTokenizerBase | None
    why: str = ""
    """Why something is unknown."""
    max_tokens: int | None = None
    """What it reads of a text, where its folder says so."""
    template: Template | None = None
    """Its prompts; None: its folder is not here."""


def known_model(model: str, revision: str | None = None, config: Path | None = None) -> Known:
    """What a model's folder, package or hub repository says of it; from the hub only small files are fetched.

    Args:
        config: a `config.json`, or a folder with one, to read instead.
    """
    if config is not None:
        folder = config if config.is_dir() else config.parent
        return _known(str(folder), None)
    local = model.startswith(PACKAGE) or Path(expanded(model)).exists()
    try:
        folder = resolve_model(model, revision, weights=False)
    except ValueError as error:
        if local:
            raise
        return Known(None, None, str(error))
    layout = read_layout(folder)
    width = layout.dense[-1].out_features if layout.dense else None
    known = _known(str(folder / layout.transformer), width)
    if layout.lower_case and known.tokenizer is not None:
        lower_case(known.tokenizer)
    return replace(known, max_tokens=layout.max_tokens, template=layout.template)


def _known(place: str, width: int | None) -> Known:
    try:
        shape = shape_of(AutoConfig.from_pretrained(place), width)
    except (OSError, ValueError) as error:
        return Known(None, None, f"{place}: {str(error).splitlines()[0]}")
    if not any((Path(place) / name).is_file() for name in TOKENIZER_FILES):
        return Known(shape, None, f"{place}: no tokenizer in it")  # transformers makes an empty one of nothing
    try:
        return Known(shape, AutoTokenizer.from_pretrained(place))
    except (OSError, ValueError) as error:
        return Known(shape, None, f"{place}: no tokenizer ({str(error).splitlines()[0]})")


def known_student(start: Any, teacher: Known, other: Callable[[str, str | None], Known]) -> Known:
    """The student's shape, tokenizer and prompts, as far as they can be known; `other` reads a model that is named.

    Raises:
        ValueError: the model it is cut from has no such layers, or no tables to fold others into.
    """
    if isinstance(start, BuiltStudent):
        tokenizer = teacher.tokenizer if start.tokenizer == "teacher" else other(start.tokenizer, None).tokenizer
        vocabulary = len(tokenizer) if tokenizer is not None else 0
        if not vocabulary and start.tokenizer == "teacher" and teacher.shape and teacher.shape.config:
            vocabulary = int(teacher.shape.config.vocab_size)
        if not vocabulary:
            return Known(None, tokenizer, template=Template())
        ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
        return Known(shape_of(built_config(start, vocabulary, **ids)), tokenizer, template=Template())
    own = isinstance(start, PrunedStudent) and start.model == "teacher"
    source = teacher if own else other(start.model, getattr(start, "revision", None))
    if source.shape is None or source.shape.config is None or not isinstance(start, PrunedStudent):
        return source
    config = type(source.shape.config).from_dict(source.shape.config.to_dict())
    kept = placed_layers(start, int(config.num_hidden_layers))  # which ones makes no difference to the size
    if start.fold and kept[0] > 0:
        with torch.device("meta"):
            check_foldable(AutoModel.from_config(config))  # type: ignore[no-untyped-call]
    keep_layers(config, kept)
    return replace(source, shape=replace(shape_of(config), width=source.shape.width))

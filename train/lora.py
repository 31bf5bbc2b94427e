"""Low-rank adapters on a student (LoRA, Hu 2021, arXiv:2106.09685), through peft; merged into the weights on export.

The adapters are put into the backbone in place: it stays the class that it was, so that checkpoints, export and
evaluation see one module. A checkpoint holds base and adapter weights under their own names and is loaded strictly:
adapters of another shape or class are an error, never zeros.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from embedding.embedder import Embedder
from train.four_bit import in_four_bits, require_four_bit
from train.recipe import Lora


def add_adapters(embedder: Embedder, config: Lora) -> None:
    """Put adapters beside linear layers of the backbone; from then on only they are trained.

    Raises:
        ValueError: a target names no linear layer of the model, or 4-bit weights cannot be had here.
    """
    check_targets(embedder.backbone, config.targets or [])
    embedder.dense.requires_grad_(False)
    if config.four_bit:
        require_four_bit()
        in_four_bits(embedder.backbone, config.targets or _linear_names(embedder.backbone))
    from peft import LoraConfig, inject_adapter_in_model

    backbone: Any = embedder.backbone
    targets: Any = "all-linear" if config.targets is None else list(config.targets)
    settings = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets, lora_dropout=0.0, bias="none")
    if targets == "all-linear":
        # peft's own word for it works on its wrapped models only
        settings.target_modules = _linear_names(embedder.backbone)
    inject_adapter_in_model(settings, embedder.backbone)
    # Checkpointed layers get their gradient through their inputs, and the frozen token embeddings give them none.
    backbone.enable_input_require_grads()


def check_targets(backbone: nn.Module, targets: Sequence[str]) -> None:
    """Every target must name linear layers, as peft reads names: what a layer's name ends with.

    Raises:
        ValueError: one names none, or other layers too, whose adapters are no product that could be merged here.
    """
    for target in targets:
        named = [module for name, module in backbone.named_modules() if f".{name}".endswith(f".{target}")]
        if not named or not all(isinstance(module, nn.Linear) for module in named):
            names = ", ".join(_linear_names(backbone))
            raise ValueError(f"student.lora.targets: {target!r} names no linear layer; the model has {names}")


def _linear_names(module: nn.Module) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name, m in module.named_modules() if isinstance(m, nn.Linear)})


def merge_adapters(embedder: Embedder) -> None:
    """Add the adapters to the weights they belong to and take them away: an ordinary model is left."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(embedder.backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            parent, _, own = name.rpartition(".")
            setattr(embedder.backbone.get_submodule(parent), own, module.get_base_layer())
    if hasattr(embedder.backbone, "peft_config"):
        del embedder.backbone.peft_config
    embedder.backbone._hf_peft_config_loaded = False


def without_adapters(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """A student's weights with its adapters added to them (W + scale · B A) and B zero: the same model, and the mean of
    such weights is that of the models. The mean of A and that of B would give another product."""
    added = dict(state)
    for name, down_RI in state.items():
        layer, adapter, rest = name.partition(".lora_A.")
        if adapter:
            up = f"{layer}.lora_B.{rest}"
            base = f"{layer}.base_layer.weight"
            added[base] = (state[base].float() + scale * state[up].float() @ down_RI.float()).to(state[base].dtype)
            added[up] = torch.zeros_like(state[up])
    return added

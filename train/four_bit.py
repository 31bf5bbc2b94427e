"""Base weights under adapters in 4 bits (QLoRA, Dettmers 2023, arXiv:2305.14314), through bitsandbytes, on a GPU."""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn


def require_four_bit() -> None:
    """Find out whether 4-bit weights can be had here.

    Raises:
        ValueError: there is no CUDA device, or bitsandbytes is not installed.
    """
    if not torch.cuda.is_available():
        raise ValueError("student.lora.four_bit needs a CUDA device, and there is none here; set it to false")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("student.lora.four_bit needs bitsandbytes, which is not installed: pip install 'eyas[qlora]'")


class FourBitLinear(nn.Linear):
    """A frozen linear layer that holds its weight as nf4 from the moment it is on a GPU.

    Its state is that of an ordinary layer, the weight as the 4 bits say it: a checkpoint can be loaded anywhere.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._packed: Tensor | None = None
        self._scales: Any = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight.is_cuda and self._packed is None:
            self._pack(self.weight.detach())
            self.weight = nn.Parameter(self.weight.new_empty(0), requires_grad=False)
        return self

    def _pack(self, weight_OI: Tensor) -> None:
        from bitsandbytes.functional import quantize_4bit

        self._packed, self._scales = quantize_4bit(weight_OI.contiguous(), quant_type="nf4")

    def _unpacked(self) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self._packed, self._scales)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """The layer's product; the weight is unpacked for it, and again for the gradient of its input."""
        if self._packed is None:
            return super().forward(x)
        from bitsandbytes import matmul_4bit

        return matmul_4bit(x, self._packed.t(), quant_state=self._scales, bias=self.bias)  # type: ignore[no-any-return]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._packed is not None:
            destination[f"{prefix}weight"] = self._unpacked().cpu()  # unpacked together they would not fit the GPU

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if self._packed is not None and f"{prefix}weight" in state_dict:
            self._pack(state_dict[f"{prefix}weight"].to(self._packed.device))
            state_dict = {**state_dict, f"{prefix}weight": self.weight.detach()}
        super()._load_from_state_dict(state_dict, prefix, *rest)


def in_four_bits(backbone: nn.Module, names: Sequence[str]) -> None:
    """Put a `FourBitLinear` in the place of every linear layer whose name ends in one of `names`."""
    for name, module in list(backbone.named_modules()):
        parent, _, own = name.rpartition(".")
        if isinstance(module, nn.Linear) and own in names:
            setattr(backbone.get_submodule(parent), own, FourBitLinear(module))

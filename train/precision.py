"""Which numbers a training computes in."""

import os
from typing import Literal

import torch

from train.recipe import ComputeConfig


def mixed_precision(compute: ComputeConfig) -> Literal["bf16", "no"]:
    """`compute.precision` as Accelerate names it. auto: what the launcher's config says, else bf16 on a GPU that
    computes in it (from Ampere on; older ones only pretend to).

    Raises:
        ValueError: the launcher's config asks for fp16 or fp8.
    """
    wanted: str = compute.precision
    if wanted == "auto":
        able = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        wanted = os.environ.get("ACCELERATE_MIXED_PRECISION", "bf16" if able else "no")
        if wanted not in ("bf16", "no"):
            raise ValueError(f"mixed_precision {wanted!r} of the launcher's config: expected bf16 or no")
    return "bf16" if wanted == "bf16" else "no"

"""From token states to one vector: pooling on any padding side, L2 normalisation, Matryoshka cut. Pure functions.

Shapes: N texts, L tokens of the longest, D width of the vectors.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

Pooling = Literal["last", "mean", "cls"]
EMPTY = "a text has no tokens, so nothing to pool; drop empty texts or let the tokenizer add its EOS"


def pool(hidden_NLD: Tensor, mask_NL: Tensor, mode: Pooling) -> Tensor:
    """One vector per text from its token states: [N, L, D] and a mask of ones at tokens -> [N, D].

    last: the state of the last token (Harrier, Qwen3-Embedding); found from the mask, never from token ids, because the
    EOS may be the padding token. mean: the average over tokens (Sentence-BERT, arXiv:1908.10084 section 3), summed in
    fp32. cls: the state of the first token. Left and right padding give the same vectors.

    Raises:
        ValueError: unknown mode, or a text without a single token.
    """
    if mode not in get_args(Pooling):
        raise ValueError(f"pooling {mode!r}: expected one of {', '.join(get_args(Pooling))}")
    if not bool(mask_NL.any(dim=1).all()):
        raise ValueError(EMPTY)
    if mode == "mean":
        weights_NL1 = mask_NL.unsqueeze(-1).to(torch.float32)
        return (hidden_NLD.to(torch.float32) * weights_NL1).sum(dim=1) / weights_NL1.sum(dim=1)
    position_L = torch.arange(mask_NL.shape[1], device=mask_NL.device)
    present_NL = mask_NL.bool()
    if mode == "last":
        at_N = torch.where(present_NL, position_L, -1).amax(dim=1)
    else:
        at_N = torch.where(present_NL, position_L, mask_NL.shape[1]).amin(dim=1)
    return hidden_NLD[torch.arange(hidden_NLD.shape[0], device=at_N.device), at_N]


def pool_packed(hidden_TD: Tensor, starts_N1: Tensor, mode: Pooling) -> Tensor:
    """`pool` for texts laid end to end without padding: states [T, D], start offsets [N + 1] -> [N, D]."""
    if mode == "last":
        return hidden_TD[starts_N1[1:] - 1]
    if mode == "cls":
        return hidden_TD[starts_N1[:-1]]
    lengths_N = starts_N1.diff()
    text_T = torch.repeat_interleave(torch.arange(len(lengths_N), device=lengths_N.device), lengths_N)
    sums_ND = hidden_TD.new_zeros(len(lengths_N), hidden_TD.shape[1], dtype=torch.float32)
    return sums_ND.index_add(0, text_T, hidden_TD.to(torch.float32)) / lengths_N[:, None]


def normalize(x_ND: Tensor) -> Tensor:
    """Rows scaled to unit L2 norm, in fp32 whatever the input (bf16 similarities tie)."""
    return torch.nn.functional.normalize(x_ND.to(torch.float32), dim=-1)


def truncate(x_ND: Tensor, dim: int) -> Tensor:
    """Matryoshka cut (arXiv:2205.13147): the first `dim` numbers of each row, at unit norm again, fp32.

    Raises:
        ValueError: `dim` is not between 1 and the width.
    """
    if not 1 <= dim <= x_ND.shape[-1]:
        raise ValueError(f"dim {dim}: expected 1 to {x_ND.shape[-1]}, the width of the vectors")
    return normalize(x_ND[..., :dim])

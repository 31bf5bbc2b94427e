"""A start in closed form for a decoder built from nothing: before its first step it is a good static embedder.

A random decoder spends most of a short training on learning to average its tokens. That much is known beforehand, so
the weights are set to do it: the last layer attends uniformly and adds one linear map of the weighted mean of the token
vectors, fitted to the teacher's vectors by ridge regression; every other branch starts at zero. No gradient is taken,
and an unmodified transformers model holds the result. Ingredients: SIF weights (Arora et al. 2017, "A simple but
tough-to-beat baseline for sentence embeddings"), a transformer's token vectors as a static model (model2vec),
zero-initialised residual branches (Fixup, arXiv:1901.09321).

Shapes: V vocabulary, D width of student and teacher, N texts.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedding.embedder import Embedder

SIF = 1e-3
"""a in a / (a + p): the middle of the range that Arora et al. recommend."""
RIDGE = 1.0
"""On rows of unit norm, so a text's worth of evidence."""
EMBEDDING_NORM = 20.0
"""Of every token vector: elements about 1 at width 384, so that AdamW's first steps on the zero branches stay small
beside them (with norm 1 a single step of 1e-4 drowned them)."""
BRANCH_SCALE = 4.0
"""Of the fitted map, against the residual stream."""


def static_start(student: Embedder, rows: Sequence[np.ndarray], teacher_ND: np.ndarray) -> float:
    """Set `student`'s weights from its own token vectors and the teacher's vectors of `rows` (id rows, as trained on).

    Returns the mean cosine between fit and teacher, to be logged.

    Raises:
        ValueError: see `check_static`, or the teacher has another width.
    """
    backbone: Any = student.backbone
    config = backbone.config
    width = int(config.hidden_size)
    check_static(config)
    if teacher_ND.shape[1] != width:
        raise ValueError(
            f"student.start.init is static, which needs the teacher's width {teacher_ND.shape[1]}; got {width}; set "
            "init to random"
        )
    teacher = torch.from_numpy(np.asarray(teacher_ND, dtype=np.float32))
    flat = torch.from_numpy(np.concatenate(rows).astype(np.int64))
    offsets = torch.from_numpy(np.cumsum([0, *(len(row) for row in rows[:-1])]))
    with torch.no_grad():
        table = backbone.embed_tokens.weight
        unit_VD = _weighted_directions(table.float().cpu(), flat, student)
        mean_ND = torch.nn.functional.embedding_bag(flat, unit_VD, offsets, mode="mean")
        filler = float(mean_ND[:, -1].mean())
        inputs_ND = torch.nn.functional.normalize(mean_ND[:, :-1])
        map_DD = torch.linalg.solve(inputs_ND.T @ inputs_ND + RIDGE * torch.eye(width - 1), inputs_ND.T @ teacher)
        table.copy_(unit_VD * EMBEDDING_NORM)
        _set_layers(backbone, map_DD, filler)
    fit_ND = torch.nn.functional.normalize(inputs_ND @ map_DD)
    return float((fit_ND * torch.nn.functional.normalize(teacher)).sum(dim=1).mean())


def check_static(config: Any) -> None:
    """A model of this transformers configuration must have room for the closed form.

    Raises:
        ValueError: it is not of the Qwen3 family, or its widths leave no room for the identity.
    """
    width = int(config.hidden_size)
    if config.model_type != "qwen3":
        raise ValueError(
            f"student.start.init is static, which needs architecture qwen3; got {config.model_type}; set init to random"
        )
    if not config.num_attention_heads * config.head_dim == config.num_key_value_heads * config.head_dim == width:
        raise ValueError(
            f"student.start.init is static, which needs heads * head_dim = kv_heads * head_dim = width {width}; got "
            f"{config.num_attention_heads}, {config.num_key_value_heads} heads of {config.head_dim}"
        )


def _weighted_directions(table_VD: Tensor, flat: Tensor, student: Embedder) -> Tensor:
    """Unit vectors whose first D - 1 numbers are the weighted token vectors, [V, D].

    The layer's RMSNorm would undo any weighting by length. So the direction of least variance is given up: it is filled
    until every vector has norm 1, and carries nothing.
    """
    vocabulary, width = table_VD.shape
    count_V = torch.bincount(flat, minlength=vocabulary).double()
    seen_V = count_V > 0
    weight_V = (SIF / (SIF + count_V / count_V.sum())).float()
    special = [*student.specials.before, *student.specials.after, student.tokenizer.pad_token_id]
    weight_V[[token for token in special if token is not None]] = 0.0
    centred_VD = table_VD - table_VD[seen_V].mean(dim=0)
    _, axes_DD = torch.linalg.eigh(centred_VD[seen_V].T @ centred_VD[seen_V])
    turned_VD = (centred_VD @ axes_DD.flip(1))[:, : width - 1] * weight_V[:, None]
    longest = torch.quantile(turned_VD[seen_V].norm(dim=1), 0.999)
    turned_VD = turned_VD / longest
    turned_VD *= (0.99 / turned_VD.norm(dim=1, keepdim=True).clamp(min=1e-9)).clamp(max=1.0)
    return torch.cat([turned_VD, (1 - turned_VD.square().sum(dim=1, keepdim=True)).sqrt()], dim=1)


def _set_layers(backbone: Any, map_DD: Tensor, filler: float) -> None:
    """Every branch to zero but the last attention: uniform, values unchanged, the fitted map at its end."""
    for layer in backbone.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    width = map_DD.shape[1]
    attention = backbone.layers[-1].self_attn
    attention.q_norm.weight.zero_()  # every score 0: uniform over the token and all before it
    attention.v_proj.weight.copy_(torch.eye(width))
    out = torch.zeros(width, width)
    out[:, : width - 1] = BRANCH_SCALE * map_DD.T
    # The last token's own vector is all filler; the branch takes it out of the residual stream again.
    out[-1, -1] -= EMBEDDING_NORM / (math.sqrt(width) * filler)
    attention.o_proj.weight.copy_(out)

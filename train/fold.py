"""Layers left out below the first one kept, folded into the embeddings of a pruned encoder.

What a layer does to a token depends on the context; its mean over contexts does not, and a table can hold it. So the
states z at the entrance of the first kept layer are written as T[token] + P[position], and these become the student's
embeddings. The fit is the least squares of

    sum |z - T[token] - P[position]|^2 + SHRINK * (sum |T - prior_T|^2 + sum |P - prior_P|^2)

by turns for T and P; a prior is the ridge map from the old rows of a table to the new ones, which is all that a token
or position gets that the texts do not show. No gradient is taken. Our own; static models made of a transformer's mean
states (model2vec) are the case in which no layer is kept.

Shapes: V vocabulary, M positions, D width, T tokens of a chunk.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embedding.embedder import Embedder
from embedding.tokens import Specials, pad, plan_chunks, token_budget_of
from train.pruning import pruned

SHRINK = 1.0
"""Occurrences that a row's prior is worth."""
RIDGE = 1.0
"""Of the map from old rows to new ones."""
FOLD_TEXTS = 5_000
"""Texts that a fold reads whatever they hold: a pass of the lower layers, so not all."""
MOST_TEXTS = 40_000
"""Texts and pieces of texts that it reads at most, with those for rare tokens."""
SEEN = 2
"""Occurrences of a token that are looked for."""
LEAST = 8
"""Tokens, special ones counted, of a text that is read for a rare one: in a shorter text it stands in no context."""
WINDOW = 16
"""Tokens that are read around a rare one. Before any step the last layer of all-MiniLM-L6-v2 has a mean cosine to its
teacher, on text of eight other kinds, of 0.774 with 8 of them, 0.777 with 16 and 0.771 with the whole texts."""
TURNS = 4
"""Of T and P. The second to fourth hold 0.3 points more of the variance (layers 0 to 3 of all-MiniLM-L6-v2)."""


def check_foldable(backbone: Any) -> None:
    """States must enter the first layer as the LayerNorm of token + position, and leave each layer through one.

    Raises:
        ValueError: they do not: the model has no tables that could hold its lower layers.
    """
    embeddings = getattr(backbone, "embeddings", None)
    tables = [getattr(embeddings, name, None) for name in ("word_embeddings", "position_embeddings")]
    wide = all(isinstance(x, nn.Embedding) and x.embedding_dim == backbone.config.hidden_size for x in tables)
    if not wide or not hasattr(embeddings, "LayerNorm") or not hasattr(_last_norm(backbone), "bias"):
        raise ValueError(
            "student.start.fold puts lower layers into token and position embeddings of the layers' width under a "
            f"LayerNorm, as BERT, RoBERTa and MPNet have them; {backbone.config.model_type} has not (and in a decoder "
            "the first token's state belongs to its place, not to the token); set fold to false"
        )


def below(source: Embedder, first: int) -> Embedder:
    """The layers under `first` of a model, as a model: what `fold` reads.

    Raises:
        ValueError: see `check_foldable`.
    """
    check_foldable(source.backbone)
    return pruned(source, range(first))


def covering(first: Sequence[np.ndarray], others: Sequence[np.ndarray], around: Specials) -> list[np.ndarray]:
    """What a fold should read of some texts: the `first` ones for what is frequent, then pieces of the others, shortest
    first, around tokens seen fewer than SEEN times until then. A rare token so gets a row of its own, not a prior, for
    few tokens that the lower layers must read.

    Args:
        first: id rows, cut to what the student reads.
        others: whole id rows: a piece of one has any of its places.
        around: the special tokens of every text; each piece has them too.
    """
    before, after = len(around.before), len(around.after)
    read = list(first)
    seen_V = np.zeros(1 + max((int(row.max()) for row in (*first, *others)), default=0), dtype=np.int64)
    for row in read:
        np.add.at(seen_V, row, 1)
    for row in sorted((row for row in others if len(row) >= LEAST), key=len):
        last, place = len(row) - after, before
        while len(read) < MOST_TEXTS and len(rare := np.flatnonzero(seen_V[row[place:last]] < SEEN)):
            start = min(max(before, place + int(rare[0]) - WINDOW // 2), max(before, last - WINDOW))
            new, place = max(start, place), min(start + WINDOW, last)  # a piece may begin within the one before
            np.add.at(seen_V, row[new:place], 1)
            read.append(np.concatenate([row[:before], row[start:place], row[last:]]))
    return read


def fold(student: Embedder, lower: Embedder, rows: Sequence[np.ndarray]) -> float:
    """Set `student`'s embeddings to what `lower` makes of the tokens of `rows`: whole id rows, cut here to the
    student's own `max_tokens` and not a stage's, since every position that it will have deserves its own row.

    Returns the share of the states' variance that the tables hold, to be logged.
    """
    tables: Any = student.backbone.embeddings
    norm: Any = _last_norm(lower.backbone)
    device = student.device
    old_VD, old_MD = (
        tables.word_embeddings.weight.detach().float(),
        tables.position_embeddings.weight.detach().float(),
    )
    sum_VD, sum_MD = torch.zeros_like(old_VD), torch.zeros_like(old_MD)
    squares, pairs = 0.0, []
    lower.to(device).eval()
    scale_D = torch.where(norm.weight == 0, 1.0, norm.weight).detach()  # where it is 0 every state is the bias
    rows = [student.cut(row) for row in rows]
    for ids_T, places_T, states_TD in _states(lower, rows):
        z_TD = (states_TD - norm.bias.detach()) / scale_D
        sum_VD.index_add_(0, ids_T, z_TD)
        sum_MD.index_add_(0, places_T, z_TD)
        squares += float(z_TD.double().square().sum())
        pairs.append(torch.stack([ids_T, places_T]))
    index_2T = torch.cat(pairs, dim=1)
    ones_T = torch.ones(index_2T.shape[1], device=device)
    shape = (len(old_VD), len(old_MD))
    count_VM = torch.sparse_coo_tensor(index_2T, ones_T, shape, check_invariants=True).coalesce()
    count_MV = count_VM.t().coalesce()
    count_V, count_M = (torch.bincount(index, minlength=n).float() for index, n in zip(index_2T, shape, strict=True))
    new_MD = torch.zeros_like(old_MD)
    for _ in range(TURNS):
        new_VD = _rows(old_VD, sum_VD - torch.sparse.mm(count_VM, new_MD), count_V, constant=True)
        new_MD = _rows(old_MD, sum_MD - torch.sparse.mm(count_MV, new_VD), count_M, constant=False)
    with torch.no_grad():
        tables.word_embeddings.weight.copy_(new_VD)
        tables.position_embeddings.weight.copy_(new_MD)
        if getattr(tables, "token_type_embeddings", None) is not None:
            tables.token_type_embeddings.weight.zero_()
        tables.LayerNorm.load_state_dict(norm.state_dict())
    return _held(squares, index_2T, sum_VD, sum_MD, new_VD, new_MD)


@torch.no_grad()
def _states(lower: Embedder, rows: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each chunk: token ids [T], positions [T] as the table counts them, and states [T, D], without padding."""
    lengths_N = np.array([len(row) for row in rows], dtype=np.int64)
    for chunk in plan_chunks(lengths_N, token_budget_of(lower.device)):
        ids_NL, mask_NL = (x.to(lower.device) for x in pad([rows[i] for i in chunk], lower.tokenizer.pad_token_id or 0))
        places_NL = lower.positions(mask_NL)
        states_NLD = lower.backbone(
            input_ids=ids_NL, attention_mask=mask_NL, position_ids=places_NL
        ).last_hidden_state.float()
        real_NL = mask_NL.bool()
        yield ids_NL[real_NL], places_NL[real_NL], states_NLD[real_NL]


def _rows(old_RD: Tensor, sum_RD: Tensor, count_R: Tensor, *, constant: bool) -> Tensor:
    """The rows of one table that fit best, the other held: a mean, drawn towards the ridge map of the old row."""
    inputs = torch.cat([old_RD, old_RD.new_ones(len(old_RD), 1)], dim=1) if constant else old_RD
    gram = inputs.T @ (count_R[:, None] * inputs) + RIDGE * torch.eye(inputs.shape[1], device=inputs.device)
    prior_RD = inputs @ torch.linalg.solve(gram, inputs.T @ sum_RD)
    rows_RD: Tensor = (sum_RD + SHRINK * prior_RD) / (count_R[:, None] + SHRINK)
    return rows_RD


def _held(squares: float, index_2T: Tensor, sum_VD: Tensor, sum_MD: Tensor, new_VD: Tensor, new_MD: Tensor) -> float:
    """1 - |z - T - P|^2 / |z - mean|^2 over all tokens."""
    ids_T, places_T = index_2T
    crossed = float((sum_VD.double() * new_VD).sum() + (sum_MD.double() * new_MD).sum())
    fitted = sum(
        float((new_VD[ids] + new_MD[places]).double().square().sum())
        for ids, places in zip(ids_T.split(16_384), places_T.split(16_384), strict=True)
    )
    spread = squares - float(sum_VD.double().sum(dim=0).square().sum()) / len(ids_T)
    return 1 - (squares - 2 * crossed + fitted) / spread


def _last_norm(backbone: Any) -> Any:
    layers = getattr(getattr(backbone, "encoder", None), "layer", None)
    return getattr(getattr(layers[-1] if layers else None, "output", None), "LayerNorm", None)

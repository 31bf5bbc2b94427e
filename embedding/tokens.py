"""Token rows: text to ids once and whole, cut to a length with the EOS kept, planned into chunks, padded or packed.

Shapes: N texts, L tokens of the longest in a chunk, T tokens of a chunk laid end to end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from embedding.files import read_json, write_json

TOKEN_BUDGET = {"cpu": 2_048, "cuda": 65_536}

PROBE = "An eyas is a young hawk."
CHUNK_COST = 48
"""What one more padded chunk costs, in tokens: all-MiniLM-L6-v2 on two cores is about equally fast from 32 to 64."""


@dataclass(frozen=True)
class Specials:
    """The special tokens a tokenizer puts around every text."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def eos(self) -> int | None:
        """The id every text ends with, or None where the tokenizer appends nothing."""
        return self.after[-1] if self.after else None


def specials(tokenizer: PreTrainedTokenizerBase) -> Specials:
    """What `tokenizer` adds before and after a text, read off a tokenized probe rather than off its flags
    (Qwen3-Embedding appends a token that is not its `eos_token_id`).

    Raises:
        ValueError: the specials do not simply surround the text.
    """
    inner = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    whole = tokenizer(PROBE)["input_ids"]
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return Specials(tuple(whole[:start]), tuple(whole[start + len(inner) :]))
    raise ValueError(f"{tokenizer.name_or_path}: the tokenizer changes the text's own tokens when it adds special ones")


def append_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make `tokenizer` end every text with its EOS (else its SEP), in a form that is saved with it.

    Does nothing where it already ends texts with a special token.

    Raises:
        ValueError: the tokenizer has neither an EOS nor a SEP token, or is not a fast one.
    """
    around = specials(tokenizer)
    if around.after:
        return
    eos = tokenizer.eos_token or tokenizer.sep_token
    if eos is None:
        raise ValueError(f"{tokenizer.name_or_path}: the tokenizer has no EOS or SEP token; set its eos_token")
    if not tokenizer.is_fast:
        raise ValueError(f"{tokenizer.name_or_path}: expected a fast tokenizer (tokenizer.json), found a slow one")
    before = tokenizer.convert_ids_to_tokens(list(around.before))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=" ".join([*before, "$A", eos]),
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in (*before, eos)],
    )


def lower_case(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make `tokenizer` lower-case a text first, in a form that is saved with it, as sentence-transformers does where
    `do_lower_case` says so."""
    inner = tokenizer.backend_tokenizer
    after = [] if inner.normalizer is None else [inner.normalizer]
    inner.normalizer = normalizers.Sequence([normalizers.Lowercase(), *after])


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, max_tokens: int) -> None:
    """Write a tokenizer that reads back alike, with `max_tokens` as its limit.

    Raises:
        ValueError: read back, it gives other ids (then a server would embed other vectors).
    """
    limit = tokenizer.model_max_length
    tokenizer.model_max_length = max_tokens
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.model_max_length = limit
    wanted = tokenizer(PROBE)["input_ids"]
    found = AutoTokenizer.from_pretrained(folder)(PROBE)["input_ids"]
    if found != wanted:  # some classes (GPT-NeoX') set the special tokens anew; the plain one reads the file as it is
        settings = folder / "tokenizer_config.json"
        write_json(settings, read_json(settings) | {"tokenizer_class": "PreTrainedTokenizerFast"})
        found = AutoTokenizer.from_pretrained(folder)(PROBE)["input_ids"]
    if found != wanted:
        raise ValueError(f"{folder}: the saved tokenizer reads back with other special tokens; found {found}")


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of prompt + text with the tokenizer's special tokens, whole: int32 [length] each."""
    if not texts:
        return []
    joined = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    rows = tokenizer(joined, truncation=False, return_attention_mask=False, return_token_type_ids=False, verbose=False)
    return [np.asarray(row, dtype=np.int32) for row in rows["input_ids"]]


def cut(ids: np.ndarray, max_tokens: int, suffix: int) -> np.ndarray:
    """At most `max_tokens` ids: the text loses its end, never the last `suffix` special tokens (the EOS).

    The instruction stands at the front, so it stays as long as `max_tokens` has room for it.

    Raises:
        ValueError: `max_tokens` has no room beside the special tokens.
    """
    if len(ids) <= max_tokens:
        return ids
    if max_tokens <= suffix:
        raise ValueError(f"max_tokens {max_tokens}: expected more than the {suffix} special tokens at a text's end")
    return np.concatenate([ids[: max_tokens - suffix], ids[len(ids) - suffix :]])


def token_budget_of(device: torch.device) -> int:
    """Tokens a chunk, padding included, where nobody measured: about what keeps a device busy without leaving its
    caches."""
    return TOKEN_BUDGET.get(device.type, 16_384)


def plan_chunks(
    lengths_N: np.ndarray, token_budget: int, *, packed: bool = False, cost: int = CHUNK_COST
) -> list[np.ndarray]:
    """Cut texts, longest first, into chunks of at most `token_budget` tokens: positions [n] for each chunk.

    Padded, a chunk's size is its number of texts times its longest length, and it ends where one more text would cost
    more in padding than a new chunk does: each chunk has the least (size + `cost`) per real token. Packed, its size
    is the sum of its lengths. A text longer than the budget gets a chunk of its own. Depends on the lengths alone, so
    every rank plans the same.
    """
    order_N = np.argsort(-lengths_N, kind="stable")
    before_N1 = np.concatenate([[0], np.cumsum(lengths_N[order_N], dtype=np.int64)])
    chunks: list[np.ndarray] = []
    start = 0
    while start < len(order_N):
        if packed:
            end = int(np.searchsorted(before_N1, before_N1[start] + token_budget, side="right")) - 1
            count = max(1, end - start)
        else:
            longest = max(int(lengths_N[order_N[start]]), 1)
            most = min(max(1, token_budget // longest), len(order_N) - start)
            count_M = np.arange(1, most + 1)
            real_M = np.maximum(before_N1[start + count_M] - before_N1[start], 1)
            count = int(np.argmin((count_M * longest + cost) / real_M)) + 1
        chunks.append(order_N[start : start + count])
        start += count
    return chunks


def chunk_tokens(lengths_n: np.ndarray, *, packed: bool = False) -> int:
    """Tokens that the model computes for a chunk of texts of these lengths, padding included."""
    return int(lengths_n.sum()) if packed else len(lengths_n) * int(lengths_n.max())


def pad(rows: Sequence[np.ndarray], pad_id: int, side: str = "right") -> tuple[Tensor, Tensor]:
    """Rows of ids as int64 [N, L] and their mask (1 at tokens), padded on the given side."""
    longest = max(len(row) for row in rows)
    ids_NL = np.full((len(rows), longest), pad_id, dtype=np.int64)
    mask_NL = np.zeros((len(rows), longest), dtype=np.int64)
    for row, ids_L, mask_L in zip(rows, ids_NL, mask_NL, strict=True):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids_L[place] = row
        mask_L[place] = 1
    return torch.from_numpy(ids_NL), torch.from_numpy(mask_NL)


def pack(rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Rows of ids laid end to end without padding: ids int64 [T] and start offsets int32 [N + 1]."""
    starts_N1 = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=starts_N1[1:])
    return torch.from_numpy(np.concatenate(rows).astype(np.int64)), torch.from_numpy(starts_N1)

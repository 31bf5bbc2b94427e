from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer, GPTNeoXTokenizer, PreTrainedTokenizerFast

from embedding.embedder import Embedder
from embedding.instruction import BARE, Template
from embedding.layout import resolve_model
from embedding.tokens import append_eos, chunk_tokens, cut, pack, pad, plan_chunks, save_tokenizer, specials, tokenize

from .conftest import TEACHER


def plain_tokenizer(eos: str | None = "</s>") -> PreTrainedTokenizerFast:
    """A tokenizer that, like Qwen3's or GPT's, appends nothing."""
    words = {"[UNK]": 0, "</s>": 1, "a": 2, "b": 3, "An": 4, "eyas": 5, "is": 6, "young": 7, "hawk": 8, ".": 9}
    inner = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos, unk_token="[UNK]")


def test_specials_are_read_off_the_tokenizer(teacher: Embedder) -> None:
    around = specials(teacher.tokenizer)
    assert (around.before, around.after, around.eos) == ((101,), (102,), 102)
    assert specials(plain_tokenizer()).eos is None


def test_an_eos_is_appended_and_survives_saving(tmp_path: object) -> None:
    tokenizer = plain_tokenizer()
    append_eos(tokenizer)
    assert tokenizer("a b")["input_ids"] == [2, 3, 1]
    tokenizer.save_pretrained(str(tmp_path))
    assert AutoTokenizer.from_pretrained(str(tmp_path))("a b")["input_ids"] == [2, 3, 1]
    append_eos(tokenizer)
    assert tokenizer("a b")["input_ids"] == [2, 3, 1]
    with pytest.raises(ValueError, match="no EOS or SEP token"):
        append_eos(plain_tokenizer(eos=None))


def test_a_cut_keeps_the_instruction_and_the_eos() -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(TEACHER))
    prompt = Template().prompt("query", "Find the text")
    (row,) = tokenize(tokenizer, [prompt], ["word " * 300])
    short = cut(row, 24, suffix=1)
    prompted = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert len(short) == 24
    assert short[1 : 1 + len(prompted)].tolist() == prompted
    assert short[-1] == tokenizer.sep_token_id
    assert short.tolist() == tokenizer(prompt + "word " * 300, truncation=True, max_length=24)["input_ids"]
    with pytest.raises(ValueError, match="max_tokens 1: expected more than the 1 special tokens"):
        cut(row, 1, suffix=1)


def test_templates_fit_other_families() -> None:
    assert Template().prompt("query", "Do it") == "Instruct: Do it\nQuery: "
    assert Template().prompt("document", "Do it") == ""
    assert Template().prompt("query") == ""
    e5 = Template(query="query: ", document="passage: ")
    assert (e5.prompt("query", "any"), e5.prompt("document")) == ("query: ", "passage: ")
    assert BARE.prompt("query", "Do it") == ""


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 1000), st.booleans())
def test_chunks_hold_every_text_once_within_the_budget(lengths: list[int], budget: int, packed: bool) -> None:
    length_N = np.array(lengths)
    chunks = plan_chunks(length_N, budget, packed=packed)
    assert sorted(np.concatenate(chunks).tolist()) == list(range(len(lengths)))
    for chunk in chunks:
        assert chunk_tokens(length_N[chunk], packed=packed) <= budget or len(chunk) == 1
    longest = [max(lengths[i] for i in chunk) for chunk in chunks]
    assert longest == sorted(longest, reverse=True)


def test_a_chunk_ends_where_padding_would_cost_more_than_another_chunk() -> None:
    lengths = np.array([256] * 4 + [20] * 40)
    padded = plan_chunks(lengths, 4096)
    assert [len(chunk) for chunk in padded] == [4, 40], "256 next to 20 is nearly all padding"
    assert [len(chunk) for chunk in plan_chunks(lengths, 1024, packed=True)] == [4, 40]
    assert [len(chunk) for chunk in plan_chunks(lengths, 4096, packed=True)] == [44], "packed, nothing is padded"
    assert [len(chunk) for chunk in plan_chunks(np.array([100, 99, 98, 97]), 400)] == [4], "little padding, one chunk"
    assert chunk_tokens(np.array([5, 3])) == 10
    assert chunk_tokens(np.array([5, 3]), packed=True) == 8


def test_pad_and_pack_by_hand() -> None:
    rows = [np.array([7, 8, 9], dtype=np.int32), np.array([5], dtype=np.int32)]
    ids, mask = pad(rows, 0, "right")
    assert ids.tolist() == [[7, 8, 9], [5, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    ids, mask = pad(rows, 0, "left")
    assert ids.tolist() == [[7, 8, 9], [0, 0, 5]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    ids, starts = pack(rows)
    assert ids.tolist() == [7, 8, 9, 5]
    assert starts.tolist() == [0, 3, 4]


def test_a_class_that_sets_its_special_tokens_anew_is_saved_as_a_plain_one(tmp_path: Path) -> None:
    words = {"<|endoftext|>": 0, "a": 1, "b": 2, "An": 3, "eyas": 4, "is": 5, "young": 6, "hawk": 7, ".": 8}
    inner = Tokenizer(WordLevel(words, unk_token="<|endoftext|>"))
    inner.pre_tokenizer = Whitespace()
    tokenizer = GPTNeoXTokenizer(tokenizer_object=inner)
    append_eos(tokenizer)
    wanted = tokenizer("a b")["input_ids"]
    save_tokenizer(tokenizer, tmp_path, 32)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("a b")["input_ids"] == wanted
    assert again.model_max_length == 32

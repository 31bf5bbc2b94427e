from pathlib import Path

import numpy as np
import pytest

from data_prep import tokenized, units
from data_prep.build import DataConfig, prepare
from data_prep.tables import Texts, Tokens
from data_prep.tokenized import tokenize_texts
from embedding.config import parse_config
from embedding.embedder import Embedder
from embedding.instruction import BARE, Template


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = "".join(f'{{"q": "question {"very " * i}long?", "a": "answer number {i}"}}\n' for i in range(7))
    (tmp_path / "x.jsonl").write_text(lines)
    source = {
        "kind": "jsonl",
        "path": str(tmp_path / "x.jsonl"),
        "query": "q",
        "positive": "a",
        "instruction": "Answer",
    }
    prepare(parse_config(DataConfig, {"sources": [source], "heldout": {"share": 0.0}}), tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize("batch", [3, 20_000])
def test_tokens_are_whole_and_aligned(
    data: Path, teacher: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(units, "UNIT_TEXTS", batch)
    tokens = tokenize_texts(data, teacher.tokenizer, Template(), tmp_path / "tokens")
    texts = Texts.load(data / "texts")
    assert len(tokens) == len(texts) == 14
    for row in range(len(texts)):
        prompt = "Instruct: Answer\nQuery: " if texts.role(row) == "query" else ""
        assert tokens.ids(row).tolist() == teacher.tokenizer(prompt + texts.text(row))["input_ids"]
        assert tokens.lengths[row] == len(tokens.ids(row))
    assert tokens.suffix == 1
    assert tokens.ids(0).dtype == np.int32
    assert not tokens.ids(0).flags.owndata
    assert not tokens.ids(0).flags.writeable


def test_only_a_change_tokenizes_again(
    data: Path, teacher: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tokens"
    first = tokenize_texts(data, teacher.tokenizer, BARE, out)
    with monkeypatch.context() as patch:
        patch.setattr(tokenized, "tokenize", lambda *_: pytest.fail("tokenized again"))
        assert tokenize_texts(data, teacher.tokenizer, BARE, out).ids(3).tolist() == first.ids(3).tolist()
    other = tokenize_texts(data, teacher.tokenizer, Template(query="query: ", document="passage: "), out)
    assert other.lengths[0] > first.lengths[0]


def test_folders_that_are_no_tables(tmp_path: Path, data: Path) -> None:
    with pytest.raises(ValueError, match="no tokens here"):
        Tokens.load(tmp_path)
    with pytest.raises(ValueError, match="not a datasets folder"):
        Texts.load(tmp_path)
    with pytest.raises(ValueError, match=r"expected the columns key_hi.*found query"):
        Texts.load(data / "examples")
    file = next((data / "texts").glob("*.arrow"))
    file.write_bytes(b"garbage" * 20)
    with pytest.raises(ValueError, match="damaged"):
        Texts.load(data / "texts")

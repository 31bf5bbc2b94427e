"""Vectors cut short or with fewer bits: the arithmetic, and that an evaluation scores them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding.embedder import Embedder
from embedding.pooling import truncate
from eval import encoder
from eval.evaluate import evaluate
from eval.report import render
from eval.scorecard import markdown, scorecard, terminal_table, view_rows
from eval.suite import SuiteConfig, load_suite
from eval.views import View
from tests.eval.test_evaluate import Hashed
from tests.eval.test_scorecard import shown


def vectors(n: int = 50, width: int = 16) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(n, width)).astype(np.float32)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def test_a_cut_is_the_matryoshka_cut() -> None:
    import torch

    x = vectors()
    assert View(width=5).change(x)(x) == pytest.approx(truncate(torch.from_numpy(x), 5).numpy(), abs=1e-6)
    with pytest.raises(ValueError, match="width 17: the vectors have 16 numbers"):
        View(width=17).change(x)


def test_int8_is_off_by_at_most_half_a_level() -> None:
    x = vectors()
    coded = View(precision="int8").change(x)(x)
    level = (x.max(axis=0) - x.min(axis=0)) / 255
    assert (np.abs(coded - x) <= level / 2 + 1e-7).all()
    assert all(len(np.unique(column)) <= 256 for column in coded.T)
    far = View(precision="int8").change(x)(x * 10)
    assert (far.max(axis=0) <= x.max(axis=0) + 1e-6).all()


def test_signs_rank_as_the_hamming_distance() -> None:
    x = vectors()
    signs = View(precision="binary").change(x)(x)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    hamming = (np.sign(x[:1]) != np.sign(x)).sum(axis=1)
    assert (signs[:1] @ signs.T)[0] == pytest.approx(16 - 2 * hamming)


def test_bytes_and_names() -> None:
    assert [View().bytes(384), View(width=64).bytes(384), View(precision="int8").bytes(384)] == [1536, 256, 384]
    assert View(width=60, precision="binary").bytes(384) == 8
    assert View(width=60, precision="binary").name == "width 60, binary"


@pytest.fixture(scope="module")
def card(folder: Path, teacher: Embedder) -> dict[str, Any]:
    config = SuiteConfig(
        folder=folder, tasks=["retrieval/*", "sts/*"], widths=[192, 8, 999], precisions=["int8", "binary"]
    )
    suite = load_suite(config)
    full = evaluate(teacher, suite, suite.views)
    return scorecard(full, evaluate(Hashed(), suite), full)


def test_smaller_vectors_lose_what_one_expects(card: dict[str, Any]) -> None:
    kept = {name: share for name, _, _, share in view_rows(card)}
    assert kept["full"] == 1
    assert kept["int8"] == pytest.approx(1, abs=0.01)
    assert 0.85 < kept["binary"] < 1
    assert kept["width 8"] < kept["width 192"] < 1.02
    assert "the vectors have 384 numbers" in card["views"]["width 999"]["failed"]


def test_views_are_shown_everywhere(card: dict[str, Any]) -> None:
    assert "192 bytes" not in markdown(card)
    assert "Stored as binary (48 bytes a vector)" in markdown(card)
    assert "width 192" in shown(terminal_table(card))
    page = render("run", card, None, None, None, None, None)
    assert "Smaller vectors" in page
    assert "768 bytes" in page
    assert "width 999" in page


def test_a_large_corpus_is_streamed_with_the_same_score(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SuiteConfig(folder=folder, tasks=["retrieval/*"])
    whole, streamed = Hashed(), Hashed()
    expected = evaluate(whole, load_suite(config))
    monkeypatch.setattr(encoder, "STREAMED_CORPUS", 5)
    found = evaluate(streamed, load_suite(config))
    assert found["kinds"] == expected["kinds"]
    assert found["texts"] == 30  # the queries alone are kept
    assert sorted(streamed.seen) == sorted(whole.seen)

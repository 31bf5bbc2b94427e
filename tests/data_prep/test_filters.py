"""What a filter does to a row on its own."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.docstrings import Docstring
from data_prep.filters import FilterConfig, apply_filters, detect_language, normalise, repetition
from data_prep.rows import Row

ENGLISH = "The harbour was quiet in the morning, and nobody had seen the boats leave."
GERMAN = "Der Hafen war am Morgen ruhig, und niemand hatte die Boote auslaufen sehen."


def test_nothing_is_done_by_default(real_texts: list[Docstring]) -> None:
    for pair in real_texts[:50]:
        row = Row(f" \u200b{pair.summary}", (pair.body, "x " * 500))
        assert apply_filters(row, FilterConfig()).row is row


@pytest.mark.parametrize(
    "settings, row, reason",
    [
        ({"min_chars": 3}, Row("ab", ("abc",)), "shorter than min_chars"),
        ({"min_chars": 3}, Row("abc", ("ab",)), "shorter than min_chars"),
        ({"max_chars": 3}, Row("abcd"), "longer than max_chars"),
        ({"repetition": True}, Row("buy cheap boats now " * 30), "repeats itself"),
        ({"repetition": True}, Row("q", ("\n".join(["a line that is said again"] * 20),)), "repeats itself"),
        ({"languages": ["en"]}, Row(GERMAN), "another language"),
        ({"languages": ["en"]}, Row(ENGLISH, lang="de"), "another language"),
        ({"languages": ["en"]}, Row(ENGLISH, (GERMAN,)), "another language"),
        ({"unicode": "nfc"}, Row("\u200b\ufeff"), "nothing but invisible characters"),
        ({"unicode": "nfc"}, Row("q", ("\u200b",)), "nothing but invisible characters"),
        ({"languages": ["zh-Hant", "en"]}, Row("ja", lang="zh-CN"), ""),
        ({"languages": ["de"]}, Row("ok", ("gut",)), ""),
    ],
)
def test_reasons(settings: dict[str, Any], row: Row, reason: str) -> None:
    assert apply_filters(row, FilterConfig(**settings)).reason == reason


def test_a_bad_positive_or_negative_goes_alone() -> None:
    found = apply_filters(Row("query", ("good text", "x"), ("y", "another text")), FilterConfig(min_chars=4))
    assert found.row == Row("query", ("good text",), ("another text",))
    assert (found.reason, found.removed) == ("", 2)


def test_normalising_makes_equal_what_looks_equal() -> None:
    found = apply_filters(Row(" cafe\u0301\u200b ", ("a\u00adb", "ab", "\u200b")), FilterConfig(unicode="nfc"))
    assert (found.row, found.removed) == (Row("caf\u00e9", ("ab",)), 2)
    assert normalise("\ufb01ne", "NFKC") == "fine"
    assert normalise("a\u200db", "NFC") == "a\u200db"


@settings(deadline=None)
@given(st.text(max_size=200))
def test_normalising_twice_is_normalising_once(text: str) -> None:
    once = normalise(text, "NFC")
    assert normalise(once, "NFC") == once


def test_real_text_does_not_repeat_itself(real_texts: list[Docstring]) -> None:
    broken = [repetition(pair.body) for pair in real_texts]
    assert sum(map(bool, broken)) <= 0.05 * len(broken), [rule for rule in broken if rule]


MATHS = """Roque takes 2*3 = 6 hours a week to walk to work.
Roque takes 6*2 = 12 hours a week to walk to and from work.
Roque takes 1*2 = 2 hours a week to bike to work.
Roque takes 2*2 = 4 hours a week to bike to and from work.
In total, Roque takes 12+4 = 16 hour a week to go to and from work.
#### 16"""


def test_what_repeats_its_words_and_means_it_stays(eyas_data: Path) -> None:
    assert len(MATHS.split()) >= 50
    assert not repetition(MATHS)
    rows = pq.read_table(eyas_data / "pairs" / "gsm8k.parquet").slice(0, 600).to_pylist()
    assert sum(bool(repetition(row["query"]) or repetition(row["positive"])) for row in rows) <= 0.01 * len(rows)


@pytest.mark.parametrize("text, language", [(ENGLISH, "en"), (GERMAN, "de"), ("short", ""), ("1234 5678 " * 9, "")])
def test_languages(text: str, language: str) -> None:
    assert detect_language(text) == language


def test_what_is_equal_once_normalised_is_no_negative_and_no_pair() -> None:
    config = FilterConfig(unicode="nfc")
    row = apply_filters(Row("q", ("Answer",), ("Answer ", "Answer\u200b", "other")), config).row
    assert row == Row("q", ("Answer",), ("other",))
    same = Row("same text", ("same text ",))
    assert apply_filters(same, config).reason == "a positive equals the query, normalised"
    assert apply_filters(same, config, symmetric=True).reason == "", "a graded pair may be of one text"

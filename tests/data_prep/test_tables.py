"""The tables in memory: rows taken from lists and from columns of many chunks."""

import numpy as np
import pyarrow as pa
import pytest

from data_prep.clean import digest, normal_form
from data_prep.tables import TEXTS, Ragged, Texts
from embedding.instruction import Template


def test_rows_of_lists_are_taken_in_any_order() -> None:
    random = np.random.default_rng(0)
    counts = random.integers(0, 4, 200)
    lists = Ragged.of(np.arange(counts.sum()), counts)
    for rows in (np.arange(0, 200, 3), random.permutation(200)[:50], np.array([5, 5, 0]), np.zeros(0, dtype=np.int64)):
        taken = lists.take(rows)
        assert [taken.row(i).tolist() for i in range(len(rows))] == [lists.row(int(row)).tolist() for row in rows]


def test_texts_are_taken_from_many_chunks_in_any_order() -> None:
    def batch(start: int, end: int) -> pa.RecordBatch:
        rows = range(start, end)
        columns = [pa.array(rows, pa.uint64())] * 2
        sides = [["query" if row % 2 else "document" for row in rows], [f"task {row % 3}" for row in rows]]
        return pa.record_batch([*columns, *sides, [f"text {row}" for row in rows], ["en"] * len(rows)], schema=TEXTS)

    texts = Texts(pa.Table.from_batches([batch(0, 7), batch(7, 7), batch(7, 8), batch(8, 30)]))
    template = Template(query="{task}: ", document="passage: ")
    random = np.random.default_rng(0)
    for rows in (np.arange(5, 20), random.permutation(30), np.array([9, 9, 1]), np.zeros(0, dtype=np.int64)):
        prompts, words = texts.prompted(template, rows)
        assert words == [texts.text(int(row)) for row in rows] == [f"text {row}" for row in rows]
        assert prompts == [f"task {row % 3}: " if row % 2 else "passage: " for row in rows.tolist()]
        part = texts.take(rows)
        assert [part.text(i) for i in range(len(part))] == words
        assert part.keys[:, 0].tolist() == rows.tolist()


@pytest.mark.parametrize(
    "one, other",
    [
        ("लड़का", "लड़की"),
        ("वह बाज़ार जाता है", "वह बाज़ार जाती है"),
        ("दिन", "दान"),
        ("กิน", "กัน"),
        ("மனிதன்", "மனிதனை"),
        ("ক", "কি"),
    ],
)
def test_words_that_differ_in_a_vowel_sign_are_different_texts(one: str, other: str) -> None:
    assert digest(one) != digest(other)


def test_what_a_copy_may_change_makes_no_difference() -> None:
    for one, other in (("Größe, naïve!", "GRÖSSE naïve"), ("東京、大阪。", "東京 大阪"), ("a_b – c", "A b c")):
        assert normal_form(one) == normal_form(other)
    assert digest("==") != digest("!=")
    assert normal_form("so happy \u2764\ufe0f today") == normal_form("So happy \u2764 today!") == "so happy today"


def test_emoji_alone_are_different_texts() -> None:
    signs = ("\u2764\ufe0f", "\u2600\ufe0f", "\u26a0\ufe0f", "1\ufe0f\u20e3", "\U0001f44d")
    assert len({digest(sign) for sign in signs}) == len(signs)

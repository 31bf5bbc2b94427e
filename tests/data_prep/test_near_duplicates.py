"""Near-duplicates against the definition: Jaccard similarity of sets of strings."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.clean import normal_form
from data_prep.docstrings import Docstring
from data_prep.near_duplicates import (
    NUMBER,
    SHINGLE,
    band_hashes,
    candidates,
    encode,
    representatives,
    runs,
    shingles,
    similarities,
)


def jaccard(one: str, other: str) -> float:
    sets = []
    for text in (one, other):
        text = text if len(text) >= SHINGLE else text.ljust(SHINGLE)
        sets.append({text[i : i + SHINGLE] for i in range(len(text) - SHINGLE + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text("abc é語", min_size=1, max_size=30), min_size=2, max_size=8))
def test_similarities_are_those_of_sets_of_strings(texts: list[str]) -> None:
    pairs = np.array([(i, j) for j in range(len(texts)) for i in range(j)])
    got = similarities(pairs, lambda rows: [texts[row] for row in rows.tolist()])
    np.testing.assert_allclose(got, [jaccard(texts[i], texts[j]) for i, j in pairs.tolist()])


@settings(deadline=None, max_examples=50)
@given(st.text(min_size=1, max_size=40), st.integers(1, 33))
def test_a_run_has_the_same_hash_wherever_it_stands(text: str, length: int) -> None:
    hashed = runs(encode(["xy", text, "z"]), length)
    joined = f"xy{text}z"
    assert len(hashed) == max(len(joined) - length + 1, 0)
    by_text: dict[str, int] = {}
    for place, value in enumerate(hashed.tolist()):
        assert by_text.setdefault(joined[place : place + length], value) == value
    assert len(set(by_text.values())) == len(by_text)


def test_shingles_stay_inside_their_text() -> None:
    hashes, offsets = shingles(["hello world", "abc", "world"])
    assert offsets.tolist() == [0, 7, 8, 9]
    assert hashes[6] == hashes[8]


def test_planted_near_duplicates_are_found_among_real_texts(real_texts: list[Docstring]) -> None:
    rng = random.Random(0)
    texts = list({normal_form(pair.body): None for pair in real_texts if len(pair.body) > 60})
    planted = rng.sample(range(len(texts)), 100)
    copies = []
    for row in planted:
        words = texts[row].split()
        words[rng.randrange(len(words))] = "zebra"
        copies.append(" ".join(words))
    whole = texts + copies
    pairs = candidates(band_hashes(whole).T)
    got = {tuple(pair) for pair in pairs[similarities(pairs, lambda rows: [whole[r] for r in rows]) >= 0.8].tolist()}
    want = {
        (i, j)
        for j in range(len(whole))
        for i in range(j)
        if _may(whole[i], whole[j]) and jaccard(whole[i], whole[j]) >= 0.8
    }
    assert got <= want
    assert len(got) >= 0.95 * len(want)
    assert len(want) >= 60


def _may(one: str, other: str) -> bool:
    """Whether the lengths allow so high a similarity, and the words do: the plain computation takes seconds else."""
    return 0.75 < len(one) / len(other) < 1.34 and len({*one.split()} & {*other.split()}) > 3


def test_texts_that_differ_in_what_must_be_equal_are_not_similar() -> None:
    texts = [
        "how many days are there in 12 weeks",
        "how many days are there in 13 weeks",
        "how many days are in 12 weeks",
    ]
    pairs = np.array([[0, 1], [0, 2]])
    plain = similarities(pairs, lambda rows: [texts[row] for row in rows])
    apart = similarities(pairs, lambda rows: [texts[row] for row in rows], NUMBER.findall)
    assert plain.min() > 0.7
    assert apart.tolist() == [0, plain[1]]


def test_chains_of_small_changes_do_not_add_up() -> None:
    pairs = np.array([[0, 1], [1, 2], [2, 3], [0, 4], [2, 4]])
    assert representatives(6, pairs).tolist() == [0, 0, 2, 2, 0, 5]


def test_large_buckets_give_few_pairs() -> None:
    same = np.zeros(1_000, dtype=np.uint64)
    assert len(candidates([same])) < 2_000
    assert len(candidates([np.arange(1_000, dtype=np.uint64)])) == 0
    assert candidates([]).shape == (0, 2)

"""Planted contamination is found, and what is only alike is not; every match is checked against a plain computation."""

from pathlib import Path

import numpy as np
import pytest

from data_prep import decontaminate
from data_prep.clean import digest, normal_form
from data_prep.decontaminate import DecontaminationConfig, EvaluationIndex, Match, build_index
from data_prep.near_duplicates import band_hashes

PASSAGE = (
    "The lighthouse at the northern end of the island was finished in 1874 after three winters of work; its lamp could"
    " be seen from thirty kilometres away, and the keeper's family lived in the two rooms below it until 1931."
)
OTHER = "Bees tell each other where flowers are by dancing: the angle is the direction, the length of it the distance."
CHINESE = "梵語在社交中口頭使用，並且在早期古典梵語文獻的發展中維持口頭傳統。"
EVALUATION = [("retrieval/a", PASSAGE), ("sts/b", "Where is the tall tree now?"), ("bitext/c", CHINESE)]


def found(
    tmp_path: Path, texts: list[str], evaluation: list[tuple[str, str]] = EVALUATION, short: int = 0
) -> dict[int, Match]:
    assert build_index(evaluation, tmp_path / "index") == len({normal_form(text) for _, text in evaluation})
    index = EvaluationIndex(tmp_path / "index", DecontaminationConfig())
    normal = [normal_form(text) for text in texts]
    digests = np.array([digest(text) for text in texts], dtype=np.uint64)
    matches, counted = index.match(normal, digests, band_hashes(normal))
    assert counted == short
    return matches


def test_the_three_ways(tmp_path: Path) -> None:
    texts = [
        PASSAGE.upper().replace(";", " -"),
        f"{OTHER} {PASSAGE} {OTHER}",  # stands in a longer one
        PASSAGE[20:120],  # a part of it
        "Where is the tall tree now, S.?",
        f"他說：{CHINESE}",
        OTHER,
        "How old is the short bush in my garden?",
        "The lighthouse was finished in 1931.",
        "梵語",
    ]
    matches = found(tmp_path, texts)
    assert {row: match.how for row, match in matches.items()} == {
        0: "exact",
        1: "in long runs",
        2: "in long runs",
        3: "nearly",
        4: "in long runs",
    }
    assert [matches[row].task for row in range(5)] == ["retrieval/a"] * 3 + ["sts/b", "bitext/c"]
    assert matches[0].text == normal_form(PASSAGE)[:80]


def test_a_passage_inside_a_text_of_another_script(tmp_path: Path) -> None:
    """English at the end of a long Chinese text, and the other way round."""
    other = "修頓球場是昔日灣仔的主要地標,現時則仍是區內主要的康樂場地之一。" * 12
    matches = found(tmp_path, [f"{other} {PASSAGE}", f"{OTHER * 3} {CHINESE}", other])
    assert {row: (match.how, match.task) for row, match in matches.items()} == {
        0: ("in long runs", "retrieval/a"),
        1: ("in long runs", "bitext/c"),
    }


def test_a_sample_of_the_runs_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decontaminate, "MOST_RUNS", 100)
    assert found(tmp_path, [f"{OTHER} {PASSAGE}", OTHER])[0].how == "in long runs"


def test_nothing_to_compare_with(tmp_path: Path) -> None:
    assert found(tmp_path, [PASSAGE, "a"], []) == {}
    assert found(tmp_path / "b", []) == {}


def test_a_text_too_short_to_give_a_test_away_is_counted_and_stays(tmp_path: Path) -> None:
    """A trivia answer, an everyday word, a Japanese noun; not a short sentence, nor a short question in Japanese."""
    texts = ["Paris", "Thanks!", "テーブルクロス", "a man is eating", "日本の首都はどこ"]
    matches = found(tmp_path, texts, [("t", text) for text in texts], short=3)
    assert list(matches) == [3, 4]


def test_a_set_phrase_in_many_evaluation_texts(tmp_path: Path) -> None:
    phrase = "Given the following question, write down the answer that seems best to you"
    evaluation = [("t", f"{phrase}: {number}. {OTHER[number:]}{number * 37}") for number in range(90)]
    assert list(found(tmp_path, [f"{phrase}? No."], evaluation)) == [0]
    assert not found(tmp_path / "b", [PASSAGE], evaluation)


def test_a_passage_said_again_and_again_is_found(tmp_path: Path) -> None:
    words = [f"{chr(97 + i % 26)}{i * 7919 % 1000}" for i in range(400)]
    passages = [" ".join(words[40 * i : 40 * i + 40]) for i in range(10)]
    evaluation = [("retrieval/a", " ".join(passages))]
    texts = [passages[4], " ".join([passages[4]] * 3)]
    assert [match.how for _, match in sorted(found(tmp_path, texts, evaluation).items())] == ["in long runs"] * 2

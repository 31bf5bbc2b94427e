"""The module accelerate wraps: an embedder run chunk by chunk in one graph, and the learned projection.

Shapes: n texts of this rank, D student width, E teacher width.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, AutoTokenizer, Gemma3TextConfig, PreTrainedModel, Qwen3Config
from transformers.modeling_layers import GradientCheckpointingLayer

from embedding.attention import recomputed_alike
from embedding.dense import Dense
from embedding.embedder import Embedder
from embedding.instruction import Template
from embedding.layout import resolve_model
from embedding.mix import mix_int
from embedding.pooling import truncate
from embedding.tokens import append_eos, specials
from train.fold import below
from train.lora import add_adapters, merge_adapters
from train.pruning import chosen_layers, pruned
from train.recipe import BuiltStudent, PrunedStudent, StudentConfig
from train.static_start import check_static


class Student(nn.Module):
    """An embedder in training. The projection lives here, so that checkpoints and DDP see it; it is exported only with
    `student.keep_projection`."""

    def __init__(self, embedder: Embedder, teacher_width: int | None = None) -> None:
        super().__init__()
        self.embedder = embedder
        # What Accelerate's FSDP2 shards as one unit.
        self._no_split_modules = list(getattr(embedder.backbone, "_no_split_modules", None) or [])
        # Layers to be folded in as training begins; in a list, since they are no part of the student.
        self.lower: list[Embedder] = []
        self.projection: nn.Linear | None = None
        if teacher_width is not None:
            self.projection = nn.Linear(embedder.width, teacher_width, bias=False)
            nn.init.orthogonal_(self.projection.weight)

    def forward(
        self, chunks: Sequence[Sequence[np.ndarray]], kept: int, widths: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """Id rows, already cut, chunk after chunk -> vectors [n, D] in that order, and projected [V, n, E], both fp32.

        Of the V views the first is the whole vector; one for each of `widths` follows, cut to it and at unit norm again
        before the projection (its first columns). Without a projection there is only the first, the vectors themselves.

        One graph, so every gradient is reduced once however many chunks there are. The activations of the first `kept`
        chunks stay in memory; the others are recomputed in the backward pass with the same random numbers.
        """
        # checkpoint restores the random numbers of the devices of its tensors alone
        here = torch.empty(0, device=self.embedder.device)
        parts = [
            self.embedder.embed_rows(rows)
            if i < kept or not torch.is_grad_enabled()
            else checkpoint(self._embedded, rows, here, use_reentrant=False, preserve_rng_state=True)
            for i, rows in enumerate(chunks)
        ]
        vectors_nD = torch.cat(parts)
        if self.projection is None:
            return vectors_nD, vectors_nD[None]
        with torch.autocast(vectors_nD.device.type, enabled=False):
            pad = torch.nn.functional.pad
            cuts = [pad(truncate(vectors_nD, width), (0, vectors_nD.shape[1] - width)) for width in widths]
            weight_ED = self.projection.weight.float()  # FSDP2 hands it on in half precision
            return vectors_nD, torch.stack([x_nD @ weight_ED.T for x_nD in (vectors_nD, *cuts)])

    def _embedded(self, rows: Sequence[np.ndarray], _: Tensor) -> Tensor:
        return self.embedder.embed_rows(rows)


def compile_layers(backbone: nn.Module) -> None:
    """Compile what every layer of a transformers model computes, in place, once for all shapes; names and state stay
    what they are. Before `checkpoint_layers`, where both are wanted."""
    for layer in _layers(backbone):
        setattr(layer, "forward", torch.compile(layer.forward, dynamic=True))  # noqa: B010  # a method, to mypy


def checkpoint_layers(backbone: PreTrainedModel) -> None:
    """Have every layer of a transformers model keep its inputs alone, and run again in the backward pass as it ran.

    transformers' own checkpoints lie within a layer's forward pass, where torch.compile refuses a context of ours.
    """
    alike = recomputed_alike(backbone)
    for layer in _layers(backbone):
        again = partial(checkpoint, layer.forward, use_reentrant=False, context_fn=alike)
        setattr(layer, "forward", again)  # noqa: B010


def _layers(backbone: nn.Module) -> list[nn.Module]:
    return [module for module in backbone.modules() if isinstance(module, GradientCheckpointingLayer)]


def training_flops(embedder: Embedder, length_N: np.ndarray) -> float:
    """Floating-point operations that a forward and backward pass over texts of these lengths need, nothing recomputed.

    6 P per token for P weights in matrix products, and 12 * layers * heads * head_dim per pair of tokens that attend
    (Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B); a causal model's pairs are half.
    """
    config: Any = embedder.backbone.config
    matrices = sum(p.numel() for name, p in embedder.named_parameters() if p.ndim >= 2 and "embed" not in name)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * head_dim
    pairs = float(np.square(length_N.astype(np.float64)).sum()) * (0.5 if embedder.causal else 1.0)
    return float(6.0 * matrices * float(length_N.sum()) + attention * pairs)


def build_student(
    config: StudentConfig,
    teacher: Embedder | None,
    seed: int,
    *,
    project: bool = True,
    width: int | None = None,
    texts: Sequence[str] = (),
) -> Student:
    """The student before training.

    Args:
        teacher: None where it does not run here (an endpoint, imported vectors).
        width: of the teacher's vectors as they are stored; None: the teacher's own.
        texts: some of the run's, where the layers of a larger model are chosen by what they do.

    Raises:
        ValueError: the start does not fit (no such layer, another tokenizer or width than the teacher's), or it needs a
            teacher that is not here.
    """
    width = teacher.width if width is None and teacher is not None else width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix_int(seed, 1) % 2**63)
        lower = []
        named = partial(Embedder.from_pretrained, pooling=config.pooling)
        match config.start:
            case BuiltStudent() as start:
                embedder = _built(start, config, teacher)
            case PrunedStudent() as start:
                own = start.model == "teacher"
                source = _present(teacher, "student.start.model") if own else named(start.model)
                layers = chosen_layers(start, source, texts)
                embedder = pruned(source, layers)
                lower = [below(source, layers[0])] if start.fold and layers[0] > 0 else []
            case start:
                embedder = named(start.model, revision=start.revision)
        _apply(config, embedder)
        differ = width is not None and embedder.width != width
        student = Student(embedder, width if project and differ and config.projection != "none" else None)
        student.lower = lower
        if config.lora is not None:
            add_adapters(student.embedder, config.lora)
        return student


def check_pca(student: Student, directions: int) -> nn.Linear:
    """The projection, which so many principal directions of the teacher's vectors must suffice for.

    Raises:
        ValueError: there is none to set, or the student is wider.
    """
    if student.projection is None:
        raise ValueError("student.projection is pca, but the widths are equal and there is nothing to project")
    if student.embedder.width > directions:
        raise ValueError(
            "student.projection is pca, which needs a student narrower than its teacher, and as many texts; got "
            f"{student.embedder.width} and {directions}; set it to learned"
        )
    return student.projection


def pca_projection(student: Student, teacher_ND: np.ndarray) -> float:
    """Set the projection to the teacher's leading principal directions (of the vectors as they are, not centred: the
    match is to them, from the origin). Returns the share of the teacher's squared norm that they hold.

    Raises:
        ValueError: see `check_pca`.
    """
    weight_ED = check_pca(student, min(teacher_ND.shape)).weight
    gram_EE = teacher_ND.astype(np.float64).T @ teacher_ND
    values, axes = np.linalg.eigh(gram_EE)
    leading = axes[:, ::-1][:, : weight_ED.shape[1]]
    with torch.no_grad():
        weight_ED.copy_(torch.from_numpy(leading.copy()))
    return float(values[::-1][: weight_ED.shape[1]].sum() / values.sum())


def finished(student: Student, *, keep_projection: bool) -> Embedder:
    """The embedder to export: adapters merged; with `keep_projection` its vectors lie in the teacher's space, so that a
    query can be embedded by the student and the documents by the teacher."""
    if any("lora_" in name for name, _ in student.embedder.named_parameters()):
        merge_adapters(student.embedder)
    if keep_projection and student.projection is not None:
        weight = student.projection.weight
        head = Dense(weight.shape[1], weight.shape[0], bias=False, activation="Identity")
        head.load_state_dict({"linear.weight": weight.detach()})
        student.embedder.dense.append(head)
    return student.embedder


def _present(teacher: Embedder | None, setting: str) -> Embedder:
    if teacher is None:
        raise ValueError(
            f"{setting} is teacher, which does not run here (its kind is endpoint or imported); name a model instead"
        )
    return teacher


def _apply(config: StudentConfig, embedder: Embedder) -> None:
    """The settings of the recipe over those of the checkpoint."""
    embedder.pooling = config.pooling or embedder.pooling
    embedder.template = config.template or embedder.template
    limit = embedder.position_limit
    if limit is None:
        limit = int(getattr(embedder.backbone.config, "max_position_embeddings", config.max_tokens))
    if config.max_tokens > limit:
        raise ValueError(f"student.max_tokens {config.max_tokens}: the model has fixed positions for {limit}")
    embedder.max_tokens = config.max_tokens
    embedder.normalize = True  # the losses compare directions, whether or not the checkpoint has a module for it
    _set_dropout(embedder.backbone, config.dropout)
    if embedder.pooling == "last" and embedder.specials.eos is None:
        append_eos(embedder.tokenizer)
        embedder.specials = specials(embedder.tokenizer)


def _set_dropout(backbone: PreTrainedModel, share: float) -> None:
    """Every dropout of the model, as modules, as numbers on its layers, and in its config."""
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        for name, value in list(vars(module).items()):  # what a layer hands to the functional form
            if isinstance(value, float) and "drop" in name and "layerdrop" not in name:
                setattr(module, name, share)
    for name, value in backbone.config.to_dict().items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(backbone.config, name, share)


def _built(start: BuiltStudent, config: StudentConfig, teacher: Embedder | None) -> Embedder:
    own = start.tokenizer == "teacher"
    given = _present(teacher, "student.start.tokenizer").tokenizer.name_or_path if own else start.tokenizer
    source = given if own else resolve_model(given)
    tokenizer = AutoTokenizer.from_pretrained(source)
    append_eos(tokenizer)
    if start.heads % start.kv_heads:
        raise ValueError(f"student.start.heads {start.heads}: expected a multiple of kv_heads {start.kv_heads}")
    made = built_config(
        start,
        len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=specials(tokenizer).eos,
    )
    if start.init == "static":
        check_static(made)
    backbone = AutoModel.from_config(made)  # type: ignore[no-untyped-call]
    if start.embeddings == "teacher":
        _teacher_embeddings(start, backbone, _present(teacher, "student.start.embeddings"))
    return Embedder(backbone, tokenizer, "last", max_tokens=config.max_tokens, template=Template())


def built_config(start: BuiltStudent, vocabulary: int, **special_ids: int | None) -> Qwen3Config | Gemma3TextConfig:
    """transformers' configuration of a student to be built, over so many tokens."""
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": start.width,
        "intermediate_size": start.ffn,
        "num_hidden_layers": start.layers,
        "num_attention_heads": start.heads,
        "num_key_value_heads": start.kv_heads,
        "head_dim": start.head_dim,
        "max_position_embeddings": start.positions,
        **special_ids,
    }
    return Qwen3Config(**sizes) if start.architecture == "qwen3" else Gemma3TextConfig(**sizes)


def _teacher_embeddings(start: BuiltStudent, backbone: PreTrainedModel, teacher: Embedder) -> None:
    """Take the token embeddings from the teacher."""
    given, wanted = token_embeddings(teacher.backbone), token_embeddings(backbone)
    if start.tokenizer != "teacher" or given.shape[1] != start.width:
        raise ValueError(
            "student.start.embeddings is teacher, which needs the teacher's tokenizer and width "
            f"{given.shape[1]}; got tokenizer {start.tokenizer!r} and width {start.width}; set embeddings to random"
        )
    with torch.no_grad():
        rows = min(len(given), len(wanted))  # Gemma3's tokenizer has a token that no table has a row for
        wanted[:rows].copy_(given[:rows])


def token_embeddings(backbone: PreTrainedModel) -> Tensor:
    """The table of token embeddings of a model: [vocabulary, width]."""
    table = backbone.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    return table.weight

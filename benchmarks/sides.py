"""Two sides that train on the same batches: ours, and sentence-transformers; `benchmarks.compare` lets them take turns.

The peer is a plain loop over its loss and AdamW, since its Trainer would only add to that.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.pairs import TEACHER, load_inputs
from benchmarks.steps import train_state
from data_prep.build import DataConfig
from data_prep.teacher import TeacherConfig
from embedding.layout import resolve_model
from embedding.memory import drop_garbage, keep_freed_memory
from train.calibrate import calibrate
from train.losses import InfoNCE
from train.plan import Inputs, StagePlan, plan_stages
from train.recipe import ComputeConfig, PretrainedStudent, Recipe, Stage, StudentConfig
from train.step import Memory, prepare_work, train_step
from train.student import build_student, checkpoint_layers, compile_layers, training_flops

TEMPERATURE = 0.05
RATE = 1e-5
PLAIN = "plain"
MINI_BATCHES = {"cpu": (1, 2, 4, 8, 32), "cuda": (4, 16, 64, 128)}
MINI_TOKENS = {"cpu": (512, 2_048), "cuda": (8_192, 32_768, 65_536)}
FLASH = ("flash_attention_2",) if find_spec("flash_attn") else ()
ATTENTION = {"cpu": ("sdpa",), "cuda": (*FLASH, "sdpa")}
"""What the peer may run; flash attention, where it is installed, also lets it drop the padding."""


@dataclass(frozen=True)
class Case:
    """One kind of work."""

    name: str
    folder: str
    model: str
    max_tokens: int
    batch: int
    steps: int
    """The first one warms up and does not count."""
    activation_gib: float | None = None
    device: str = "cpu"
    bf16: bool = False
    layer_checkpointing: bool = False
    compiled: bool = False
    """Our layers; whether the peer's are is searched on a GPU."""


# ------------------------------------------------------------------------------------------------------------- our side


class Ours:
    """train.step as the loop drives it, the token budget and memory calibrated as the loop does."""

    def __init__(self, case: Case) -> None:
        keep_freed_memory()
        plan, _ = _plan(case)
        self.sampler = plan.sampler
        accelerator = Accelerator(cpu=case.device == "cpu", mixed_precision=_precision(case))
        student = StudentConfig(start=PretrainedStudent(model=case.model), max_tokens=case.max_tokens)
        module = build_student(student, None, 0, project=False).to(case.device).train()
        _ = module.embedder.causal  # found out by passes of their own, as the loop does before layers are compiled
        with accelerator.autocast():
            _ = module.embedder.packs
        if case.compiled:
            compile_layers(module.embedder.backbone)
        if case.layer_checkpointing:
            checkpoint_layers(module.embedder.backbone)
        with accelerator.autocast():
            rows = prepare_work(self.sampler, None, 0).rows
            memory = calibrate(module, rows, ComputeConfig(activation_gib=case.activation_gib))
        optimizer = torch.optim.AdamW([{"params": list(module.parameters()), "base_lr": RATE}], lr=RATE, fused=True)
        self.compiled = case.compiled
        self.state = train_state(accelerator, module, module, optimizer, plan, memory)

    def step(self, step: int) -> dict[str, float]:
        """Train on one batch: seconds, real tokens, computed tokens, floating-point operations needed."""
        work = prepare_work(self.sampler, None, step)
        begin = _now()
        train_step(self.state, work)
        return {
            "seconds": _now() - begin,
            "tokens": int(work.batch.length_N.sum()),
            "computed": self.state.padded_tokens(work),
            "flops": training_flops(self.state.embedder, work.batch.length_N),
        }

    def configuration(self) -> dict[str, Any]:
        """What was chosen for this machine."""
        memory: Memory = self.state.memory
        return {
            "token_budget": memory.token_budget,
            "activation_gib": round(memory.activation_bytes / 2**30, 2),
            "packed": memory.packed,
            "compiled": self.compiled,
        }


# ----------------------------------------------------------------------------------------------------------- their side


class Theirs:
    """sentence-transformers: its model, its losses, AdamW; nothing between them that costs."""

    def __init__(self, case: Case, attention: str = "sdpa") -> None:
        from sentence_transformers import SentenceTransformer

        plan, inputs = _plan(case)
        self.case, self.sampler, self.texts = case, plan.sampler, inputs.texts
        self.model = SentenceTransformer(
            str(resolve_model(case.model)), device=case.device, model_kwargs={"attn_implementation": attention}
        )
        self.model.max_seq_length = case.max_tokens
        transformer: Any = self.model[0]
        self.backbone: Any = transformer.auto_model
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if case.layer_checkpointing:
            self.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.train()
        # As its Trainer does: autocast is part of the model's forward pass, so of the cached losses' second one too.
        Accelerator(cpu=case.device == "cpu", mixed_precision=_precision(case)).prepare_model(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, fused=True)
        self.choices = peer_losses(self.model, case.device)
        self.chosen = PLAIN
        self.compiled = False

    def names(self) -> list[str]:
        """The losses there are to choose from."""
        return list(self.choices)

    def step(self, step: int, share: float = 1.0) -> dict[str, float]:
        """Train on one batch, or on the first `share` of it: seconds, real tokens, tokens as the tokenizer padded them.

        Out of memory on a GPU takes forever.
        """
        batch = self.sampler.batch(step)
        texts = [batch.text_N[batch.query_B], batch.text_N[batch.document_K[batch.positive_B]]]
        count = max(1, round(share * len(texts[0])))
        features = [self._features([self.texts.text(int(row)) for row in side[:count]]) for side in texts]
        begin = _now()
        if not self._backward(features):
            self.optimizer.zero_grad(set_to_none=True)
            drop_garbage()
            return {"seconds": float("inf"), "tokens": 0, "padded": 0}
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {
            "seconds": _now() - begin,
            "tokens": sum(_tokens(side) for side in features),
            "padded": sum(side["input_ids"].numel() for side in features),
        }

    def _backward(self, features: list[dict[str, Any]]) -> bool:
        """The gradients of a batch; whether there was memory for them."""
        try:
            self.choices[self.chosen](features, None).backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError:
            return False
        return True

    def choose(self, name: str) -> None:
        """Train with this loss from here on."""
        self.chosen = name

    def compile(self, wanted: bool) -> None:
        """Run the layers compiled, or as they are, from here on."""
        self.compiled = wanted
        if wanted:
            compile_layers(self.backbone)
            return
        for module in self.backbone.modules():
            module.__dict__.pop("forward", None)

    def configuration(self) -> dict[str, Any]:
        """What is being run."""
        return {
            "loss": self.chosen,
            "attention": self.backbone.config._attn_implementation,
            "unpadded": bool(getattr(self.model[0], "can_flatten_inputs", False)),
            "compiled": self.compiled,
            "autocast": "bf16" if self.case.bf16 else "none",
            "optimizer": "AdamW, fused",
        }

    def _features(self, texts: list[str]) -> dict[str, Any]:
        features = self.model.preprocess(texts)
        return {
            name: x.to(self.case.device) if isinstance(x, torch.Tensor) else x for name, x in dict(features).items()
        }


def _precision(case: Case) -> str:
    return "bf16" if case.bf16 else "no"


def _tokens(features: dict[str, Any]) -> int:
    mask = features.get("attention_mask")
    return int(features["input_ids"].numel() if mask is None else mask.sum())


def peer_losses(model: Any, device: str) -> dict[str, Callable[..., torch.Tensor]]:
    """Every setting of the peer that is tried, by name."""
    from sentence_transformers.sentence_transformer import losses

    scale = 1 / TEMPERATURE
    found: dict[str, Any] = {PLAIN: losses.MultipleNegativesRankingLoss(model, scale=scale)}
    cached = losses.CachedMultipleNegativesRankingLoss
    for n in MINI_BATCHES[device]:
        found[f"cached, {n} texts"] = cached(model, scale=scale, mini_batch_size=n)
    for n in MINI_TOKENS[device]:
        found[f"cached, {n} tokens"] = cached(model, scale=scale, mini_batch_num_tokens=n)
    return found


def _plan(case: Case) -> tuple[StagePlan, Inputs]:
    """The batches that both sides train on."""
    inputs = replace(load_inputs(Path(case.folder)), vectors=None)
    stage = Stage(
        name="pace",
        steps=case.steps,
        batch_size=case.batch,
        max_tokens=case.max_tokens,
        learning_rate=RATE,
        losses=[InfoNCE(temperature=TEMPERATURE)],
    )
    recipe = Recipe(
        name="pace",
        data=DataConfig(),
        teacher=TeacherConfig(model=TEACHER),
        student=StudentConfig(start=PretrainedStudent(model=case.model), max_tokens=case.max_tokens),
        stages=[stage],
    )
    return plan_stages(recipe, inputs)[0], inputs


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def distinct(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs that share no text: else our side would embed it once and theirs twice."""
    seen: set[str] = set()
    kept = []
    for query, body in pairs:
        if query not in seen and body not in seen and query != body:
            seen |= {query, body}
            kept.append((query, body))
    return kept

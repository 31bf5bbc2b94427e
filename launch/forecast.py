"""What a recipe will cost, before any device is held: texts, tokens, bytes, operations and memory.

Shapes: n texts looked at.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from data_prep.mine import MineConfig
from data_prep.reduce import StoreConfig
from data_prep.shards import Stored
from data_prep.tables import Examples, Texts
from data_prep.teacher import vector_keys
from data_prep.vectors import VectorStore, first_rows
from embedding.files import read_json
from embedding.instruction import BARE, Template
from embedding.tokens import TOKEN_BUDGET, append_eos, specials, tokenize
from launch.gpus import Gpu
from launch.shapes import Known, Shape, Weights
from train.batches import source_shares
from train.calibrate import CUDA_SHARE
from train.plan import StagePlan, check_matched, check_widths, foreseen, plan_stages, remarks
from train.recipe import Recipe, Stage

COUNTED = 20_000
"""Up to so many texts all are tokenized; of more, a sample."""
SAMPLE = 5_000
ROWS = 500
"""Rows of examples that a stage's work is estimated from."""
BYTES_PER_TOKEN = 4.0
"""Where no tokenizer is here: English under the vocabularies of today's models, roughly; other languages less."""
USABLE = 0.92
CONTEXT_GB = 1.0
"""What is left of a GPU's memory for us: without fragmentation, and CUDA's own context. Assumed."""
MASTER_BYTES = 16
"""Of one trained parameter: fp32 weight, gradient, and AdamW's two moments."""
FROZEN_BYTES = 4
"""Of one that is not trained: its fp32 weight."""
PACKED_BYTES = 0.5 + 4 / 64
"""Of one in 4 bits: those, and an fp32 scale for each block of 64 (bitsandbytes' nf4)."""
AUTOCAST_BYTES = 2
"""Of one weight in a matrix product: its bf16 copy under autocast. The graph keeps that of a frozen one too, which the
gradient of its input needs."""
Kind = Literal["counted", "sampled", "guessed"]


@dataclass(frozen=True)
class Lengths:
    """Token counts of some texts, after the cut."""

    count: int
    length_n: np.ndarray
    """Of all of them, or of a sample."""
    how: Kind

    @property
    def tokens(self) -> float:
        """In all."""
        return float(self.length_n.mean()) * self.count if self.count else 0.0

    @property
    def error(self) -> float:
        """Two standard errors of `tokens`; 0 where every text was counted."""
        if self.how != "sampled" or len(self.length_n) < 2:
            return 0.0
        return float(2 * self.length_n.std(ddof=1) / np.sqrt(len(self.length_n)) * self.count)

    def flops(self, shape: Shape) -> float:
        """Of one forward pass over all of them."""
        return shape.forward_flops(self.length_n) * self.count / max(len(self.length_n), 1)


@dataclass(frozen=True)
class StageCost:
    """One stage of training."""

    name: str
    steps: int
    batch_tokens: float
    """Of the global batch, an upper bound where rows share texts."""
    forward_flops: float | None
    """Of one step; None where the student's shape is unknown."""


@dataclass(frozen=True)
class Forecast:
    """All that does not depend on the device."""

    texts: int
    examples: int
    teacher: Shape | None
    student: Shape | None
    weights: Weights | None
    """The student's, as they are held in training; None where its shape is unknown."""
    teacher_texts: Lengths
    student_texts: Lengths
    """Every text as the student's tokens have it: whole."""
    missing: int
    """Of the teacher's texts: those without a vector in the store yet."""
    vector_bytes: int | None
    """Of one vector with its key; None where the teacher's width is unknown."""
    sample_bytes: int
    """Of the whole vectors that `teacher.store.pca` is fitted to before it stores its own; 0 where it was, or where
    the teacher's width is unknown."""
    stages: list[StageCost]
    activation_bytes: float
    """Of one token of the student in training."""
    unknown: list[str]
    remarks: list[str]
    """What may be meant otherwise."""

    @property
    def store_bytes(self) -> int | None:
        """Of the finished store."""
        return None if self.vector_bytes is None else self.vector_bytes * self.teacher_texts.count

    @property
    def teacher_flops(self) -> float | None:
        """Of the vectors that are missing."""
        if self.teacher is None:
            return None
        return self.teacher_texts.flops(self.teacher) * self.missing / max(self.teacher_texts.count, 1)


def forecast(
    recipe: Recipe,
    data: Path,
    teacher: Known,
    student: Known,
    width: int | None,
) -> Forecast:
    """Count and estimate from the prepared tables in `data`; `width` is the teacher's, where its shape does not say it.

    Raises:
        ValueError: training would refuse the recipe on this data; says which setting to change.
    """
    texts, examples = Texts.load(data / "texts"), Examples.load(data / "examples")
    keys_N2 = vector_keys(texts, recipe.teacher.template)
    distinct = first_rows(keys_N2)
    limit = getattr(recipe.teacher, "max_tokens", None) or teacher.max_tokens
    read = _lengths(texts, distinct, teacher.tokenizer, recipe.teacher.template, limit)
    shape, tokenizer = student.shape, student.tokenizer
    if tokenizer is not None and specials(tokenizer).eos is None and shape is not None and shape.causal:
        append_eos(tokenizer)
    template = recipe.student.template or student.template or BARE
    plans = plan_stages(recipe, foreseen(recipe, texts, examples))  # refused as training would refuse them
    stored_width = recipe.teacher.store.pca or (teacher.shape.width if teacher.shape else 0) or width
    if recipe.student.projection == "none" and stored_width and shape is not None:
        check_matched(recipe.stages, shape.width, stored_width)
    if shape is not None and shape.width:
        check_widths(recipe.stages, shape.width)
    whole = (teacher.shape.width if teacher.shape else 0) or width or 0
    missing, begun = _missing(recipe, keys_N2[distinct])
    unknown = [line for line in (teacher.why,) if line]
    if tokenizer is None:
        unknown.append(f"the student's tokenizer: its tokens are guessed at {BYTES_PER_TOKEN:g} bytes each")
    if shape is None:
        unknown.append("the student's size: give the model it starts from as a folder")
    elif recipe.student.lora is not None and shape.config is None:
        unknown.append("the adapters' size, which is left out: give the model it starts from as a folder")
    return Forecast(
        texts=len(texts),
        examples=len(examples.queries),
        teacher=teacher.shape,
        student=shape,
        weights=shape.weights(recipe.student.lora) if shape else None,
        teacher_texts=read,
        student_texts=_lengths(texts, np.arange(len(texts)), tokenizer, template, None),
        missing=missing,
        vector_bytes=_vector_bytes(recipe.teacher.store.dtype, stored_width) if stored_width else None,
        sample_bytes=0 if begun else _sample_bytes(recipe, missing, whole),
        stages=[_stage(plan, texts, examples, recipe.mine, tokenizer, template, shape) for plan in plans],
        activation_bytes=shape.activation_bytes(torch.bfloat16) if shape else 0.0,
        unknown=unknown,
        remarks=remarks(recipe, texts, template),
    )


def _vector_bytes(dtype: Stored, width: int) -> int:
    return 16 + (width + 4 if dtype == "int8" else 2 * width)


def _sample_bytes(recipe: Recipe, missing: int, width: int) -> int:
    """Of the sample that a reduction is fitted to, which `data_prep.embed` keeps whole in a store of its own."""
    store = recipe.teacher.store
    if not store.pca or not width or recipe.teacher.kind == "imported":
        return 0
    return min(missing, store.pca_sample) * _vector_bytes(StoreConfig().dtype, width)


def _missing(recipe: Recipe, keys_N2: np.ndarray) -> tuple[int, bool]:
    """(how many vectors no pass of this teacher has stored yet, whether there was one), going by the records of
    finished passes."""
    asked = recipe.teacher.model_dump(mode="json")
    absent = np.ones(len(keys_N2), dtype=bool)
    begun = False
    for path in sorted((recipe.cache / "steps").glob("embed-*.json")):
        record = read_json(path)
        result = record["result"]
        store = recipe.cache / result["outputs"][0]
        if record["made_from"]["teacher"] == asked and store.is_dir():
            absent &= VectorStore.open(store, result["identity"], result["width"]).missing(keys_N2)
            begun = True
    return int(absent.sum()), begun


def _lengths(
    texts: Texts,
    rows: np.ndarray,
    tokenizer: PreTrainedTokenizerBase | None,
    template: Template,
    limit: int | None,
) -> Lengths:
    if len(rows) > COUNTED:
        some = np.random.default_rng(0).choice(rows, SAMPLE, replace=False)
        how: Kind = "sampled"
    else:
        some, how = rows, "counted"
    length_n = _tokens(texts, np.sort(some), tokenizer, template)
    if tokenizer is None:
        how = "guessed"
    return Lengths(len(rows), np.minimum(length_n, limit or length_n.max(initial=1)), how)


def _tokens(
    texts: Texts, rows: np.ndarray, tokenizer: PreTrainedTokenizerBase | None, template: Template
) -> np.ndarray:
    """The tokens of prompt + text: int64 [n]."""
    prompts, raw = texts.prompted(template, rows)
    if tokenizer is None:
        sizes = [len((prompt + text).encode()) for prompt, text in zip(prompts, raw, strict=True)]
        return np.maximum(1, np.ceil(np.array(sizes) / BYTES_PER_TOKEN)).astype(np.int64)
    return np.array([len(row) for row in tokenize(tokenizer, prompts, raw)], dtype=np.int64)


def _stage(
    plan: StagePlan,
    texts: Texts,
    examples: Examples,
    mine: MineConfig | None,
    tokenizer: PreTrainedTokenizerBase | None,
    template: Template,
    shape: Shape | None,
) -> StageCost:
    """A stage's work from some of its rows, drawn as its sources are weighted."""
    stage = plan.stage
    random = np.random.default_rng(0)
    mined = min(stage.negatives, mine.negatives) if mine else 0
    texts_of_rows = [_texts_of(examples, stage, int(row), mined, random) for row in _some_rows(examples, stage, random)]
    length_n = _tokens(texts, np.concatenate(texts_of_rows), tokenizer, template)
    length_n = np.minimum(length_n, stage.max_tokens)
    batches = stage.batch_size / len(texts_of_rows)
    flops = None if shape is None else shape.forward_flops(length_n) * batches
    return StageCost(stage.name, plan.steps, float(length_n.sum()) * batches, flops)


def _some_rows(examples: Examples, stage: Stage, random: np.random.Generator) -> np.ndarray:
    sizes = np.bincount(examples.sources, minlength=len(examples.source_names))
    share = source_shares(examples, stage.sources, stage.alpha)
    per_row = (share / np.maximum(sizes, 1))[examples.sources]
    return random.choice(len(per_row), size=ROWS, p=per_row / per_row.sum())


def _texts_of(examples: Examples, stage: Stage, row: int, mined: int, random: np.random.Generator) -> np.ndarray:
    """The texts of a row; for negatives that are still to be mined, any rows' positives stand in."""
    positives, negatives = examples.positives_of(row), examples.negatives_of(row)
    taken = negatives[: stage.negatives] if len(positives) else negatives[:0]
    if len(positives) and not np.isfinite(examples.scores[row]) and len(taken) < mined:
        taken = np.concatenate([taken, random.choice(examples.positives.values, mined - len(taken))])
    return np.concatenate([[examples.queries[row]], positives[:1], taken]).astype(np.int64)


# --------------------------------------------------------------------------------------------------------- on a device


@dataclass(frozen=True)
class OnGpu:
    """One part of the work, the teacher's pass or the training, on one kind of GPU."""

    gigabytes: float
    """What it must hold at least, 10^9 bytes."""
    hours: float | None
    """Device-hours; None where it does not fit or is not known."""
    change: str
    """What makes it fit; "": it fits."""


def usable_gigabytes(gpu: Gpu) -> float:
    """What a process has of a GPU's memory."""
    return gpu.gigabytes * USABLE - CONTEXT_GB


def teacher_on(gpu: Gpu, gpus: int, recipe: Recipe, found: Forecast, mfu: float) -> OnGpu | None:
    """The teacher's pass; None where nothing of it runs here (an endpoint, imported vectors, size unknown)."""
    shape, config = found.teacher, recipe.teacher
    if shape is None or config.kind != "local":
        return None
    bits = {"none": 32 if config.dtype == "float32" else 16, "8bit": 8, "4bit": 4}[config.quantization]
    number = 4 if config.dtype == "float32" else 2
    weights = shape.parameters * bits / 8e9
    budget = config.token_budget or TOKEN_BUDGET["cuda"]
    chunk = budget * shape.live * number / 1e9
    room = usable_gigabytes(gpu)
    spread = gpus if config.spread == "layers" else 1
    need = weights / spread + chunk
    rate = (gpu.fp32_tflops if config.dtype == "float32" else gpu.bf16_tflops) * 1e12 * mfu
    flops = found.teacher_flops
    assert flops is not None, "the shape is known"
    if need <= room:
        return OnGpu(need, flops / rate / 3600 * spread, "")
    return OnGpu(need, None, _mend_teacher(shape, weights / spread, bits, chunk / budget, room, recipe, budget))


def _mend_teacher(
    shape: Shape, weights: float, bits: int, chunk_per_token: float, room: float, recipe: Recipe, budget: int
) -> str:
    longest = getattr(recipe.teacher, "max_tokens", None) or 512
    fitting = int((room - weights) / chunk_per_token) if chunk_per_token else 0
    if weights < room and fitting >= longest:
        return f"teacher.token_budget={2 ** int(np.log2(fitting))}"
    if bits == 32 and (shape.parameters * 2e-9 + longest * shape.live * 2e-9) <= room:
        return "teacher.dtype=bfloat16"
    packed = [name for name, size in (("8bit", 1.0), ("4bit", 0.5)) if shape.parameters * size / 1e9 < 0.9 * room]
    needed = int(np.ceil(shape.parameters * min(bits, 16) / 8e9 / (0.8 * room)))
    dtype = "teacher.dtype=bfloat16 and " if bits == 32 else ""
    ways = [f"{dtype}teacher.spread=layers over {needed} of them"] if needed > 1 else []
    ways += [f"teacher.quantization={packed[0]}"] if packed else []
    return " or ".join(ways) or "a larger GPU"


def training_on(gpu: Gpu, gpus: int, recipe: Recipe, found: Forecast, mfu: float) -> OnGpu | None:
    """The training on `gpus` of them with whole copies (DDP); None where the student's size is unknown."""
    shape, weights = found.student, found.weights
    if shape is None or weights is None:
        return None
    master = weights.trained * MASTER_BYTES + weights.frozen * FROZEN_BYTES + weights.packed * PACKED_BYTES
    master /= 1e9
    copies = 0.0 if recipe.compute.precision == "fp32" else weights.products * AUTOCAST_BYTES / 1e9
    per_token = found.activation_bytes
    checkpointed = 2.0 * shape.width * shape.layers + per_token / max(shape.layers, 1)
    kept = checkpointed if recipe.compute.layer_checkpointing else per_token
    longest = max(stage.max_tokens for stage in recipe.stages)
    chunk = longest * kept / 1e9
    room = usable_gigabytes(gpu)
    need = master + copies + chunk
    if need <= room:
        rate = (gpu.fp32_tflops if recipe.compute.precision == "fp32" else gpu.bf16_tflops) * 1e12 * mfu
        spare = max(0.0, (room - master - copies) * CUDA_SHARE - chunk)  # as train.calibrate shares it out
        flops = 0.0
        for stage in found.stages:
            assert stage.forward_flops is not None, "the shape is known"
            held = min(1.0, spare / max(stage.batch_tokens / gpus * per_token / 1e9, 1e-9))
            again = 1.0 if recipe.compute.layer_checkpointing else 1.0 - held
            flops += stage.steps * stage.forward_flops * (3 + again)
        return OnGpu(need, flops / rate / 3600, "")
    if not recipe.compute.layer_checkpointing and master + copies + longest * checkpointed / 1e9 <= room:
        return OnGpu(need, None, "compute.layer_checkpointing=true")
    # With the whole weights on every GPU, also where they are sharded then; those in 4 bits never are.
    begins = shape.parameters * 4 / 1e9 <= room and not weights.packed
    fitting = (n for n in (2, 4, 8, 16, 32, 64) if begins and (master + copies) / n + chunk <= 0.9 * room)
    sharded = next(fitting, None)
    change = f"FSDP2 over {sharded} of them" if sharded else "shorter texts (stages.*.max_tokens) or a larger GPU"
    return OnGpu(need, None, change)

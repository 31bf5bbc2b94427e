"""What will be trained, checked before anything runs: every stage with its sampler and its steps."""

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from packaging.version import Version

from data_prep.tables import TOKENS, Examples, Texts, Tokens
from data_prep.teacher import NoTeacherConfig
from embedding.instruction import Template
from embedding.mix import mix_int
from train.batches import Sampler
from train.distributed import world_size
from train.frozen import check_frozen
from train.losses import Gram, Loss, Match, Own, Relative, Spread
from train.recipe import BuiltStudent, Recipe, Stage
from train.student import Student, check_pca
from train.views import Part

ROWS_WITH: Mapping[Part, tuple[str, ...]] = {
    "query": ("single", "pairs", "graded"),
    "positive": ("pairs", "graded"),
    "negative": ("negatives",),
}
"""The kinds of rows (`Sampler.rows_of_kind`) that have a text of each part."""

FORMAT = 1
"""Raised when the same recipe trains otherwise than before, as with another order of the rows."""
FSDP2_TORCH = Version("2.13")
TeacherVectors = Callable[[np.ndarray], np.ndarray]
"""Rows of the texts table -> the teacher's vectors, float32 [n, E]."""


@dataclass(frozen=True)
class Inputs:
    """What a run trains on."""

    texts: Texts
    examples: Examples
    tokens: Tokens
    vectors: TeacherVectors | None
    """None: no loss may need a teacher."""
    made_from: Mapping[str, Any] = field(default_factory=dict)
    """Fingerprints of data, tokens and vectors: a checkpoint made from others is refused."""


@dataclass(frozen=True)
class StagePlan:
    """A stage with its place in the run."""

    stage: Stage
    sampler: Sampler
    start: int
    """Steps of the run before this stage."""
    steps: int

    @property
    def end(self) -> int:
        """Steps of the run when this stage is done."""
        return self.start + self.steps


def foreseen(recipe: Recipe, texts: Texts, examples: Examples, width: int = 0) -> Inputs:
    """The inputs of a run as far as they are known before its teacher's pass: for `plan_stages` and `check_student`,
    and nothing else. Without tokens, with vectors [., width] of zeros; rows whose negatives are still to be mined have
    their positives in their place."""
    if recipe.mine is not None:
        examples = copy(examples)
        examples.negatives = examples.positives
    nothing = Tokens(pa.Table.from_batches([], schema=TOKENS), suffix=1)

    def zeros(rows: np.ndarray) -> np.ndarray:
        return np.zeros((len(rows), width), dtype=np.float32)

    return Inputs(texts, examples, nothing, None if isinstance(recipe.teacher, NoTeacherConfig) else zeros)


def plan_stages(recipe: Recipe, inputs: Inputs) -> list[StagePlan]:
    """All stages of a run.

    Raises:
        ValueError: a stage does not fit the data, the ranks or its own losses; says which setting to change.
    """
    recipe.check_ranks(world_size())
    plans: list[StagePlan] = []
    for number, stage in enumerate(recipe.stages):
        try:
            sampler = Sampler(
                inputs.texts,
                inputs.examples,
                inputs.tokens,
                seed=mix_int(recipe.seed, number),
                batch_size=stage.batch_size,
                max_tokens=stage.max_tokens,
                negatives=stage.negatives,
                weights=stage.sources,
                alpha=stage.alpha,
                one_source=stage.one_source,
            )
            _check(stage, recipe, inputs, sampler)
        except ValueError as error:
            raise ValueError(f"stage {stage.name!r}: {error}") from None
        start = plans[-1].end if plans else 0
        plans.append(StagePlan(stage, sampler, start, _steps(stage, sampler)))
    return plans


def checkpoint_identity(recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    """What a checkpoint must have been made from to be continued: all that decides the weights, and nothing else.

    The number of ranks is not among it: the result is the same up to rounding.
    """
    decides = recipe.model_dump(mode="json", include={"seed", "student", "stages"})
    del decides["student"]["keep_projection"]  # asked at the export
    if own := own_losses(recipe):
        decides["own"] = own
    decides["precision"] = recipe.compute.precision
    decides["spikes"] = recipe.spikes.model_dump(mode="json")
    decides["merge"] = recipe.merge.model_dump(mode="json") if recipe.merge else None
    return {"format": FORMAT, **decides, "inputs": dict(inputs.made_from)}


def check_sharding(recipe: Recipe, version: int | None) -> None:
    """`version`: of FSDP, which the run was launched with; None: it was not.

    Raises:
        ValueError: it does not go with this recipe, or this torch.
    """
    if version is None:
        return
    if version != 2:
        raise ValueError("FSDP of version 1 flattens the parameters; set fsdp_version: 2 (--accelerate fsdp2 has it)")
    if Version(torch.__version__) < FSDP2_TORCH:
        raise ValueError(
            f"FSDP2 with torch {torch.__version__}: recomputed chunks want {FSDP2_TORCH} or newer, which gathers a "
            "layer that was given back (pytorch/pytorch#171779, #182580); update torch, or train with DDP"
        )
    if len({tuple(stage.freeze) for stage in recipe.stages}) > 1:
        raise ValueError("stages that freeze different parts need DDP, not FSDP: it shards the parameters once")
    if recipe.student.lora is not None and recipe.student.lora.four_bit:
        raise ValueError("student.lora.four_bit needs DDP, not FSDP: weights in 4 bits stay whole on every rank")


def own_losses(recipe: Recipe) -> dict[str, str]:
    """{import path: digest of its file} of the user's own losses in the recipe."""
    return {loss.function: loss.source() for stage in recipe.stages for loss in stage.losses if isinstance(loss, Own)}


def _steps(stage: Stage, sampler: Sampler) -> int:
    if stage.steps is not None:
        return stage.steps
    assert stage.epochs is not None, "the recipe demands one of the two"
    return max(1, round(stage.epochs * sampler.rows_per_epoch / stage.batch_size))


def _check(stage: Stage, recipe: Recipe, inputs: Inputs, sampler: Sampler) -> None:
    if stage.max_tokens > recipe.student.max_tokens:
        raise ValueError(f"max_tokens {stage.max_tokens}: the student takes at most {recipe.student.max_tokens}")
    start = recipe.student.start
    if isinstance(start, BuiltStudent) and start.init == "static" and inputs.vectors is None:
        raise ValueError(
            "student.start.init is static, which is fitted to the teacher's vectors; run the embed step first"
        )
    if recipe.student.projection == "pca" and inputs.vectors is None:
        raise ValueError("student.projection is pca, fitted to the teacher's vectors; run the embed step first")
    _check_losses(stage, inputs, sampler)


def _check_losses(stage: Stage, inputs: Inputs, sampler: Sampler) -> None:
    """Every loss must get what it asks for: single texts go to match, pairs to info_nce, graded pairs to cosent."""
    rows = sampler.rows_of_kind
    found = ", ".join(f"{count:,} {kind}" for kind, count in rows.items() if count) or "no rows"
    for loss in stage.losses:
        if isinstance(loss, Own):
            loss.load()
        for need in sorted(loss.asks()):
            if need in ("teacher", "teacher_of_all"):
                if inputs.vectors is None:
                    raise ValueError(f"a {loss.kind} loss needs the teacher's vectors; run the embed step first")
            elif not rows[need]:
                what = {
                    "pairs": "rows with a positive and without a score",
                    "negatives": "rows with negatives (and `negatives` above 0)",
                    "graded": "rows with a score",
                }[need]
                raise ValueError(
                    f"a {loss.kind} loss needs {what}, and its sources have none ({found}); give the stage such a "
                    "source or leave the loss out"
                )
        if isinstance(loss, Match | Gram | Relative) and not any(rows[kind] for kind in _read_by(loss)):
            raise ValueError(
                f"a {loss.kind} loss is on {' and '.join(loss.on)} texts, and its sources have none ({found}); give "
                "the stage such a source, negatives above 0 where it has them, or leave the loss out"
            )
    taken = {kind for loss in stage.losses for kind in _read_by(loss)}
    taken |= {"pairs"} if "negatives" in taken else set()  # a row with negatives is a pair
    for kind in ("single", "pairs", "graded"):
        if rows[kind] and kind not in taken:
            raise ValueError(
                f"no loss of the stage learns from its {rows[kind]:,} {kind} rows; add one (match for single texts, "
                "info_nce for pairs, cosent for graded rows) or leave their source out"
            )


def _read_by(loss: Loss) -> Collection[str]:
    """The kinds of rows that a loss learns from."""
    if isinstance(loss, Match | Gram | Relative):
        return {kind for part in loss.on for kind in ROWS_WITH[part]}
    return ROWS_WITH["query"] if isinstance(loss, Spread | Own) else loss.asks()


def check_matched(stages: Sequence[Stage], width: int, teacher_width: int) -> None:
    """Without a projection, vectors that are matched must be of one width.

    Raises:
        ValueError: they are not.
    """
    matched = [stage.name for stage in stages if any(isinstance(loss, Match) for loss in stage.losses)]
    if matched and width != teacher_width:
        raise ValueError(
            f"stage {matched[0]!r}: match compares the student's vectors of width {width} with the teacher's of "
            f"{teacher_width}, and student.projection is none; set it to learned, make the widths equal, or take "
            "losses of similarities alone, such as gram"
        )


def check_widths(stages: Sequence[Stage], width: int) -> None:
    """Matryoshka widths must lie below the student's own.

    Raises:
        ValueError: they do not.
    """
    for stage in stages:
        for loss in stage.losses:
            if any(cut >= width for cut in loss.widths):
                raise ValueError(
                    f"stage {stage.name!r}: {loss.kind} is asked for at the widths {loss.widths}; expected widths "
                    f"below the student's {width}"
                )


def remarks(recipe: Recipe, texts: Texts, template: Template) -> list[str]:
    """What may be meant otherwise, in a recipe that can be trained as it is."""
    return [said for said in (_unread_instructions(texts, template), _longer_than_trained(recipe)) if said]


def _longer_than_trained(recipe: Recipe) -> str:
    """Where a decoder built from nothing will read longer texts than any stage shows it; else "". An encoder's layers
    hold for longer texts than they were trained with, those of such a decoder may not (docs/experiments.md)."""
    longest = max(stage.max_tokens for stage in recipe.stages)
    if not isinstance(recipe.student.start, BuiltStudent) or recipe.student.max_tokens <= longest:
        return ""
    return (
        f"the student reads {recipe.student.max_tokens} tokens of a text and no stage shows it more than {longest}: a "
        "decoder built from nothing can lose beyond what it was trained with; raise max_tokens of a stage, or lower "
        "student.max_tokens"
    )


def _unread_instructions(texts: Texts, template: Template) -> str:
    """Where instructions and the student's prompts have no use for one another; else ""."""
    count = sum(bool(task) for task in texts.tasks.unique().to_pylist())
    wanted = any("{task}" in prompt for prompt in (template.query, template.document))
    if wanted and not count:
        return (
            f"no source has an instruction, so the student's prompt with {{task}} (before a query: {template.query!r}) "
            "is left out whole; write `instruction: …` into the sources"
        )
    if wanted or not count:
        return ""
    return (
        f"the instructions of the sources ({count}) are put before no text: the student's prompts have no {{task}} "
        f"(before a query: {template.query!r}); set student.template, or leave them out"
    )


def check_student(recipe: Recipe, student: Student, inputs: Inputs) -> None:
    """The student must fit what the stages ask of it: instructions and texts within the shortest cut of the run,
    Matryoshka widths below its own, a projection that can be set as asked, without one a match of equal widths, and
    something to train in each.

    Raises:
        ValueError: it does not.
    """
    stages, embedder = recipe.stages, student.embedder
    shortest = min(stages, key=lambda stage: stage.max_tokens)
    for task in inputs.texts.tasks.unique().to_pylist():
        try:
            embedder.require_room(embedder.template.prompt("query", task), shortest.max_tokens)
        except ValueError as error:
            raise ValueError(f"stage {shortest.name!r}: {error}") from None
    pca = recipe.student.projection == "pca"
    if inputs.vectors is not None and (pca or student.projection is None):
        teacher_width = inputs.vectors(np.zeros(1, dtype=np.int64)).shape[1]
        if teacher_width and student.projection is None:  # 0: foreseen, of a teacher who does not say
            check_matched(stages, embedder.width, teacher_width)
        elif teacher_width:
            check_pca(student, teacher_width)
    check_widths(stages, embedder.width)
    check_frozen(stages, student)

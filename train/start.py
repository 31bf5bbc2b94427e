"""What a run sets in closed form before its first step, from texts that it will train on."""

import math
from collections.abc import Callable

import numpy as np

from train.fold import FOLD_TEXTS, covering, fold
from train.plan import Inputs, StagePlan
from train.recipe import BuiltStudent, PrunedStudent, Recipe
from train.static_start import static_start
from train.student import Student, pca_projection

STATIC_TEXTS = 20_000
"""Texts that a start is fitted to where the teacher's vectors are enough."""
LOOKED_AT = 300_000
"""Texts among which those with rare tokens are looked for."""


def set_start(student: Student, recipe: Recipe, plan: StagePlan, inputs: Inputs, say: Callable[[str], None]) -> None:
    """The weights that the recipe wants in closed form; `plan`: the first stage, `say` is told what came of it."""
    start = recipe.student.start
    if isinstance(start, BuiltStudent) and start.init == "static":
        texts = _first_texts(plan, STATIC_TEXTS)
        rows = [plan.sampler.ids(text) for text in texts.tolist()]
        cosine = static_start(student.embedder, rows, _vectors(inputs, texts))
        say(f"static start: mean cosine to the teacher {cosine:.3f}")
    if isinstance(start, PrunedStudent) and start.fold:
        if student.lower:
            first = _first_texts(plan, FOLD_TEXTS)
            others = np.setdiff1d(_first_texts(plan, LOOKED_AT), first)
            read = covering(
                [student.embedder.cut(inputs.tokens.ids(text)) for text in first.tolist()],
                [inputs.tokens.ids(text) for text in others.tolist()],
                student.embedder.specials,
            )
            held = fold(student.embedder, student.lower[0], read)
            say(
                f"lower layers folded into the embeddings: {held:.0%} of their variance over {len(read):,} texts and "
                "pieces of texts"
            )
        else:
            say("nothing to fold: the first layer is kept, so none lies below")
    if recipe.student.projection == "pca" and student.projection is not None:
        kept = pca_projection(student, _vectors(inputs, _first_texts(plan, STATIC_TEXTS)))
        say(f"projection: the teacher's principal directions, {kept:.1%} of its vectors' squared norm")


def _first_texts(plan: StagePlan, count: int) -> np.ndarray:
    """The first texts that a stage will train on, about so many; those of one epoch where it has fewer."""
    parts, held = [np.zeros(0, dtype=np.int64)], 0
    for step in range(min(plan.steps, math.ceil(plan.sampler.rows_per_epoch / plan.stage.batch_size))):
        parts.append(plan.sampler.batch(step).text_N)
        held += len(parts[-1])
        if held >= count:  # of which some may be equal
            parts = [np.unique(np.concatenate(parts))]
            held = len(parts[0])
            if held >= count:
                break
    return np.unique(np.concatenate(parts))


def _vectors(inputs: Inputs, texts: np.ndarray) -> np.ndarray:
    assert inputs.vectors is not None, "the plan refuses a fitted start without teacher vectors"
    return inputs.vectors(texts)

"""Each loss alone makes a student better on text that it has not seen: real docstrings, real teacher, real steps."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from embedding.embedder import Embedder
from embedding.instruction import BARE
from train.loop import train
from train.losses import CoSENT, Gram, InfoNCE, MarginMSE, Match, Relative, ScoreKL, Spread
from train.recipe import BuiltStudent, StudentConfig
from train.student import build_student
from train.views import LossConfig

from .conftest import Row, docstring_rows, make_inputs
from .test_loop import make_recipe, stage

HELD_OUT = 4
"""Every fourth function is measured by and never trained on."""
STUDENT = StudentConfig(
    start=BuiltStudent(layers=1, width=384, heads=6, kv_heads=6, head_dim=64, ffn=384, embeddings="teacher"),
    template=BARE,
    max_tokens=64,
)
STEPS = 30
LOSSES: list[LossConfig] = [
    Match(),
    Match(distance="mse"),
    InfoNCE(temperature=0.05),
    Gram(),
    Relative(),
    ScoreKL(),
    MarginMSE(),
    CoSENT(),
    Spread(),
]


def split() -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows to measure by, with no text in common."""
    rows = docstring_rows()
    heldout = rows[::HELD_OUT]
    hidden = {text for row in heldout for text in (row.query, *row.positives)}
    kept = [row for i, row in enumerate(rows) if i % HELD_OUT and not hidden & {row.query, *row.positives}]
    for row in kept:
        row.negatives = [text for text in row.negatives if text not in hidden]
    return kept, heldout


def similarities(model: Embedder, rows: list[Row]) -> np.ndarray:
    """Of every summary to every rest: [B, B]."""
    return model.encode([row.query for row in rows]) @ model.encode([row.positives[0] for row in rows]).T


def graded(rows: list[Row], teacher: Embedder) -> list[Row]:
    """Each summary with its rest and with another one's, graded as the teacher finds them."""
    scores, found = similarities(teacher, rows), []
    for i, row in enumerate(rows):
        for j in (i, (i + 7) % len(rows), (i + 13) % len(rows)):
            found.append(Row(row.query, [rows[j].positives[0]], [], score=float(scores[i, j])))
    return found


def quality(student: Embedder, teacher_BB: np.ndarray, rows: list[Row]) -> dict[str, float]:
    """By held-out rows: how well a summary finds its rest (mean reciprocal rank), and how far the student's
    similarities are in the teacher's order (Spearman)."""
    scores_BB = similarities(student, rows)
    rank_B = 1 + (scores_BB > scores_BB.diagonal()[:, None]).sum(axis=1)
    order = spearmanr(scores_BB.ravel(), teacher_BB.ravel()).statistic
    return {"found": float((1 / rank_B).mean()), "order": float(order)}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.kind}-{getattr(loss, 'distance', '')}".strip("-"))
def test_alone_it_beats_the_untrained_student_on_held_out_text(
    loss: LossConfig, teacher: Embedder, tmp_path: Path
) -> None:
    rows, heldout = split()
    if isinstance(loss, CoSENT):
        rows = graded(rows, teacher)
    only = stage(steps=STEPS, batch_size=32, max_tokens=48, negatives=2, learning_rate=1e-3, losses=[loss])
    recipe = make_recipe(STUDENT, only, every=STEPS)
    student = build_student(recipe.student, teacher, recipe.seed)
    teacher_BB = similarities(teacher, heldout)
    before = quality(student.embedder, teacher_BB, heldout)
    train(recipe, student, make_inputs(rows, teacher, STUDENT), tmp_path)
    after = quality(student.embedder, teacher_BB, heldout)
    assert after["found"] > 1.25 * before["found"], (before, after)
    if not isinstance(loss, Spread):  # which asks neither labels nor a teacher what belongs together
        assert after["order"] > before["order"] + 0.1, (before, after)

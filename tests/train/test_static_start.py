import numpy as np
import pytest

from embedding.embedder import Embedder
from train.recipe import BuiltStudent, StudentConfig
from train.static_start import static_start
from train.student import build_student

from .conftest import docstring_rows


def config(**changes: object) -> StudentConfig:
    shape: dict[str, object] = {"layers": 2, "width": 384, "heads": 6, "kv_heads": 6, "head_dim": 64, "ffn": 64}
    return StudentConfig(start=BuiltStudent(**(shape | changes)), max_tokens=64)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def words() -> list[str]:
    rows = docstring_rows()
    return [row.query for row in rows] + [row.positives[0] for row in rows]


def test_the_model_is_the_fit_before_any_step(teacher: Embedder, words: list[str]) -> None:
    student = build_student(config(), teacher, 0).embedder
    vectors = teacher.encode(words)

    def cosine() -> float:
        return float((student.encode(words) * vectors).sum(axis=1).mean())

    before = cosine()
    rows = [[*row[:63].tolist(), 102] if len(row) > 64 else row for row in student.tokenize(words, [""] * len(words))]
    fit = static_start(student, [np.array(row, dtype=np.int32) for row in rows], vectors)
    assert before < 0.2
    assert fit > 0.8
    assert cosine() == pytest.approx(fit, abs=0.03)  # the filler in the residual stream cancels on average, not exactly


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architecture": "gemma3"}, "needs architecture qwen3"),
        ({"kv_heads": 2}, r"needs heads \* head_dim = kv_heads \* head_dim = width 384; got 6, 2 heads of 64"),
        ({"width": 192, "heads": 3, "kv_heads": 3, "embeddings": "random"}, "the teacher's width 384; got 192"),
    ],
)
def test_shapes_that_cannot_hold_it_are_refused(teacher: Embedder, changes: dict[str, object], message: str) -> None:
    student = build_student(config(**changes), teacher, 0, project=False).embedder
    with pytest.raises(ValueError, match=message):
        static_start(student, [np.array([101, 2000, 102], dtype=np.int32)], np.zeros((1, 384), dtype=np.float32))

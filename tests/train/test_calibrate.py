"""The measured chunk size: what there is nothing to choose between is not measured."""

import numpy as np

from embedding.embedder import Embedder
from train.calibrate import CANDIDATES, calibrate
from train.recipe import ComputeConfig, StudentConfig
from train.student import build_student


def test_texts_that_the_smallest_budget_holds_get_it(teacher: Embedder, student_config: StudentConfig) -> None:
    student = build_student(student_config, teacher, 0)
    memory = calibrate(student, [np.full(20, 5, dtype=np.int32)] * 8, ComputeConfig())
    assert memory.token_budget == CANDIDATES["cpu"][0]
    assert memory.bytes_per_token > 0


def test_larger_batches_are_measured_and_no_budget_is_beyond_them(
    teacher: Embedder, student_config: StudentConfig
) -> None:
    student = build_student(student_config, teacher, 0)
    memory = calibrate(student, [np.full(60, 5, dtype=np.int32)] * 30, ComputeConfig())
    assert memory.token_budget in CANDIDATES["cpu"][:2]  # 1,800 tokens: 2,048 makes one chunk of them

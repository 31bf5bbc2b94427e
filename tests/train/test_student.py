"""Students as they are built, before the first step."""

import numpy as np
import torch

from embedding.embedder import Embedder
from train.recipe import BuiltStudent, PrunedStudent, StudentConfig
from train.student import build_student


def states(dropout: float, config: StudentConfig, teacher: Embedder) -> tuple[torch.Tensor, torch.Tensor]:
    """The same chunk twice in training mode."""
    student = build_student(config.model_copy(update={"dropout": dropout}), teacher, 0).train()
    rows = [np.arange(5, 25, dtype=np.int32), np.arange(30, 40, dtype=np.int32)]
    with torch.no_grad():
        return student([rows], 1)[0], student([rows], 1)[0]


def test_dropout_is_what_the_recipe_says_and_not_what_the_checkpoint_says(teacher: Embedder) -> None:
    assert teacher.backbone.config.hidden_dropout_prob > 0, "else this shows nothing"
    pruned = StudentConfig(start=PrunedStudent(layers=[1, 4]), max_tokens=64)
    built = StudentConfig(start=BuiltStudent(layers=1, width=32, heads=2, kv_heads=1, embeddings="random"))
    for config in (pruned, built):
        once, again = states(0.0, config, teacher)
        assert torch.equal(once, again)
        once, again = states(0.3, config, teacher)
        assert not torch.equal(once, again)

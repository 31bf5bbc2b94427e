"""What the benchmarks need to call `train.step.train_step` themselves, as the training loop does."""

import torch
from accelerate import Accelerator

from benchmarks.common import say
from train.clock import Clock
from train.plan import StagePlan
from train.step import Memory, TrainState
from train.student import Student


def train_state(
    accelerator: Accelerator,
    wrapped: torch.nn.Module,
    student: Student,
    optimizer: torch.optim.Optimizer,
    plan: StagePlan,
    memory: Memory,
) -> TrainState:
    """What `train_step` needs, as the loop makes it."""
    return TrainState(
        accelerator=accelerator,
        student=wrapped,
        embedder=student.embedder,
        optimizer=optimizer,
        stage=plan.stage,
        steps=plan.steps,
        memory=memory,
        seed=0,
        clock=Clock(accelerator.device),
        say=say,
    )

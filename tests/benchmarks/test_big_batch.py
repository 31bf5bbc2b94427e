"""The memory of a loss over a large batch, in small, and that the measurement sees a loss that holds its matrix."""

import pytest
import torch

import benchmarks.big_batch
from benchmarks.big_batch import measure, result_of
from benchmarks.processes import run_alone


def naive(query: torch.Tensor, document: torch.Tensor, positive: torch.Tensor, t: float, *_: object) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(query @ document.T / t, positive, reduction="none")


def naive_measure() -> dict[str, float]:
    benchmarks.big_batch.info_nce_rows = naive  # type: ignore[assignment]  # in a process of its own
    return measure(4_096, 4_096, 64, 1)


def test_the_need_of_the_loss_does_not_grow_and_a_score_matrix_would_be_seen() -> None:
    small, large = (run_alone(1, measure, queries, 4_096, 64, 1)[0] for queries in (1_024, 4_096))
    assert result_of({1_024: small, 4_096: large})["growth"] < 1.5
    held = run_alone(1, naive_measure)[0]
    matrix = 4 * 4_096**2
    assert held["need"] > matrix > 2 * large["need"]
    assert held["loss"] == pytest.approx(large["loss"], rel=0.01), "one excluded document in 4,096"


def test_figures_by_hand() -> None:
    found = {1_024: {"need": 2e6, "seconds": 1.0, "flops": 1e9, "rate": 2e9}}
    found[65_536] = {"need": 3e6, "seconds": 60.0, "flops": 1e10, "rate": 2e10}
    result = result_of(found)
    assert result["growth"] == 1.5
    assert result["matrix_gib"] == 16.0
    assert (result["gflops"], result["matrix_gflops"]) == (10.0, 20.0)

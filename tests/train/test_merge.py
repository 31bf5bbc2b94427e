"""Merged weights against numpy in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from train.merge import Average, greedy_soup, mean_of, merged, slerp_of


def states(count: int) -> list[dict[str, Tensor]]:
    return [{"w": torch.randn(3, 4), "b": torch.randn(4), "n": torch.tensor(3)} for _ in range(count)]


def test_the_mean_is_weighted() -> None:
    a, b, c = states(3)
    expected = (1 * a["w"].double() + 2 * b["w"].double() + 5 * c["w"].double()).numpy() / 8
    found = mean_of([a, b, c], [1, 2, 5])
    np.testing.assert_allclose(found["w"], expected, atol=1e-7)
    assert found["n"] == 3
    assert found["w"].dtype == torch.float32


def test_slerp_walks_the_arc_and_keeps_the_norm() -> None:
    a, b = states(2)
    x, y = (s["w"].double().numpy().ravel() for s in (a, b))
    angle = np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    share = 0.25
    arc = np.sin((1 - share) * angle) * x / np.linalg.norm(x) + np.sin(share * angle) * y / np.linalg.norm(y)
    expected = arc / np.sin(angle) * ((1 - share) * np.linalg.norm(x) + share * np.linalg.norm(y))
    found = slerp_of([a, b], [3, 1])["w"].numpy().ravel()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.linalg.norm(found) > np.linalg.norm(mean_of([a, b], [3, 1])["w"])
    same = slerp_of([a, {name: tensor.clone() for name, tensor in a.items()}])
    torch.testing.assert_close(same["w"], a["w"])
    zero = {name: torch.zeros_like(tensor) for name, tensor in a.items()}
    torch.testing.assert_close(slerp_of([a, zero])["w"], a["w"] / 2)


def test_a_greedy_soup_takes_what_helps_and_leaves_what_hurts() -> None:
    target = torch.tensor([1.0, 1.0])
    given = [{"w": torch.tensor(w)} for w in ([0.0, 1.1], [9.0, -9.0], [1.8, 1.0], [-50.0, 2.0])]
    soup, chosen, best = greedy_soup(given, lambda state: -float((state["w"] - target).norm()))
    assert chosen == [0, 2]
    torch.testing.assert_close(soup["w"], torch.tensor([0.9, 1.05]))
    assert best == pytest.approx(-np.hypot(0.1, 0.05))
    with pytest.raises(ValueError, match="give it something to evaluate on"):
        merged(given, "greedy")


def test_what_does_not_belong_together_is_refused() -> None:
    a, b = states(2)
    for bad in ({**b, "more": torch.ones(1)}, {"w": b["w"], "n": b["n"]}, {**b, "b": torch.ones(5)}):
        with pytest.raises(ValueError, match=r"the models have other weights"):
            mean_of([a, bad])
    with pytest.raises(ValueError, match="two models or more, got 1"):
        mean_of([a])
    with pytest.raises(ValueError, match=r"weights \[1, 0\]: expected 2 positive numbers"):
        mean_of([a, b], [1, 0])


def test_the_moving_average_is_the_recursion_and_goes_on_exactly() -> None:
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    average, expected = Average(module, 0.9), module.weight.detach().double().clone()
    kept: dict[str, Tensor] = {}
    for step in range(5):
        with torch.no_grad():
            module.weight.add_(torch.randn(2, 3))
        average.update()
        expected = 0.9 * expected + 0.1 * module.weight.detach().double()
        if step == 2:
            kept = {name: tensor.clone() for name, tensor in average.tensors.items()}
            again = Average(module, 0.9)
            again.load(kept)
        elif step > 2:
            again.update()
    torch.testing.assert_close(average.tensors["weight"].double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(again.tensors["weight"], average.tensors["weight"])
    assert set(average.tensors) == {"weight"}
    average.apply()
    torch.testing.assert_close(module.weight.double(), expected, rtol=1e-5, atol=1e-6)

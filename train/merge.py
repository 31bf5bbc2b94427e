"""Several sets of weights made into one: averages, slerp, the greedy soup; and the average over a training's own steps.

Merging pays where the models began at the same weights (a stage's start) and went different ways (mixtures, seeds,
learning rates); models with different beginnings do not average.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from train.distributed import sharded_like

State = Mapping[str, Tensor]
Method = Literal["mean", "slerp", "greedy"]
NEARLY_PARALLEL = 1e-4
"""Below this angle (radians) slerp is the weighted mean: sin(angle) would divide by nothing."""


def check_alike(states: Sequence[State]) -> None:
    """Refuse weights that do not belong together.

    Raises:
        ValueError: fewer than two, or other names or shapes.
    """
    if len(states) < 2:
        raise ValueError(f"merging takes two models or more, got {len(states)}")
    for state in states[1:]:
        differ = [n for n in {*states[0], *state} if n not in state or n not in states[0]]
        differ += [n for n in state if n in states[0] and state[n].shape != states[0][n].shape]
        if differ:
            raise ValueError(f"the models have other weights: {min(differ)} ({len(differ)} in all); merge equal shapes")


def mean_of(states: Sequence[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """sum_i w_i state_i / sum w, in float64 (model soups, Wortsman 2022, arXiv:2203.05482).

    Raises:
        ValueError: see `check_alike`; or the weights are not as many, or not positive.
    """
    check_alike(states)
    shares = list(weights) if weights else [1.0] * len(states)
    if len(shares) != len(states) or min(shares) <= 0:
        raise ValueError(f"weights {shares}: expected {len(states)} positive numbers")
    total = sum(shares)
    return {name: _mean([state[name] for state in states], [share / total for share in shares]) for name in states[0]}


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0].clone()
    out = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, share in zip(tensors, shares, strict=True):
        out += share * tensor.double()
    return out.to(tensors[0].dtype)


def slerp_of(states: Sequence[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Spherical interpolation, tensor by tensor: two models along the arc between them at share w_2 / (w_1 + w_2)
    (Shoemake 1985); further models are joined to the result one after another, each with its share of the weights so
    far. The norm of the result is the weighted mean of the norms, which averaging loses.

    Raises:
        ValueError: see `mean_of`.
    """
    check_alike(states)
    shares = list(weights) if weights else [1.0] * len(states)
    if len(shares) != len(states) or min(shares) <= 0:
        raise ValueError(f"weights {shares}: expected {len(states)} positive numbers")
    merged, so_far = dict(states[0]), shares[0]
    for state, share in zip(states[1:], shares[1:], strict=True):
        so_far += share
        merged = {name: _slerp(merged[name], state[name], share / so_far) for name in merged}
    return merged


def _slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    if not a.is_floating_point():
        return a.clone()
    x, y = a.double().flatten(), b.double().flatten()
    x_norm, y_norm = x.norm(), y.norm()
    if x_norm == 0 or y_norm == 0:
        return _mean([a, b], [1 - share, share])
    angle = torch.arccos((x @ y / (x_norm * y_norm)).clamp(-1, 1))
    if torch.sin(angle) < NEARLY_PARALLEL:
        return _mean([a, b], [1 - share, share])
    unit = (torch.sin((1 - share) * angle) * x / x_norm + torch.sin(share * angle) * y / y_norm) / torch.sin(angle)
    out: Tensor = unit * ((1 - share) * x_norm + share * y_norm)
    return out.reshape(a.shape).to(a.dtype)


def greedy_soup(states: Sequence[State], score: Callable[[State], float]) -> tuple[dict[str, Tensor], list[int], float]:
    """The greedy soup (Wortsman 2022, arXiv:2203.05482, recipe 1): best first, each joins the mean if the score does
    not fall. Returns the weights, which of the states are in them, and their score.

    Raises:
        ValueError: see `check_alike`.
    """
    check_alike(states)
    scores = [score(state) for state in states]
    order = sorted(range(len(states)), key=lambda i: -scores[i])
    chosen, best, merged = [order[0]], scores[order[0]], dict(states[order[0]])
    for i in order[1:]:
        candidate = mean_of([states[j] for j in (*chosen, i)])
        found = score(candidate)
        if found >= best:
            chosen, best, merged = [*chosen, i], found, candidate
    return merged, sorted(chosen), best


def merged(
    states: Sequence[State],
    method: Method,
    weights: Sequence[float] | None = None,
    score: Callable[[State], float] | None = None,
) -> tuple[dict[str, Tensor], str]:
    """The merged weights, and one line that says what was done.

    Raises:
        ValueError: see the three methods; or the greedy soup has nothing to be scored on.
    """
    if method == "mean":
        return mean_of(states, weights), f"mean of {len(states)}"
    if method == "slerp":
        return slerp_of(states, weights), f"slerp of {len(states)}"
    if score is None:
        raise ValueError("a greedy soup is chosen by scores: give it something to evaluate on")
    soup, chosen, best = greedy_soup(states, score)
    return soup, f"greedy soup of {len(chosen)} of {len(states)} ({', '.join(map(str, chosen))}), score {best:.4f}"


class Average:
    """The exponential moving average of a module's trained weights: a <- a + (1 - decay) (w - a) after every step
    (Polyak and Juditsky 1992; Karras 2024, arXiv:2312.02696, on its length). fp32, sharded as the weights are.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._decay = decay
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        for name, parameter in self._parameters.items():
            self.tensors[name].lerp_(parameter.detach(), 1 - self._decay)

    @torch.no_grad()
    def apply(self) -> None:
        """The module gets the averaged weights."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.tensors[name])

    @torch.no_grad()
    def load(self, tensors: State) -> None:
        """Go on from the whole tensors of a checkpoint; a parameter that was frozen so far begins as it is."""
        for name, parameter in self._parameters.items():
            if name in tensors:
                self.tensors[name].copy_(sharded_like(tensors[name], parameter))

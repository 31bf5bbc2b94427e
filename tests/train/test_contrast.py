"""InfoNCE against a float64 reference that builds the whole score matrix."""

import numpy as np
import pytest
import torch

import train.contrast
from train.contrast import info_nce_rows

Arrays = dict[str, np.ndarray]


def example(b: int = 13, k: int = 29, d: int = 8, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    return {
        "query": unit(rng.normal(size=(b, d))),
        "document": unit(rng.normal(size=(k, d))),
        "positive": rng.permutation(k)[:b],
        "excluded": np.array([(i, (i * 7) % k) for i in range(0, b, 2)]),
        "query_group": np.where(np.arange(b) % 3 == 0, np.arange(b) % 4, -1),
        "document_group": np.where(np.arange(k) % 2 == 0, np.arange(k) % 4, -1),
    }


def reference(x: Arrays, temperature: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses and the gradients of their sum, in float64, without autograd."""
    scores = x["query"] @ x["document"].T / temperature
    usable = ~((x["query_group"][:, None] == x["document_group"][None]) & (x["query_group"][:, None] >= 0))
    usable[x["excluded"][:, 0], x["excluded"][:, 1]] = False
    rows = np.arange(len(scores))
    usable[rows, x["positive"]] = True
    weights = np.where(usable, np.exp(scores), 0.0)
    losses = np.log(weights.sum(1)) - scores[rows, x["positive"]]
    share = weights / weights.sum(1, keepdims=True)
    share[rows, x["positive"]] -= 1
    return losses, share @ x["document"] / temperature, share.T @ x["query"] / temperature


@pytest.mark.parametrize("tile", [3, 16, 2048])
@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_losses_and_gradients_equal_the_reference(
    tile: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.contrast, "TILE", tile)
    x = example()
    query = torch.tensor(x["query"], dtype=torch.float32, requires_grad=True)
    document = torch.tensor(x["document"], dtype=torch.float32, requires_grad=True)
    rest = [torch.from_numpy(x[name]) for name in ("excluded", "query_group", "document_group")]
    losses = info_nce_rows(query, document, torch.from_numpy(x["positive"]), temperature, *rest)
    losses.sum().backward()
    expected, grad_query, grad_document = reference(x, temperature)
    assert query.grad is not None
    assert document.grad is not None
    np.testing.assert_allclose(losses.detach(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(query.grad, grad_query, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(document.grad, grad_document, rtol=1e-3, atol=1e-4)


def test_the_positive_counts_even_where_it_is_excluded_or_in_the_group() -> None:
    query = torch.tensor([[1.0, 0.0]])
    document = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    losses = info_nce_rows(
        query, document, torch.tensor([0]), 1.0, torch.tensor([[0, 0]]), torch.tensor([5]), torch.tensor([5, -1])
    )
    assert losses.item() == pytest.approx(np.log(1 + np.e), abs=1e-6)


def test_no_score_matrix_is_kept() -> None:
    saved: list[torch.Tensor] = []
    query, document = (torch.randn(64, 4, requires_grad=True) for _ in range(2))
    none = torch.full((64,), -1)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        info_nce_rows(query, document, torch.arange(64), 0.1, torch.empty(0, 2, dtype=torch.int64), none, none)
    assert max(t.numel() for t in saved) == 64 * 4

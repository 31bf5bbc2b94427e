import numpy as np
import pytest
import torch

from embedding.pooling import normalize, pool, pool_packed, truncate

RIGHT = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
HIDDEN = torch.arange(24, dtype=torch.float32).reshape(3, 4, 2)


@pytest.mark.parametrize(
    "mode, expected",
    [
        ("last", [[4.0, 5.0], [8.0, 9.0], [22.0, 23.0]]),
        ("cls", [[0.0, 1.0], [8.0, 9.0], [16.0, 17.0]]),
        ("mean", [[2.0, 3.0], [8.0, 9.0], [19.0, 20.0]]),
    ],
)
def test_by_hand_right_left_and_packed(mode: str, expected: list[list[float]]) -> None:
    left = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]])
    moved = torch.stack([HIDDEN[i].roll(int((1 - RIGHT[i]).sum()), dims=0) for i in range(3)])
    packed = torch.cat([HIDDEN[i, : int(RIGHT[i].sum())] for i in range(3)])
    starts = torch.tensor([0, 3, 4, 8], dtype=torch.int32)
    assert pool(HIDDEN, RIGHT, mode).tolist() == expected  # type: ignore[arg-type]
    assert pool(moved, left, mode).tolist() == expected  # type: ignore[arg-type]
    assert pool_packed(packed, starts, mode).tolist() == expected  # type: ignore[arg-type]


def test_a_mean_in_bf16_is_summed_in_fp32() -> None:
    hidden = torch.full((1, 4096, 1), 1.01, dtype=torch.bfloat16)
    assert pool(hidden, torch.ones(1, 4096), "mean").item() == pytest.approx(float(hidden[0, 0, 0]), abs=1e-6)


def test_normalize_and_truncate_against_numpy() -> None:
    x = np.random.default_rng(0).normal(size=(5, 8))
    ours = truncate(torch.tensor(x, dtype=torch.bfloat16), 3)
    half = torch.tensor(x, dtype=torch.bfloat16).double().numpy()[:, :3]
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours, half / np.linalg.norm(half, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(normalize(torch.tensor(x)).norm(dim=1), np.ones(5), atol=1e-6)


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"pooling 'max': expected one of last, mean, cls"):
        pool(HIDDEN, RIGHT, "max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a text has no tokens"):
        pool(HIDDEN, torch.zeros(3, 4), "mean")
    with pytest.raises(ValueError, match=r"dim 3: expected 1 to 2"):
        truncate(HIDDEN[0], 3)

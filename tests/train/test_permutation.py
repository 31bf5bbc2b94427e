import numpy as np
import pytest

from embedding.mix import mix_int
from train.permutation import permute


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 4097])
@pytest.mark.parametrize("key", [0, 1, 2**63])
def test_it_is_a_bijection(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


def test_any_element_can_be_asked_for_alone() -> None:
    whole = permute(np.arange(5000), 5000, 7)
    assert [int(permute(np.array([i]), 5000, 7)[0]) for i in (0, 17, 4999)] == [int(whole[i]) for i in (0, 17, 4999)]


def test_keys_give_different_orders_that_look_random() -> None:
    size = 20_000
    a, b = permute(np.arange(size), size, 1), permute(np.arange(size), size, 2)
    # two random permutations agree in about one place, and neighbours land about size / 3 apart
    assert (a == b).sum() < 12
    assert abs(np.abs(np.diff(a)).mean() / size - 1 / 3) < 0.01


def test_no_memory_grows_with_the_size() -> None:
    assert 0 <= int(permute(np.array([10**12 - 1]), 10**12, 5)[0]) < 10**12


def test_an_index_outside_is_refused() -> None:
    with pytest.raises(ValueError, match=r"index 3\.\.3: expected 0\.\.2"):
        permute(np.array([3]), 3, 0)


def test_seeds_differ_by_every_part() -> None:
    seeds = {mix_int(a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(seeds) == 512

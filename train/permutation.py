"""A shuffle without a list: the i-th element of a random permutation, for any i at once, in constant memory."""

import numpy as np

from embedding.mix import mix, mix_int

ROUNDS = 6


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where a keyed pseudo-random permutation of 0..size-1 sends each index: int64, same shape.

    A balanced Feistel network (Luby and Rackoff 1988) over the next even power of two, with cycle walking (Black and
    Rogaway 2002) back into the range; round function: the finaliser of SplitMix64 (Steele et al. 2014). A bijection for
    every size and key.

    Raises:
        ValueError: an index outside 0..size-1.
    """
    index = np.asarray(index, dtype=np.int64)
    if index.size and (index.min() < 0 or index.max() >= size):
        raise ValueError(f"index {index.min()}..{index.max()}: expected 0..{size - 1}")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    out = _feistel(index.astype(np.uint64), half, key)
    outside = out >= size
    while outside.any():
        out[outside] = _feistel(out[outside], half, key)
        outside = out >= size
    return out.astype(np.int64)


def _feistel(x: np.ndarray, half: int, key: int) -> np.ndarray:
    low = np.uint64((1 << half) - 1)
    left, right = x >> np.uint64(half), x & low
    for turn in range(ROUNDS):
        left, right = right, left ^ (mix(right + np.uint64(mix_int(key, turn))) & low)
    return (left << np.uint64(half)) | right

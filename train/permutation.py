"""A shuffle without a list: the i-th element of a random permutation, for any i at once, in constant memory."""

import numpy as np

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


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser on uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def mix_int(*parts: int) -> int:
    """One 64-bit number from several: a seed for each use of a seed."""
    state = 0
    for part in parts:
        state = int(mix(np.array([(state * 0x9E3779B97F4A7C15 + part + 0x9E3779B97F4A7C15) % 2**64], np.uint64))[0])
    return state

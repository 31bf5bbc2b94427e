"""Well-mixed numbers from numbers: seeds from a seed, hashes of rows (SplitMix64, Steele, Lea and Flood 2014)."""

import numpy as np

GAMMA = 0x9E3779B97F4A7C15
"""SplitMix64's step: 2**64 divided by the golden ratio."""


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser on uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def mix_int(*parts: int) -> int:
    """One 64-bit number from several: a seed for each use of a seed."""
    state = 0
    for part in parts:
        state = int(mix(np.array([(state * GAMMA + part + GAMMA) % 2**64], np.uint64))[0])
    return state

"""Keyed permutations without a table: O(1) memory and random access, also among 10^9 samples."""

import numpy as np

_ROUNDS = 4  # make a Feistel network look random (Luby and Rackoff 1988)
_GOLDEN = 0x9E3779B97F4A7C15


def permute(ids: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Permute each id inside range(size); equal keys and sizes are one permutation.

    A balanced Feistel network on the next even power of two, walked until it falls inside the range again.

    Args:
        ids: (P,) int64 in [0, sizes).
        sizes: (P,) int64, length of the range that each id is in.
        keys: (P,) uint64.

    Returns:
        (P,) int64 in [0, sizes).

    """
    num_bits = np.frexp(np.maximum(sizes - 1, 1))[1]  # of the largest id; exact below 2^53
    half = ((num_bits + 1) // 2).astype(np.uint64)
    result, limits = ids.astype(np.uint64), sizes.astype(np.uint64)
    outside = np.arange(len(result))
    while len(outside):
        result[outside] = _feistel(result[outside], keys[outside], half[outside])
        outside = outside[result[outside] >= limits[outside]]
    return result.astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, half: np.ndarray) -> np.ndarray:
    low_bits = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & low_bits
    for number in range(_ROUNDS):
        left, right = right, left ^ (mix(right + keys + key_of(number)) & low_bits)
    joined: np.ndarray = (left << half) | right
    return joined


def key_of(number: int) -> np.uint64:
    """Spread a small number over 64 bits; in Python, because numpy warns when scalars wrap."""
    return np.uint64(number * _GOLDEN % 2**64)


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014), on uint64 arrays; overflow wraps by design."""
    mixed: np.ndarray = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed

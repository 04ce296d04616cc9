"""Order is data: which sample stands at a position, as a pure function. numpy only, memory O(shards).

A position counts samples from the start of the run, over all epochs: position p is sample `permute(p mod N)` of
epoch `p div N`. Nothing else decides it, so no iterator state exists, and none has to be saved.
"""

from dataclasses import dataclass

import numpy as np

_ROUNDS = 6
_MIX = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Order:
    """The order of the samples of some shards.

    Attributes:
        num_samples_per_shard: samples in each shard.
        seed: another seed is another order.

    """

    num_samples_per_shard: tuple[int, ...]
    seed: int

    @property
    def num_samples(self) -> int:
        """N, the samples of one epoch."""
        return sum(self.num_samples_per_shard)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard and index inside the shard at each position, (P,) int64 each, for positions (P,) int64."""
        ids = permute(positions % self.num_samples, positions // self.num_samples, self.num_samples, self.seed)
        ends = np.cumsum(self.num_samples_per_shard)
        shards = np.searchsorted(ends, ids, side="right")
        return shards, ids - (ends - np.asarray(self.num_samples_per_shard))[shards]


def permute(ids: np.ndarray, epochs: np.ndarray, num_samples: int, seed: int) -> np.ndarray:
    """Keyed permutation of range(num_samples), one per epoch, without a table.

    A balanced Feistel network on the next even power of two, walked until it falls inside the range again: O(1)
    memory and random access at 10^9 samples.

    Args:
        ids: (P,) int64 in [0, num_samples).
        epochs: (P,) int64.
        num_samples: length of an epoch.
        seed: of the run.

    Returns:
        (P,) int64 in [0, num_samples).

    """
    half = np.uint64(max(1, -(-(num_samples - 1).bit_length() // 2)))
    keys = _mix(epochs.astype(np.uint64) + _uint64(seed * _MIX))
    result = ids.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        result[outside] = _feistel(result[outside], keys[outside], half)
        outside = result >= np.uint64(num_samples)
    return result.astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, half: np.uint64) -> np.ndarray:
    low_bits = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & low_bits
    for round_number in range(_ROUNDS):
        left, right = right, left ^ (_mix(right + keys + _uint64(round_number * _MIX)) & low_bits)
    joined: np.ndarray = (left << half) | right
    return joined


def _uint64(number: int) -> np.uint64:
    return np.uint64(number % 2**64)  # numpy warns when scalars wrap


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014), on uint64 arrays; overflow wraps by design."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed


def slice_of_rank(step: int, batch: int, micro_batch: int, rank: int, world: int) -> np.ndarray:
    """Positions that one rank handles in one step, as micro batches of one static size.

    Args:
        step: optimizer step, from 0.
        batch: samples per step over all ranks.
        micro_batch: samples per rank and forward.
        rank: process index.
        world: number of processes.

    Returns:
        (M, micro_batch) int64 positions; -1 is padding, a row of weight 0, where batch does not divide.

    """
    num_micro_batches = micro_batches_per_step(batch, micro_batch, world)
    slots = np.full(num_micro_batches * world * micro_batch, -1, dtype=np.int64)
    slots[:batch] = np.arange(step * batch, (step + 1) * batch)
    of_rank: np.ndarray = slots.reshape(world, num_micro_batches, micro_batch)[rank]
    return of_rank


def micro_batches_per_step(batch: int, micro_batch: int, world: int) -> int:
    """Micro batches that each rank runs per optimizer step."""
    return -(-batch // (world * micro_batch))

"""Order is data: which sample stands at a position, as a pure function. numpy only, memory O(shards).

A position counts samples from the start of the run, over all epochs and all data sets. Nothing else decides what stands
there, so no iterator state exists, and none has to be saved.

The samples of a batch are dealt to G groups. A group draws from its own segment of every data set's shards, so that
nodes, which take neighbouring groups, read neighbouring shards and hardly any of each other's. G follows from the batch
alone: ranks, nodes and workers do not change what a batch holds. D is the number of data sets.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sharding.permutation import key_of, mix, permute


@dataclass(frozen=True)
class Mixture:
    """What is drawn from, and in what shares.

    Attributes:
        num_samples_per_shard: per data set, (shards,) int64.
        seed: another seed is another order.
        batch: samples per step.
        cap: samples of a data set per epoch at most, 0 for no limit (US-JEPA section 4.3: 50,000). What one epoch
            leaves out comes first in the next.
        weights: factor on the share of each data set; empty for 1.
        window: samples of a segment that are shuffled among each other before the next ones are touched, 0 for the
            whole segment. A bounded cache of remote shards wants a few shards' worth.
        max_groups: segments that are read side by side at most. Nodes beyond that share them, and each segment has a
            shard of its own in the cache.

    """

    num_samples_per_shard: tuple[np.ndarray, ...]
    seed: int
    batch: int
    cap: int = 0
    weights: tuple[float, ...] = ()
    window: int = 0
    max_groups: int = 64


class Places(NamedTuple):
    """Where samples lie: data set, shard in it, and index in the shard, (P,) int64 each."""

    datasets: np.ndarray
    shards: np.ndarray
    indices: np.ndarray


class Order:
    """Position -> place.

    Args:
        mixture: what is drawn from. Data sets without a sample are never drawn.

    Attributes:
        num_groups: G, the largest divisor of the batch up to max_groups.
        shares: (D,) samples of each data set in one epoch.

    Raises:
        ValueError: there is no sample at all.

    """

    def __init__(self, mixture: Mixture) -> None:
        self._mixture = mixture
        self.num_groups = max(g for g in range(1, mixture.max_groups + 1) if mixture.batch % g == 0)
        sizes = np.array([counts.sum() for counts in mixture.num_samples_per_shard], dtype=np.int64)
        self.shares = _shares(sizes, mixture)
        if not self.num_samples:
            raise ValueError(f"no sample to draw: data sets of {sizes.tolist()} samples, weights {mixture.weights}")
        self._counts = _deal(self.shares, self.num_groups)
        self._starts = _cut(sizes, self.shares, self._counts)
        self._levels = _tree(self._counts)
        self._shuffled = lru_cache(maxsize=2 * len(sizes) + 2)(self._shuffle_shards)

    @property
    def num_samples(self) -> int:
        """Samples of one epoch over all data sets."""
        return int(self.shares.sum())

    def at(self, positions: np.ndarray) -> Places:
        """What stands at positions (P,) int64, each at least 0."""
        epochs, rows = np.divmod(positions, self.num_samples)
        rows, groups = np.divmod(rows, self.num_groups)
        datasets, ranks = self._choose(groups, rows)
        drawn = epochs * self._counts[datasets, groups] + ranks
        starts = self._starts[datasets, groups]
        # a data set whose weight repeats it within an epoch has fewer samples than its segments
        sizes = np.maximum(self._starts[datasets, groups + 1] - starts, 1)
        passes, ids = np.divmod(drawn, sizes)
        keys = mix(mix(mix(_uint64(datasets) + key_of(self._mixture.seed)) + _uint64(passes)) + _uint64(groups))
        ids = starts + _shuffle(ids, sizes, keys, self._mixture.window)
        return Places(datasets, *self._locate(datasets, passes, ids))

    def of_step(self, step: int) -> np.ndarray:
        """Positions of a batch in the order of its rows, (batch,) int64: group by group, for neighbouring ranks."""
        batch = self._mixture.batch
        positions = np.arange(step * batch, (step + 1) * batch)
        ordered: np.ndarray = positions[np.argsort(positions % self.num_samples % self.num_groups, kind="stable")]
        return ordered

    def _choose(self, groups: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Data set of each row of a group, and how many rows of the group before it have the same.

        Data sets are interleaved as evenly as can be, two at a time down a tree: of the first j rows of a pair,
        floor(j a / (a + b)) are of the first. Groups start at different rows, or a batch would be of one data set.
        """
        lengths = self._counts.sum(axis=0)[groups]
        shifts = mix(_uint64(groups) + key_of(self._mixture.seed)) % _uint64(lengths)
        rows = (rows + shifts.astype(np.int64)) % lengths
        nodes = np.zeros_like(rows)
        for level in self._levels:
            whole, first = level.whole[nodes, groups], level.first[nodes, groups]
            before = rows * first // np.maximum(whole, 1)
            is_first = (rows + 1) * first // np.maximum(whole, 1) > before
            rows = np.where(is_first, before, rows - before)
            nodes = 2 * nodes + ~is_first
        return nodes, rows

    def _locate(self, datasets: np.ndarray, passes: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shards, indices = np.empty_like(ids), np.empty_like(ids)
        num_datasets = len(self.shares)
        runs = passes * num_datasets + datasets
        for run in np.unique(runs).tolist():
            mine = np.flatnonzero(runs == run)
            number, dataset = divmod(run, num_datasets)
            order, starts = self._shuffled(dataset, number)
            at = np.searchsorted(starts, ids[mine], side="right") - 1
            shards[mine] = order[at]
            indices[mine] = ids[mine] - starts[at]
        return shards, indices

    def _shuffle_shards(self, dataset: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards in the order of one pass, and where each starts in the pass."""
        counts = self._mixture.num_samples_per_shard[dataset]
        key = mix(mix(_uint64(np.array([dataset])) + key_of(self._mixture.seed)) + _uint64(np.array([number])))
        keys = mix(np.arange(len(counts), dtype=np.uint64) + key)
        # By 32 random bits, 16 at a time: numpy sorts 16 bits by radix, on any processor in a third of a sort's time.
        low, high = ((keys >> np.uint64(shift)).astype(np.uint16) for shift in (0, 16))
        order = np.argsort(low, kind="stable")
        order = order[np.argsort(high[order], kind="stable")]
        lengths = counts[order]
        starts = np.cumsum(lengths)
        starts -= lengths
        return order, starts


class _Level(NamedTuple):
    """One level of the tree over data sets: rows below each node and below its first child, (nodes, G) each."""

    whole: np.ndarray
    first: np.ndarray


def _shares(sizes: np.ndarray, mixture: Mixture) -> np.ndarray:
    """Samples of each data set in an epoch, (D,)."""
    capped = np.minimum(sizes, mixture.cap) if mixture.cap else sizes
    weights = np.array(mixture.weights or [1.0] * len(sizes))
    shares: np.ndarray = np.round(capped * weights).astype(np.int64)
    return shares


def _deal(shares: np.ndarray, num_groups: int) -> np.ndarray:
    """Samples of each data set and group in an epoch, (D, G): row u of all data sets in a line is of group u mod G."""
    ends = np.cumsum(shares)[:, None]
    upto = (ends - np.arange(num_groups) + num_groups - 1) // num_groups  # rows of a group among the first `ends`
    return np.diff(np.maximum(upto, 0), axis=0, prepend=0)


def _cut(sizes: np.ndarray, shares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Where the segment of each group starts in each data set, (D, G + 1).

    In proportion to what the group draws, so that all segments are gone through after ceil(size / share) epochs.
    """
    drawn = np.pad(np.cumsum(counts, axis=1), ((0, 0), (1, 0)))
    rows = zip(sizes.tolist(), shares.tolist(), drawn.tolist(), strict=True)
    return np.array([[size * number // max(share, 1) for number in row] for size, share, row in rows])


def _tree(counts: np.ndarray) -> list[_Level]:
    """Levels from the root down; a leaf is a data set."""
    levels = []
    while len(counts) > 1:
        even = np.pad(counts, ((0, len(counts) % 2), (0, 0)))
        counts = even[0::2] + even[1::2]
        levels.append(_Level(counts, even[0::2]))
    return levels[::-1]


def _shuffle(ids: np.ndarray, sizes: np.ndarray, keys: np.ndarray, window: int) -> np.ndarray:
    """Permute ids (P,) of range(sizes) (P,), inside windows when there are any."""
    if not window:
        return permute(ids, sizes, keys)
    windows, places = np.divmod(ids, window)
    lengths = np.minimum(sizes - windows * window, window)
    shuffled: np.ndarray = windows * window + permute(places, lengths, mix(keys + _uint64(windows)))
    return shuffled


def _uint64(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.uint64)


def slice_of_rank(positions: np.ndarray, micro_batch: int, rank: int, world: int) -> np.ndarray:
    """The part of a batch that one rank handles, as micro batches of one static size.

    Args:
        positions: (batch,) int64, of the whole batch.
        micro_batch: samples per rank and forward.
        rank: process index.
        world: number of processes.

    Returns:
        (M, micro_batch) int64 positions; -1 is padding, a row of weight 0, where the batch does not divide.

    """
    num_micro_batches = micro_batches_per_step(len(positions), micro_batch, world)
    slots = np.full(num_micro_batches * world * micro_batch, -1, dtype=np.int64)
    slots[: len(positions)] = positions
    of_rank: np.ndarray = slots.reshape(world, num_micro_batches, micro_batch)[rank]
    return of_rank


def micro_batches_per_step(batch: int, micro_batch: int, world: int) -> int:
    """Micro batches that each rank runs per optimizer step."""
    return -(-batch // (world * micro_batch))

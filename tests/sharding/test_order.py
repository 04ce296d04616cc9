"""Order: exact passes, caps and shares for any mixture, the same batches for any topology, few bytes per node."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.order import Mixture, Order, micro_batches_per_step, slice_of_rank
from sharding.permutation import permute

MIXTURES = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=8), min_size=1, max_size=6).filter(
    lambda sizes: sum(map(sum, sizes)) > 0
)


def order_of(sizes: list[list[int]], **settings: object) -> Order:
    counts = tuple(np.array(counts) for counts in sizes)
    return Order(Mixture(counts, **({"seed": 5, "batch": 8} | settings)))  # type: ignore[arg-type]


def ids_of(order: Order, positions: np.ndarray, sizes: list[list[int]]) -> list[np.ndarray]:
    """Number of each sample in its data set, per data set, in the order of positions."""
    places = order.at(positions)
    found = []
    for dataset, counts in enumerate(sizes):
        mine = places.datasets == dataset
        shards, indices = places.shards[mine], places.indices[mine]
        assert (indices >= 0).all()
        assert (indices < np.array(counts)[shards]).all()
        found.append((np.cumsum(counts) - counts)[shards] + indices)
    return found


def epoch(order: Order, number: int) -> np.ndarray:
    return np.arange(number * order.num_samples, (number + 1) * order.num_samples)


@given(num=st.integers(1, 700), key=st.integers(0, 2**64 - 1))
def test_a_permutation_hits_every_id_once(num: int, key: int) -> None:
    ids = permute(np.arange(num), np.full(num, num), np.full(num, key, np.uint64))
    assert sorted(ids) == list(range(num))


@given(sizes=MIXTURES, batch=st.integers(1, 97), seed=st.integers(0, 2**40), window=st.sampled_from([0, 1, 5, 16]))
def test_an_epoch_without_cap_draws_every_sample_once(
    sizes: list[list[int]], batch: int, seed: int, window: int
) -> None:
    order = order_of(sizes, batch=batch, seed=seed, window=window)
    for number in (0, 3):
        for ids, counts in zip(ids_of(order, epoch(order, number), sizes), sizes, strict=True):
            assert sorted(ids) == list(range(sum(counts)))


@given(sizes=MIXTURES, batch=st.integers(1, 97), cap=st.integers(5, 60))
def test_caps_are_exact_and_epochs_rotate_through_everything(sizes: list[list[int]], batch: int, cap: int) -> None:
    order = order_of(sizes, batch=batch, cap=cap)
    largest = max(map(sum, sizes))
    drawn = ids_of(order, np.arange(-(-largest // cap) * order.num_samples), sizes)
    for ids, size in zip(drawn, map(sum, sizes), strict=True):
        of_epoch = ids.reshape(-1, min(size, cap))[: -(-size // cap)] if size else ids[None]
        assert (np.bincount(of_epoch.ravel(), minlength=size) <= 2).all()  # a pass may end inside an epoch
        assert set(of_epoch.ravel()) == set(range(size))


@given(sizes=MIXTURES, weights=st.lists(st.sampled_from([0.0, 0.4, 1.0, 7.0]), min_size=6, max_size=6))
def test_weights_are_shares(sizes: list[list[int]], weights: list[float]) -> None:
    weights = weights[: len(sizes)]
    totals = [sum(counts) for counts in sizes]
    wanted = [round(total * weight) for total, weight in zip(totals, weights, strict=True)]
    if not sum(wanted):
        with pytest.raises(ValueError, match="no sample to draw"):
            order_of(sizes, weights=tuple(weights))
        return
    order = order_of(sizes, weights=tuple(weights))
    assert [len(ids) for ids in ids_of(order, epoch(order, 1), sizes)] == wanted


@given(sizes=MIXTURES, step=st.integers(0, 50), batch=st.sampled_from([1, 8, 12, 64, 97]))
def test_any_part_of_the_stream_is_the_stream(sizes: list[list[int]], step: int, batch: int) -> None:
    """A batch asked for alone, in any order, is what a run from step 0 gets there."""
    order = order_of(sizes, batch=batch, cap=20)
    whole = order.at(np.arange(51 * batch))
    positions = order.of_step(step)
    assert sorted(positions) == list(range(step * batch, (step + 1) * batch))
    for alone, all_of_it in zip(order.at(positions), whole, strict=True):
        assert (alone == all_of_it[positions]).all()


def test_two_epochs_and_two_seeds_differ() -> None:
    sizes = [[100, 200, 200]]
    first = ids_of(order_of(sizes), np.arange(500), sizes)[0]
    assert (first != ids_of(order_of(sizes), np.arange(500, 1000), sizes)[0]).mean() > 0.9
    assert (first != ids_of(order_of(sizes, seed=6), np.arange(500), sizes)[0]).mean() > 0.9
    assert abs(np.corrcoef(first, np.arange(500))[0, 1]) < 0.12


@given(
    step=st.integers(0, 1000),
    batch=st.integers(1, 64),
    micro_batch=st.integers(1, 20),
    world=st.integers(1, 16),
)
def test_ranks_share_a_global_batch_without_loss_or_duplicate(
    step: int, batch: int, micro_batch: int, world: int
) -> None:
    batch_positions = order_of([[500]], batch=batch).of_step(step)
    slices = [slice_of_rank(batch_positions, micro_batch, rank, world) for rank in range(world)]
    assert {part.shape for part in slices} == {(micro_batches_per_step(batch, micro_batch, world), micro_batch)}
    positions = np.concatenate([part.ravel() for part in slices])
    assert positions[positions >= 0].tolist() == batch_positions.tolist()


@given(
    num_nodes=st.integers(2, 8),
    shares=st.lists(st.integers(1, 400), min_size=1, max_size=3),
    window=st.sampled_from([0, 100]),
)
@settings(max_examples=12, deadline=None)
def test_a_node_reads_its_share_of_the_bytes(num_nodes: int, shares: list[int], window: int) -> None:
    """Of large data sets: at most 1/N and 5 % more of the shards' bytes are touched by any node in a pass."""
    sizes = [[1000 + share] * 100 for share in shares]
    order = order_of(sizes, batch=num_nodes * 64, window=window)
    for number in (0, 1):
        steps = range(
            -(-order.num_samples * number // (num_nodes * 64)), order.num_samples * (number + 1) // (num_nodes * 64)
        )
        positions = np.concatenate([order.of_step(step).reshape(num_nodes, 64) for step in steps], axis=1)
        for of_node in positions:
            places = order.at(of_node)
            touched = np.unique(np.stack([places.datasets, places.shards]), axis=1)
            read = sum(sizes[dataset][shard] for dataset, shard in touched.T)
            assert read / order.num_samples <= 1 / num_nodes + 0.05


def test_a_batch_is_mixed_over_data_sets() -> None:
    """In proportion, within what chance would give."""
    sizes = [[3000], [1000], [500]]
    order = order_of(sizes, batch=90)
    counts = np.array([np.bincount(order.at(order.of_step(step)).datasets, minlength=3) for step in range(50)])
    assert np.abs(counts.mean(axis=0) - [60, 20, 10]).max() < 1
    assert counts.std(axis=0).max() < np.sqrt(90 * 2 / 9)


def test_a_billion_samples_need_no_table() -> None:
    counts = np.full(10**6, 1000)
    tracemalloc.start()
    started = time.process_time()
    order = Order(Mixture((counts,), 1, 4096))
    order.at(order.of_step(123_456))
    assert time.process_time() - started < 10
    assert tracemalloc.get_traced_memory()[1] < 2**30
    tracemalloc.stop()

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.order import Order, micro_batches_per_step, permute, slice_of_rank


@given(num=st.integers(1, 700), epoch=st.integers(0, 5), seed=st.integers(0, 2**40))
def test_every_sample_stands_at_one_position_of_an_epoch(num: int, epoch: int, seed: int) -> None:
    ids = permute(np.arange(num), np.full(num, epoch), num, seed)
    assert sorted(ids) == list(range(num))


def test_epochs_and_seeds_differ() -> None:
    ids = np.arange(500)
    first = permute(ids, np.zeros(500, int), 500, seed=1)
    assert (first != permute(ids, np.ones(500, int), 500, seed=1)).mean() > 0.9
    assert (first != permute(ids, np.zeros(500, int), 500, seed=2)).mean() > 0.9


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_a_pass_reads_every_sample_of_every_shard_once(sizes: list[int], seed: int) -> None:
    order = Order(tuple(sizes), seed)
    shards, indices = order.at(np.arange(order.num_samples) + 3 * order.num_samples)
    assert sorted(zip(shards.tolist(), indices.tolist(), strict=True)) == [
        (shard, index) for shard, size in enumerate(sizes) for index in range(size)
    ]


@given(
    step=st.integers(0, 1000),
    batch=st.integers(1, 64),
    micro_batch=st.integers(1, 20),
    world=st.sampled_from([1, 2, 3, 4, 5, 7, 8, 16]),
)
def test_ranks_share_a_global_batch_without_loss_or_duplicate(
    step: int, batch: int, micro_batch: int, world: int
) -> None:
    slices = [slice_of_rank(step, batch, micro_batch, rank, world) for rank in range(world)]
    assert {part.shape for part in slices} == {(micro_batches_per_step(batch, micro_batch, world), micro_batch)}
    positions = np.concatenate([part.ravel() for part in slices])
    assert positions[positions >= 0].tolist() == list(range(step * batch, (step + 1) * batch))


def test_random_access_costs_no_table() -> None:
    order = Order((10**6,) * 1000, seed=0)
    shards, indices = order.at(np.array([0, 10**9 - 1, 123_456_789_012]))
    assert shards.max() < 1000
    assert indices.max() < 10**6


def test_one_sample_is_a_whole_epoch() -> None:
    assert Order((1,), seed=3).at(np.arange(4))[1].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("seed", [0, 1])
def test_order_is_mixed(seed: int) -> None:
    ids = permute(np.arange(1000), np.zeros(1000, int), 1000, seed)
    assert abs(np.corrcoef(ids, np.arange(1000))[0, 1]) < 0.12

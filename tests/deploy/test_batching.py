"""The batching thread: everyone gets their own rows, batches stay within bounds, a failure is not the last word."""

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from deploy.batching import Batcher, EncoderGoneError, PassFailedError

Forwarded = tuple[torch.Tensor, torch.Tensor]


def forward(squares: np.ndarray) -> Forwarded:
    """The first pixel as the vector, and as patches."""
    first = torch.from_numpy(squares[:, 0, 0, :1].astype(np.float32))
    return first, first[:, None].repeat(1, 4, 1)


def squares(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)


@pytest.fixture
def sizes() -> list[int]:
    return []


@pytest.fixture
def batcher(sizes: list[int]) -> Iterator[Batcher]:
    one = Batcher(forward, max_batch=8, max_wait=0.05, observe=sizes.append)
    yield one
    one.close()
    assert not one.is_alive


async def ask(batcher: Batcher, *counts: int) -> list[np.ndarray]:
    starts = np.cumsum([0, *counts])
    jobs = [batcher.encode(squares(int(start), count)) for start, count in zip(starts, counts, strict=False)]
    return [encoded.vectors for encoded in await asyncio.gather(*jobs)]


@pytest.mark.parametrize("counts", [(1,) * 20, (3, 7, 2, 8, 1), (30, 1, 9), (8, 8)])
def test_everyone_gets_their_own_rows_in_batches_that_are_full(
    counts: tuple[int, ...], batcher: Batcher, sizes: list[int]
) -> None:
    found = asyncio.run(ask(batcher, *counts))
    assert [len(rows) for rows in found] == list(counts)
    assert np.concatenate(found).ravel().tolist() == list(range(sum(counts)))
    assert sum(sizes) == sum(counts)
    assert max(sizes) <= 8
    assert len(sizes) <= 2 * -(-sum(counts) // 8)


def test_patches_are_those_of_the_wanted_row(batcher: Batcher) -> None:
    for wanted in (0, 7, 8, 19):
        encoded = asyncio.run(batcher.encode(squares(0, 20), wanted))
        assert encoded.patches is not None
        assert encoded.patches.shape == (4, 1)
        assert (encoded.patches == wanted).all()
    assert asyncio.run(batcher.encode(squares(0, 2))).patches is None


@pytest.mark.parametrize("error", [RuntimeError("x"), AssertionError("x"), TypeError("x"), KeyError("x"), OSError("x")])
def test_a_pass_that_fails_costs_its_batch_alone(error: Exception) -> None:
    def fail_on_nine(batch: np.ndarray) -> Forwarded:
        if (batch == 9).any():
            raise error
        return forward(batch)

    batcher = Batcher(fail_on_nine, max_batch=4, max_wait=0)
    with pytest.raises(PassFailedError, match=f"^{type(error).__name__}$") as failed:
        asyncio.run(asyncio.wait_for(batcher.encode(squares(9, 1)), 30))
    assert failed.value.__cause__ is error
    assert asyncio.run(batcher.encode(squares(3, 1))).vectors.tolist() == [[3.0]]
    batcher.close()


def test_a_batcher_that_is_closed_answers_nobody(batcher: Batcher) -> None:
    batcher.close()
    with pytest.raises(EncoderGoneError):
        asyncio.run(batcher.encode(squares(1, 1)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_all_who_wait_for_a_thread_that_ends_are_told() -> None:
    """One is in its hands, one was held back, and one still waits."""
    is_full = threading.Event()

    def end(_: np.ndarray) -> Forwarded:
        assert is_full.wait(60)
        raise SystemExit

    async def all_of(batcher: Batcher) -> list[object]:
        jobs = [asyncio.create_task(batcher.encode(squares(0, 3))) for _ in range(4)]
        await asyncio.sleep(0)  # until each has put its frames into the queue
        is_full.set()
        return list(await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 30))

    found = asyncio.run(all_of(Batcher(end, max_batch=4, max_wait=0.01)))
    assert [type(one) for one in found] == [EncoderGoneError] * 4


def test_who_no_longer_waits_is_left_out() -> None:
    async def give_up(batcher: Batcher) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.encode(squares(1, 1)), 0.01)
        assert (await batcher.encode(squares(2, 1))).vectors.tolist() == [[2.0]]

    batcher = Batcher(forward, max_batch=4, max_wait=0.2)
    asyncio.run(give_up(batcher))
    batcher.close()

"""Pixels that cross from one process to another without a copy."""

import os
import pickle
import signal
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from sharding.handover import Outbox


def _hand_over(pipe: Connection) -> None:
    outbox = Outbox()
    for number in range(5):
        shared = outbox.zeros(2, 3, 4)
        shared.pixels += number
        pipe.send(shared)
        pipe.recv()


def test_what_arrives_is_what_was_sent_and_outlives_its_maker() -> None:
    context = get_context("forkserver")
    mine, theirs = context.Pipe()
    maker = context.Process(target=_hand_over, args=(theirs,))
    maker.start()
    arrived = []
    for _ in range(5):
        arrived.append(mine.recv())
        mine.send("go on")
    maker.join()
    for number, pixels in enumerate(arrived):
        assert torch.equal(pixels, torch.full((2, 3, 4), number, dtype=torch.uint8))


def test_both_sides_see_the_same_memory() -> None:
    outbox = Outbox()
    shared = outbox.zeros(2, 2)
    arrived = pickle.loads(pickle.dumps(shared))
    shared.pixels[1, 1] = 7
    assert arrived.tolist() == [[0, 0], [0, 7]]


def test_a_maker_that_stands_still_still_hands_over_and_a_dead_one_is_an_error() -> None:
    context = get_context("forkserver")
    mine, theirs = context.Pipe()
    maker = context.Process(target=_hand_over, args=(theirs,))
    maker.start()
    message = mine.recv_bytes()
    os.kill(maker.pid or 0, signal.SIGSTOP)
    assert pickle.loads(message).shape == (2, 3, 4)
    os.kill(maker.pid or 0, signal.SIGKILL)
    maker.join()
    with pytest.raises(FileNotFoundError):
        pickle.loads(message)


def test_the_last_few_stay_open_and_older_ones_are_closed() -> None:
    outbox = Outbox()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        outbox.zeros(8)
    assert len(list(Path("/proc/self/fd").iterdir())) - before == 2 * 4  # of each, a descriptor and the map's own

"""Fixtures of more than one file here."""

import os
from collections.abc import Iterator

import pytest
from torch import distributed

from train.engine import start_distributed

LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(scope="session")
def group() -> Iterator[dict[str, str]]:
    """A process group of one: DeepSpeed remembers its groups, so a process cannot have a second. Gives what it set."""
    before = {name: os.environ.pop(name) for name in LAUNCH if name in os.environ}
    start_distributed()
    made = {name: os.environ.pop(name) for name in LAUNCH}
    os.environ.update(before)
    yield made
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def alone(group: dict[str, str]) -> Iterator[None]:
    """The environment of the process group; not for longer, or later subprocesses would try to join."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in group.items():
            patch.setenv(name, value)
        yield

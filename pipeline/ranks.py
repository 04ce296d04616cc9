"""A process group as training makes it, tried by real processes on this host, against the clock."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from typing import IO

import torch

from pipeline.rank import LOST
from train.command import MENDABLE

_SECONDS = 300  # a cold import of torch over a network file system, and the first build of DeepSpeed's operation
_GRACE = 5.0  # for the others, when one has failed
_POLL = 0.05
_MOST_ON_CPU = 8
_PROGRAM = ("-m", "pipeline.rank")
_ADVICE = "set NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME to an interface that exists (`ip link`)"


class GroupError(Exception):
    """The ranks could not work together; says why."""


def ranks_here(num_ranks: int) -> int:
    """How many ranks of a run this host can try: one per GPU; without GPUs a few processes."""
    return max(1, min(num_ranks, torch.cuda.device_count() if torch.cuda.is_available() else _MOST_ON_CPU))


def try_group(num_ranks: int, seconds: float = _SECONDS, program: tuple[str, ...] = _PROGRAM) -> str:
    """Join, add up and pass a word on, in `num_ranks` processes.

    Args:
        num_ranks: each with a GPU of its own where there are any.
        seconds: that it may take.
        program: arguments of Python for each rank.

    Returns:
        the backends.

    Raises:
        GroupError: the first cause, or that it takes too long.

    """
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2 * num_ranks)]
        port = _free_port()
        processes = [
            subprocess.Popen(
                [sys.executable, *program], env=_environment(rank, num_ranks, port),
                stdout=outputs[2 * rank], stderr=outputs[2 * rank + 1],
            )
            for rank in range(num_ranks)
        ]  # fmt: skip
        try:
            codes = _codes_of(processes, seconds)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if any(codes):
            raise GroupError(_cause(codes, [_text(error) for error in outputs[1::2]]))
        if None in codes:
            raise GroupError(f"not there after {seconds:g} s; {_ADVICE}")
        return _text(outputs[0]).strip().splitlines()[-1]


def _codes_of(processes: list["subprocess.Popen[bytes]"], seconds: float) -> list[int | None]:
    """Exit codes when all have ended, time is over, or one has failed and the others had time to say why."""
    deadline = time.monotonic() + seconds
    while None in (codes := [process.poll() for process in processes]) and time.monotonic() < deadline:
        if any(codes):
            deadline = min(deadline, time.monotonic() + _GRACE)
        time.sleep(_POLL)
    return codes


def _cause(codes: list[int | None], errors: list[str]) -> str:
    """The message of the first rank that failed by itself, else of one that lost another."""
    failed = [rank for rank, code in enumerate(codes) if code]
    rank = next((rank for rank in failed if codes[rank] != LOST), failed[0])
    message = (errors[rank].strip().splitlines() or ["no message"])[-1]
    is_mendable = codes[rank] == MENDABLE  # its message says what to do
    return f"{message} (rank {rank} of {len(codes)}, exit code {codes[rank]})" + ("" if is_mendable else f"; {_ADVICE}")


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _environment(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    return os.environ | {name: str(value) for name, value in place.items()} | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)
    }  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""`us-jepa doctor --ranks N` tries a real group of real processes, and names what is wrong with it."""

import re

import pytest

from pipeline import deployment
from pipeline.deployment import Line, check_process_group
from pipeline.ranks import GroupError, try_group
from tests.conftest import run_command

# What the second of two ranks does before or instead of what it should.
RANK_1 = """
import os, runpy, sys
if os.environ["RANK"] == "1":
    {}
runpy.run_module("pipeline.rank", run_name="__main__")
"""


@pytest.mark.launch
def test_doctor_tries_a_group_of_two(tmp_path: object) -> None:
    done = run_command("us-jepa", "doctor", "--ranks", "2", "--folder", str(tmp_path))
    found = re.search(r"^ok   process group of 2 ranks: (\S+) on .*, [\d.]+ s$", done.stdout, re.MULTILINE)
    assert found, done.stdout + done.stderr
    assert "gloo" in found[1]


@pytest.mark.launch
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("sys.exit('no driver')", r"^no driver \(rank 1 of 2, exit code 1\); set NCCL_SOCKET_IFNAME or GLOO_SOCKET_"),
        ("from torch import distributed as d; add = d.all_reduce; d.all_reduce = lambda one: (add(one), one.zero_())",
         r"^rank 1: the sum of 2 ones is 0 \(rank \d of 2, exit code 2\)$"),
        ("from torch import distributed as d; d.all_reduce = lambda _: os._exit(9)",
         r"^no message \(rank 1 of 2, exit code 9\)"),
    ],
)  # fmt: skip
def test_the_rank_that_fails_by_itself_is_named(fault: str, message: str) -> None:
    with pytest.raises(GroupError, match=message):
        try_group(2, 200, ("-c", RANK_1.format(fault)))


def test_a_group_that_is_not_there_is_ended_in_time() -> None:
    with pytest.raises(GroupError, match=r"not there after 0\.3 s; set NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME to an"):
        try_group(2, 0.3, ("-c", "import signal; signal.pause()"))


def test_a_host_tries_as_many_ranks_as_it_has_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    monkeypatch.setattr(deployment, "try_group", lambda num: tried.append(num) or "gloo on CPU")
    assert check_process_group(1).text.startswith("process group of 1 rank: gloo on CPU, ")
    assert check_process_group(64).text.startswith(
        "process group of 8 ranks (of 64, as many as are tried on this host)"
    )
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert check_process_group(64).text.startswith(
        "process group of 4 ranks (of 64, as many as are tried on this host)"
    )
    assert tried == [1, 8, 4]


def test_the_cause_is_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> str:
        raise GroupError("rank 1: no interface eth7")

    monkeypatch.setattr(deployment, "try_group", fail)
    assert check_process_group(2) == Line("fail", "process group of 2 ranks: rank 1: no interface eth7")

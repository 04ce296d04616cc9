"""`deepspeed --hostfile` over ssh between two hosts, and what is left when the cable between them is pulled."""

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from tests.deploy.two_hosts import ADDRESSES, TwoHosts, missing
from tests.train.tiny import SCRIPT, free_port, losses, start, write_config
from train.engine import is_lost_rank
from train.run import LostRankError

STEPS, SAVED = 400, 5
TIMEOUT = 1  # minutes
_DEEPSPEED = str(Path(sys.executable).parent / "deepspeed")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[TwoHosts]:
    if reason := missing():
        pytest.skip(reason)
    made = TwoHosts(tmp_path)
    try:
        yield made
    finally:
        made.close()


def commands_on(hosts: TwoHosts, host: int) -> list[str]:
    """Of launcher and rank, where they still run."""
    lines = []
    for pid in hosts.pids(host):
        with suppress(psutil.NoSuchProcess):
            lines.append(" ".join(psutil.Process(pid).cmdline()))
    return [line for line in lines if "pretrain.py" in line]


@pytest.mark.slow
def test_a_cut_cable_ends_both_hosts_and_the_same_command_goes_on(
    hosts: TwoHosts, shards: Path, tmp_path: Path
) -> None:
    # deepspeed hands these to every host
    settings = {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1", "DEEPSPEED_TIMEOUT": str(TIMEOUT)}
    (tmp_path / ".deepspeed_env").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    run_dir = tmp_path / "run"
    config = write_config(tmp_path, "run", shards, f"optim.steps={STEPS}", f"run.save_every={SAVED}")
    words = ["--hostfile", str(tmp_path / "hosts"), "--master_port", free_port(), str(SCRIPT), "--config", str(config)]
    process = start(hosts.command(_DEEPSPEED, *words))
    deadline = time.monotonic() + 300
    while not list((run_dir / "checkpoints").glob("step-*.safetensors")):
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)

    hosts.cut()
    began = time.monotonic()
    said = process.communicate(timeout=60 * TIMEOUT + 120)[0]
    assert process.returncode not in (0, 2, 75), said[-3000:]
    while left := commands_on(hosts, 1):  # sshd keeps what it has started for longer, and that is its own affair
        assert time.monotonic() < began + 60 * TIMEOUT + 120, left
        time.sleep(0.5)
    print(f"\nboth ended {time.monotonic() - began:.0f} s after the cut; the timeout is {60 * TIMEOUT} s")
    assert said.count(f"{ADDRESSES[0]}: pretrain: rank 0: has lost another rank") == 1, said[-3000:]
    assert "Traceback" not in said
    done = len(losses(run_dir))
    assert SAVED <= done < STEPS

    hosts.mend()
    steps = f"optim.steps={STEPS}"
    process = start(hosts.command(_DEEPSPEED, *words, steps))
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said[-3000:]
    assert len(losses(run_dir)) == STEPS
    assert (run_dir / "encoder" / "model.safetensors").exists()


def test_only_errors_of_the_network_are_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer\nmore")
    assert is_lost_rank(gone)
    assert is_lost_rank(torch.distributed.DistBackendError("NCCL: remote process exited"))
    assert not is_lost_rank(RuntimeError("CUDA out of memory"))
    monkeypatch.setenv("RANK", "3")
    said = str(LostRankError(gone))
    assert said.startswith(
        "rank 3: has lost another rank ([/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Co"
    )
    assert said.endswith("The same command goes on from the last checkpoint")
    assert "\n" not in said

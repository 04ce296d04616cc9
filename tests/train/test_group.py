"""Ranks on GPUs, as far as a CPU can show it, and what ranks must have in common."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from torch import distributed

from sharding.recording import InputError
from tests.train.tiny import STEPS, checkpoint, environment, free_port, losses, write_config
from train.engine import is_lost_rank, on_rank_0, start_distributed
from train.tensor_file import write_tensors

ALL_SEEN = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_JOB_ID": "4711",
            "SLURM_STEP_ID": "0", "SLURM_JOB_NODELIST": "node1", "SLURM_TASKS_PER_NODE": "2"}  # fmt: skip
LAUNCHED = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
LAUNCHERS = {
    "deepspeed": (LAUNCHED | {"LOCAL_SIZE": "2", "CROSS_RANK": "0"}, 2, 1),
    "torchrun": (LAUNCHED | {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}, 2, 1),
    "second host": (LAUNCHED | {"RANK": "9", "WORLD_SIZE": "16"}, 8, 1),
    "Slurm, all GPUs visible": (ALL_SEEN, 8, 1),
    "Slurm, one GPU visible": (ALL_SEEN, 1, 0),
    "one process in a pod": ({key: value for key, value in LAUNCHED.items() if key != "LOCAL_RANK"}, 1, 0),
    "nobody": ({}, 1, 0),
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, Any]]:
    """What is called, in its order, where torch sees GPUs: the device that is set, and all that ranks send."""
    seen: list[tuple[str, Any]] = []

    def record(name: str, about: Callable[..., Any]) -> Callable[..., None]:
        return lambda *args, **kwargs: seen.append((name, about(*args, **kwargs)))

    (tmp_path / "scontrol").write_text("#!/bin/sh\necho 127.0.0.1\n")
    (tmp_path / "scontrol").chmod(0o755)
    kept = {name: value for name, value in environment().items() if name not in ("CROSS_RANK", "TORCHELASTIC_RUN_ID")}
    monkeypatch.setattr(os, "environ", kept | {"PATH": f"{tmp_path}:{kept['PATH']}"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", record("set_device", int))
    monkeypatch.setattr(deepspeed, "init_distributed", record("join", lambda **how: how["dist_backend"]))
    for name in ("all_reduce", "all_gather", "broadcast", "barrier", "all_gather_object"):
        monkeypatch.setattr(distributed, name, record(name, lambda *_, **__: None))
    monkeypatch.setattr(
        distributed, "broadcast_object_list", record("broadcast_object_list", lambda *_, **how: str(how.get("device")))
    )
    monkeypatch.setattr(distributed, "get_rank", lambda: int(os.environ["RANK"]))
    monkeypatch.setattr(distributed, "get_world_size", lambda: int(os.environ["WORLD_SIZE"]))
    return seen


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_rank_takes_its_gpu_before_anything_is_sent(
    launcher: str, calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    said, num_gpus, device = LAUNCHERS[launcher]
    os.environ.update(said)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    start_distributed()
    on_rank_0(lambda: None)
    assert calls == [("set_device", device), ("join", "cpu:gloo,cuda:nccl"), ("broadcast_object_list", "cpu")]
    assert os.environ["LOCAL_RANK"] == str(device)  # what DeepSpeed goes by


def test_more_processes_than_gpus_are_refused(calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    os.environ.update(LAUNCHED | {"LOCAL_RANK": "3"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"rank 1: is number 3 of its host, counted from 0, and sees 2 GPUs; start as"):
        start_distributed()
    assert not calls


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (distributed.DistBackendError("NCCL error in: x.cpp:1, remote process exited or there was a network error"), 1),
        (distributed.DistBackendError("ncclRemoteError: A call failed possibly due to a network error"), 1),
        (distributed.DistBackendError("NCCL communicator was aborted on rank 1."), 1),
        (distributed.DistBackendError("Last error:\nsocketStartConnect: 10.0.0.2<3> failed : Connection refused"), 1),
        (distributed.DistBackendError("Watchdog caught collective operation timeout: WorkNCCL ran for 600010 ms"), 1),
        (distributed.DistNetworkError("failed to recv, got 0 bytes. Connection was likely closed."), 1),
        (distributed.DistStoreError("wait timeout after 600000ms, keys: /default_pg/0//cpu//0/1"), 1),
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), 1),
        (RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 600000ms for recv operation"), 1),
        (distributed.DistBackendError("Attempt to perform collective on tensor not on device passed to init"), 0),
        (distributed.DistBackendError("invalid usage. Duplicate GPU detected : rank 1 and rank 0 both on one"), 0),
        (distributed.DistBackendError("NCCL error: unhandled cuda error. Cuda failure 2 'out of memory'"), 0),
        (distributed.DistNetworkError("The server socket has failed to listen: EADDRINUSE"), 0),
        (RuntimeError("[enforce fail at gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4"), 0),
        (RuntimeError("[gloo/transport/tcp/device.cc:84] ifa != nullptr. Unable to find address for: eth7"), 0),
        (RuntimeError("CUDA out of memory"), 0),
        (RuntimeError("rank 0: a decoding process died or stopped (DataLoader timed out after 600 seconds)"), 0),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_only_a_lost_rank_is_said_to_be_lost(error: RuntimeError, is_lost: int) -> None:
    assert is_lost_rank(error) == bool(is_lost)


def test_ranks_that_do_not_meet_are_told_where() -> None:
    """In a process of its own: a process can have one group."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.rank"], env=environment(**place), capture_output=True, text=True,
            check=False, timeout=200,
        )  # fmt: skip
    assert done.returncode == 2, done.stderr[-2000:]
    assert f"rank 0: has not met the other ranks at 127.0.0.1:{port} (" in done.stderr
    assert "Traceback" not in done.stderr


def two_ranks(program: str, *words: str) -> list[list[str]]:
    """What two ranks print after `=`, without a launcher: nothing ends one for the other's sake."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "LOCAL_RANK": "0"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, *words], env=environment(**place, RANK=str(rank)), stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=250)[0].splitlines() for process in started]
        return [[line.removeprefix("= ") for line in lines if line.startswith("= ")] for lines in printed]
    finally:
        for process in started:
            process.kill()


AGREE = """
import json, sys
from pathlib import Path
from sharding.recording import InputError
from train.agreement import agreed_checkpoint
from train.config_file import load_config
from train.data import find_sets
from train.engine import start_distributed
rank, _ = start_distributed()
for case in json.loads(sys.argv[2]):
    cfg = load_config(Path(sys.argv[1]), case[rank])
    try:
        checkpoint = agreed_checkpoint(cfg, find_sets(cfg))
        print("= agreed on", checkpoint and checkpoint.step)
    except InputError as error:
        print("=", str(error).replace(f"run {cfg.run.dir}:", "run RUN:"))
"""


def test_ranks_that_would_start_from_different_places_end_with_one_sentence(shards: Path, tmp_path: Path) -> None:
    """As on hosts that do not share run.dir: each has a folder of that name."""
    config, host = write_config(tmp_path, "run", shards), socket.gethostname()
    for name, step in (("at40", 40), ("at20", 20), ("also40", 40), ("cut", 20)):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        path = tmp_path / name / "checkpoints" / f"step-{step:08d}.safetensors"
        write_tensors({"weights.x": torch.zeros(9)}, path, {})
    os.truncate(tmp_path / "cut" / "checkpoints" / "step-00000020.safetensors", 50)

    def run_dir(name: str) -> list[str]:
        return [f"run.dir={tmp_path / name}"]

    cases = [
        (run_dir("at40"), run_dir("at20")),
        (run_dir("none"), run_dir("at20")),
        (run_dir("at20"), run_dir("cut")),
        ([], ["optim.lr=2e-3"]),
        ([], [f"data.shards=[{shards}, {shards}]"]),
        (run_dir("none"), run_dir("nothing")),
        (run_dir("at40"), run_dir("also40")),
    ]
    first, second = two_ranks(AGREE, str(config), json.dumps(cases))
    assert first == second
    assert (
        f"is of step 40 on rank 0 ({host}), and of step 20 on rank 1 ({host}); run.dir must be one folder" in first[0]
    )
    assert f"is none on rank 0 ({host}), and of step 20 on rank 1 ({host}); run.dir must be one folder that" in first[1]
    assert "step-00000020.safetensors: is damaged (" in first[2]
    assert first[3].startswith("config: sha256 is ")
    assert first[3].endswith("; give all hosts the same config")
    assert first[4].startswith("data.shards: sha256 is ")
    assert first[4].endswith("; give all hosts the same data")
    assert first[5:] == ["agreed on None", "agreed on 40"]


WAIT = """
import time
from threading import Event
from sharding.recording import InputError
from train import engine
engine._SIGN_OF_LIFE = 0.1
rank, _ = engine.start_distributed()
engine.distributed.distributed_c10d._set_pg_timeout(engine.default_pg_timeout.__class__(seconds=1))
stop = Event()
for act in (lambda: time.sleep(2.5), lambda: 1 / 0 if rank else stop.set() or time.sleep(600)):
    print("=", engine.wait_for_rank_0(act, stop))
def refuse():
    raise InputError("run.copy_to: is not up to date")
try:
    engine.wait_for_rank_0(refuse, Event())
except InputError as error:
    print("=", error)
"""


def test_the_others_wait_for_what_takes_longer_than_a_lost_rank() -> None:
    """The group gives up after a second; rank 0 takes two and a half, then ten minutes, of which a stop frees all."""
    for printed in two_ranks(WAIT):
        assert printed == ["True", "False", "run.copy_to: is not up to date"]


GPU = """
import sys
import torch
from pathlib import Path
from torch import distributed
distributed.init_process_group("gloo")  # NCCL refuses two ranks on one GPU
from train.config_file import load_config
from train.run import main
one = torch.ones(1, device="cuda")
distributed.all_reduce(one)
assert one.item() == 2
main(load_config(Path(sys.argv[1]), []))
print("= device", torch.cuda.current_device())
"""


@pytest.mark.gpu
@pytest.mark.launch
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
def test_two_ranks_train_on_one_gpu_over_gloo(shards: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, "run", shards, "run.zero_stage=0")
    for printed in two_ranks(GPU, str(config)):
        assert printed[-1] == "device 0"
    assert len(losses(tmp_path / "run")) == STEPS
    assert checkpoint(tmp_path / "run")

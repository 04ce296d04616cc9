"""deepspeed, torchrun, srun and nobody start the same run."""

import sys
from pathlib import Path

import pytest
import torch

from sharding.recording import InputError
from tests.train.tiny import SCRIPT, checkpoint, deepspeed, different, finish, free_port, losses, start, write_config
from train.engine import _slurm, start_distributed

SCONTROL = '#!/bin/sh\n[ "$1 $2 $3" = "show hostnames node[1-3]" ] && printf "127.0.0.1\\nnode2\\nnode3\\n"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launch")


@pytest.fixture
def scontrol(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """PATH with a scontrol that knows one list of nodes."""
    program = folder / "bin" / "scontrol"
    program.parent.mkdir(exist_ok=True)
    program.write_text(SCONTROL)
    program.chmod(0o755)
    path = f"{program.parent}:/usr/bin:/bin"
    monkeypatch.setenv("PATH", path)
    return path


def slurm(task: int, num_tasks: int = 2, **more: str) -> dict[str, str]:
    """What srun sets for a task."""
    return {
        "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task), "SLURM_NODEID": "0", "SLURM_NTASKS": str(num_tasks),
        "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_JOB_NODELIST": "node[1-3]",
        "SLURM_TASKS_PER_NODE": str(num_tasks),
    } | more  # fmt: skip


@pytest.mark.slow
@pytest.mark.launch
def test_torchrun_and_srun_run_what_deepspeed_runs(folder: Path, shards: Path, scontrol: str) -> None:
    configs = {name: write_config(folder, name, shards) for name in ("deepspeed", "torchrun", "srun")}
    finish([*deepspeed(2), "--config", str(configs["deepspeed"])])
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--nproc_per_node", "2", "--master_port", free_port()]
    finish([*torchrun, str(SCRIPT), "--config", str(configs["torchrun"])])
    command = [sys.executable, str(SCRIPT), "--config", str(configs["srun"])]
    port = free_port()
    tasks = [start(command, PATH=scontrol, MASTER_PORT=port, **slurm(task)) for task in (0, 1)]
    for task in tasks:
        said = task.communicate(timeout=200)[0]
        assert task.returncode == 0, said[-3000:]
    for name in ("torchrun", "srun"):
        assert losses(folder / name) == losses(folder / "deepspeed")
        assert different(checkpoint(folder / name), checkpoint(folder / "deepspeed")) == []


def test_what_srun_says_becomes_what_torch_asks_for(scontrol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = slurm(5, 7, SLURM_LOCALID="2", SLURM_NODEID="1", SLURM_TASKS_PER_NODE="3(x2),1", SLURM_STEP_ID="2")
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert _slurm() == {
        "RANK": "5", "LOCAL_RANK": "2", "WORLD_SIZE": "7", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "24713",
    }  # fmt: skip
    monkeypatch.setenv("SLURM_NODEID", "2")
    assert _slurm()["LOCAL_WORLD_SIZE"] == "1"
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2,1(x5)")  # of the step, where it differs from the job
    assert _slurm()["LOCAL_WORLD_SIZE"] == "1"
    monkeypatch.delenv("SLURM_STEP_TASKS_PER_NODE")
    monkeypatch.delenv("SLURM_TASKS_PER_NODE")
    assert "LOCAL_WORLD_SIZE" not in _slurm()


def test_a_task_that_sees_one_gpu_takes_it(scontrol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in slurm(1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert _slurm()["LOCAL_RANK"] == "0"


def test_a_batch_script_is_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in slurm(0, 8).items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_STEP_ID", "RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="Slurm gives 8 tasks, and this is none of them; start it with srun"):
        start_distributed()

"""A run as small as can be: a random teacher, two blocks, four steps; and ways to start it and look at it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import ROOT

SCRIPT = ROOT / "train" / "pretrain.py"
STEPS = 4
TINY: dict[str, dict[str, Any]] = {
    "data": {"canvas": 80, "val_samples": 8},
    "masks": {"context_tokens": 6, "target_tokens": 2, "min_patches": 1},
    "student": {"arch": "vit_tiny_patch16_224", "image_size": 64, "args": {"depth": 2}},
    "predictor": {"depth": 1, "width": 48, "num_heads": 3},
    "teacher": {"source": "random:vit_tiny_patch16_224", "precision": "fp32"},
    "target": {"measure_batches": 1},
    "optim": {"batch": 8, "steps": STEPS, "lr": 1e-3, "warmup_steps": 2, "precision": "fp32"},
    "run": {"micro_batch": 4, "num_workers": 0, "log_every": 1, "save_every": 2},
}


def write_config(folder: Path, name: str, shards: Path, *overrides: str) -> Path:
    """`folder/name.yaml` of a run in `folder/name`; overrides like `optim.lr=1`, `teacher=null` drops a section."""
    content = json.loads(json.dumps(TINY))
    content["data"]["shards"] = [str(shards)]
    content["run"] |= {"dir": str(folder / name), "tracking_uri": f"sqlite:///{folder}/mlflow.db"}
    for override in overrides:
        key, _, value = override.partition("=")
        section, _, name_in_section = key.rpartition(".")
        (content[section] if section else content)[name_in_section] = yaml.safe_load(value)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def environment(**more: str) -> dict[str, str]:
    """Of this process, without what a launcher or the tests of this process have set."""
    launch = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in launch and not name.startswith("SLURM_")}
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return kept | settings | more


def free_port() -> str:
    """That nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def deepspeed(num_ranks: int, script: Path = SCRIPT) -> list[str]:
    """The start of a command line."""
    launcher = Path(sys.executable).parent / "deepspeed"
    return [str(launcher), "--master_port", free_port(), "--num_gpus", str(num_ranks), str(script)]


def start(command: list[str], **more: str) -> "subprocess.Popen[str]":
    """A process in a session of its own; its output is for communicate()."""
    return subprocess.Popen(
        command, env=environment(**more), start_new_session=True, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(command: list[str], **more: str) -> str:
    """Run to the end, which must be a good one; returns what was printed."""
    process = start(command, **more)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said[-6000:]
    return said


def metrics(run_dir: Path, name: str) -> list[float]:
    """All values of a metric in the journal, in its order."""
    lines = [json.loads(line)["metrics"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def losses(run_dir: Path) -> list[float]:
    """Of all steps."""
    return metrics(run_dir, "train/loss")


def checkpoint(run_dir: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint but the clock, which no two runs share."""
    tensors: dict[str, torch.Tensor] = load_file(run_dir / "checkpoints" / f"step-{step:08d}.safetensors")
    del tensors["clock.device_seconds"]
    return tensors


def different(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not the same bit for bit."""
    return sorted(
        name for name in one.keys() | other.keys()
        if name not in one or name not in other or not torch.equal(one[name], other[name])
    )  # fmt: skip

"""Fixtures: a small shard directory and run settings, made once per session from generated recordings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train.vit  # noqa: F401 - before any test imports timm: its guard makes torchvision importable
from sharding.job import on_processes, run
from sharding.plan import make_plan
from sharding.policy import Job, Policy
from sharding.recording import FrameChoice
from sharding.sources.synthetic_files import write_demo_set

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
KEY = b"0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 12 patients with two recordings each, and labels.csv."""
    folder = tmp_path_factory.mktemp("labelled")
    write_demo_set(folder, num_patients=12, seed=7)
    return folder


@pytest.fixture(scope="session")
def shards(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished shard directory of the labelled folder."""
    out = tmp_path_factory.mktemp("shards")
    return make_shards(labelled, out, Policy("tiny", FrameChoice(max_frames=4), val_share=0.1), num_workers=2)


def make_shards(
    source: Path, out: Path, policy: Policy, num_workers: int = 1, key: bytes = KEY, labels: Path | None = None
) -> Path:
    """Shard a folder with the key file beside OUT; returns OUT."""
    key_file = out.parent / f"{out.name}-key"
    if not key_file.exists():
        key_file.touch(mode=0o600)
    key_file.write_bytes(key)
    job = Job(str(source), str(out), policy, key_file, labels)
    list(run(job, make_plan(job), on_processes(num_workers)))
    return out


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real ultrasound beside the checkout; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data in {SHARED}")
    return SHARED


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums in one order."""
    torch.set_num_threads(1)


def run_command(*command: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program of this environment and return what it printed."""
    program = str(Path(sys.executable).parent / command[0])
    settings = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"} | environment
    return subprocess.run(
        [program, *command[1:]], cwd=cwd, env=settings, capture_output=True, text=True, check=False, timeout=300
    )

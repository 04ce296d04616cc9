"""Fixtures: a small shard directory and run settings, made once per session from generated recordings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sharding.job import Policy, plan, run
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
    list(run(plan(labelled, KEY), out, Policy("tiny", max_frames=4, val_share=0.1), KEY, num_workers=2))
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

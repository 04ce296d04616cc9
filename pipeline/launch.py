"""Start train/pretrain.py under the deepspeed launcher."""

import subprocess
import sys
from pathlib import Path

_SCRIPT = Path(__file__).parent.parent / "train" / "pretrain.py"


def launch(config: Path, overrides: list[str], num_gpus: int) -> int:
    """Run one pretraining with `num_gpus` processes on this machine and return its exit code."""
    launcher = Path(sys.executable).parent / "deepspeed"
    command = [str(launcher), "--num_gpus", str(num_gpus), str(_SCRIPT), "--config", str(config), *overrides]
    return subprocess.run(command, check=False).returncode

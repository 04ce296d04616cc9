"""Start train/pretrain.py under the deepspeed launcher."""

import socket
import subprocess
import sys
from pathlib import Path

_SCRIPT = Path(__file__).parent.parent / "train" / "pretrain.py"


def launch(config: Path, overrides: list[str], num_gpus: int, *, smoke: bool = False) -> int:
    """Run one pretraining with `num_gpus` processes on this machine and return its exit code."""
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(num_gpus)]
    launcher += ["--master_port", str(_free_port())]  # deepspeed's own is the same for every run of a machine
    words = ["--config", str(config), *(["--smoke"] if smoke else []), *overrides]
    return subprocess.run([*launcher, str(_SCRIPT), *words], check=False).returncode


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

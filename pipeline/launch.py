"""Start train/pretrain.py under the deepspeed launcher."""

import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

_SCRIPT = Path(__file__).parent.parent / "train" / "pretrain.py"


def launch(config: Path, overrides: list[str], num_gpus: int, *, smoke: bool = False) -> int:
    """Run one pretraining with `num_gpus` processes on this machine and return its exit code.

    SIGTERM is passed on to the ranks: the launcher would die of it, and leave them running.
    """
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(num_gpus)]
    launcher += ["--master_port", str(_free_port())]  # deepspeed's own is the same for every run of a machine
    words = ["--config", str(config), *(["--smoke"] if smoke else []), *overrides]
    process = subprocess.Popen([*launcher, str(_SCRIPT), *words])
    before = signal.signal(signal.SIGTERM, lambda *_: _stop_ranks(process.pid))
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop_ranks(launcher: int) -> None:
    for process in psutil.Process(launcher).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if any(word.startswith("--local_rank") for word in process.cmdline()):
                process.terminate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

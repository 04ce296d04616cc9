"""A real MLflow server that can be killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path


def wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Server:
    """`mlflow server` on a port of its own, which can be killed and started again."""

    def __init__(self, database: Path) -> None:
        self._database, self._process = database, None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        folder = self._database.parent
        command = [
            sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port",
            str(self._port), "--backend-store-uri", f"sqlite:///{self._database}", "--artifacts-destination",
            str(folder / "artifacts"),
        ]  # fmt: skip
        with (folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, start_new_session=True, stdout=log, stderr=log, cwd=folder,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # seven processes fewer
            )  # fmt: skip
        wait_until(self._answers)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)  # its workers, too: it leads a session of its own
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False

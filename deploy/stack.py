"""`make stack`: MLflow with accounts on PostgreSQL and S3, as deploy/ runs it, but without Docker.

To try it, and for tests: the S3 store is moto's, which keeps everything in memory, and all of it is gone at the end.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from sharding.recording import InputError

_SERVER = Path(__file__).parent / "mlflow_server.sh"
_SECONDS = 120  # that a service may take to start
_ACCOUNT = "postgres"  # the database refuses to run as root


class Stack:
    """The three services on free ports of this machine.

    Args:
        folder: for data and logs; it and those above it must be open to other accounts when this is root.

    Raises:
        InputError: PostgreSQL or moto is not installed.

    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._ports = folder, {name: _free_port() for name in ("database", "s3", "mlflow")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._password, self._secret = secrets.token_hex(16), secrets.token_hex(16)
        self.uri = f"http://127.0.0.1:{self._ports['mlflow']}"
        self.s3 = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._ports['s3']}", "AWS_ACCESS_KEY_ID": "us-jepa",
            "AWS_SECRET_ACCESS_KEY": self._secret, "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        self.client = {
            "MLFLOW_TRACKING_URI": self.uri, "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": self._password,
        }  # fmt: skip

    def start(self) -> None:
        """Start all of them; returns when MLflow answers."""
        self._make_database()
        self.start_database()
        self._start("s3", [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._ports["s3"])])
        self._until("s3", lambda: _listens(self._ports["s3"]))
        code = "import boto3; boto3.client('s3').create_bucket(Bucket='mlflow')"
        subprocess.run([sys.executable, "-c", code], env=os.environ | self.s3, check=True)
        self._start("mlflow", [str(_SERVER)], **self._settings())
        self._until("mlflow", lambda: _answers(f"{self.uri}/health"))

    def start_database(self) -> None:
        """Start PostgreSQL, for the first time or again; returns when it answers."""
        port, data = str(self._ports["database"]), str(self._folder / "database")
        command = [_postgresql("postgres"), "-D", data, "-p", port, "-h", "127.0.0.1", "-k", data]
        self._start("database", command, account=_account())
        ready = [_postgresql("pg_isready"), "-h", "127.0.0.1", "-p", port]
        self._until("database", lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0)

    def kill_database(self) -> None:
        """Let PostgreSQL crash: no goodbye to clients, no last checkpoint."""
        self._end("database", signal.SIGQUIT)

    def stop(self) -> None:
        """End what runs: clients before what they need."""
        for name in ("mlflow", "s3", "database"):
            if name in self._processes:  # PostgreSQL waits for its clients after SIGTERM, not after SIGINT
                self._end(name, signal.SIGINT if name == "database" else signal.SIGTERM)

    def _make_database(self) -> None:
        data, secret = self._folder / "database", self._folder / "password"
        data.mkdir(mode=0o700)
        secret.touch(mode=0o600)
        secret.write_text(self._secret)
        if account := _account():
            for path in (data, secret):
                shutil.chown(path, account, account)
        command = [_postgresql("initdb"), "--auth=scram-sha-256", "--username=mlflow", f"--pwfile={secret}", str(data)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True, user=account, group=account, cwd="/")

    def _settings(self) -> dict[str, str]:
        place = f"127.0.0.1:{self._ports['database']}"
        return self.s3 | {
            "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://mlflow:{self._secret}@{place}/postgres",
            "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow",
            "MLFLOW_S3_ENDPOINT_URL": self.s3["AWS_ENDPOINT_URL"],
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{self._ports['mlflow']}",
            "MLFLOW_AUTH_ADMIN_PASSWORD": self._password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self._secret,
            "HOST": "127.0.0.1",
            "PORT": str(self._ports["mlflow"]),
            "WORKERS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def _start(self, name: str, command: list[str], account: str | None = None, **settings: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, env=os.environ | settings, stdout=log, stderr=log, user=account, group=account, cwd="/",
                start_new_session=True,
            )  # fmt: skip

    def _end(self, name: str, how: signal.Signals) -> None:
        process = self._processes.pop(name)
        # MLflow's workers are of its group; PostgreSQL's first process tells the others itself
        process.send_signal(how) if name == "database" else os.killpg(process.pid, how)
        process.wait(timeout=60)

    def _until(self, name: str, is_up: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _SECONDS
        while not is_up():
            if self._processes[name].poll() is not None or time.monotonic() > deadline:
                log = (self._folder / f"{name}.log").read_text()[-2000:]
                raise InputError(f"stack: {name} does not start; the end of its log:\n{log}")
            time.sleep(0.2)


def _account() -> str | None:
    return _ACCOUNT if os.geteuid() == 0 else None


def _postgresql(program: str) -> str:
    """Debian keeps the programs of the server outside PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which(program, path=":".join([os.environ["PATH"], *map(str, folders)]))
    if found is None:
        raise InputError(f"stack: {program} is not installed; it is in Debian's package postgresql")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return int(answer.status) == 200  # noqa: PLR2004
    except OSError:
        return False


def main() -> None:
    """Start the stack, say how it is used, and end it on SIGTERM or Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(
        prefix="us-jepa-stack-", dir="/tmp"
    ) as name:  # $TMPDIR may be closed to the database
        Path(name).chmod(0o755)
        stack = Stack(Path(name))
        try:
            stack.start()
            print(f"MLflow with PostgreSQL and S3: {stack.uri}, until Ctrl-C. In another terminal:\n")
            print("export " + " ".join(f"{key}={value}" for key, value in stack.client.items()), flush=True)
            signal.pause()
        except InputError as error:
            sys.exit(str(error))
        except KeyboardInterrupt:
            print("stopped; its runs and artifacts are gone")
        finally:
            stack.stop()


if __name__ == "__main__":
    main()

"""A server that was really started, and a client that says what it wants, byte by byte."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

_PATIENCE = 60  # seconds until it has started


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    headers: http.client.HTTPMessage

    def json(self) -> Any:  # noqa: ANN401 - as it comes
        return json.loads(self.body)


def ask(
    port: int, path: str, body: bytes | Iterator[bytes] | None = None, headers: dict[str, str] | None = None
) -> Reply:
    """GET, or POST where there is a body, from whoever listens on loopback."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        with suppress(BrokenPipeError, ConnectionResetError):  # it has answered already
            connection.request("GET" if body is None else "POST", path, body, headers or {})
        response = connection.getresponse()
        return Reply(response.status, response.read(), response.headers)
    finally:
        connection.close()


@dataclass(frozen=True)
class Server:
    """On loopback, with a home, a temporary folder and a working directory of its own below `home`."""

    port: int
    home: Path
    log: Path
    process: subprocess.Popen[bytes]
    token: str | None

    def ask(
        self, path: str, body: bytes | Iterator[bytes] | None = None, token: str | None = "", **headers: str
    ) -> Reply:
        """GET, or POST where there is a body; token: that of the server by default, None: none."""
        wanted = self.token if token == "" else token
        said = {name.replace("_", "-"): value for name, value in headers.items()}
        return ask(self.port, path, body, said | ({} if wanted is None else {"Authorization": f"Bearer {wanted}"}))

    def files(self) -> set[str]:
        return {str(path) for path in self.home.rglob("*")}

    def is_well(self) -> bool:
        return self.process.poll() is None and self.ask("/healthz").status == 200


@contextmanager
def started(encoder: str | Path, home: Path, *options: str, with_token: bool = False) -> Iterator[Server]:
    """`us-jepa serve` with some options; ended afterwards."""
    port, log, token_file = free_port(), home.parent / f"{home.name}.log", home.parent / f"{home.name}.token"
    (home / "tmp").mkdir(parents=True)
    settings = {"PYTHONPATH": str(ROOT), "HOME": str(home), "TMPDIR": str(home / "tmp"), "OMP_NUM_THREADS": "1"}
    settings |= {"XDG_CONFIG_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pipeline.cli", "serve", str(encoder), "--port", str(port), "--decoders", "2"]
    command += ["--token-file", str(token_file)] if with_token else []
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, *options], cwd=home, env=os.environ | settings, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        _wait(process, port, log)
        token = token_file.read_text().strip() if with_token else None
        yield Server(port, home, log, process, token)
    finally:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(log.read_text())


def multipart(data: bytes, name: str = "upload.dcm") -> tuple[bytes, str]:
    """A body with one file, and its content type."""
    head = f'--edge\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return head.encode() + data + b"\r\n--edge--\r\n", "multipart/form-data; boundary=edge"

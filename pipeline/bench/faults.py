"""A proxy in front of a server that does to some answers what networks do; for tests and benchmarks."""

import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_CHUNK = 1 << 18
FAULTS = ("latency", "503", "reset", "truncated", "corrupt")


class FaultyProxy:
    """Forwards to host:port; a share of the answers with content has one of the faults.

    Attributes:
        share: of GET requests that go wrong.
        kinds: of the faults.
        seconds: of latency.
        done: faults so far, by kind.
        bytes_per_s: of all answers together, 0 for no limit.

    """

    def __init__(self, host: str, port: int, share: float, kinds: tuple[str, ...] = FAULTS) -> None:
        self.share, self.kinds, self.seconds = share, kinds, 0.2
        self.bytes_per_s = 0.0
        self.done: Counter[str] = Counter()
        self._link = threading.Lock()
        self._random = random.Random(4)
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self, "upstream": (host, port)})
        )
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Address."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def fault(self) -> str:
        """What goes wrong with the next answer, empty for nothing."""
        kind = self._random.choice(self.kinds) if self._random.random() < self.share else ""
        self.done[kind] += bool(kind)
        return kind

    def send(self, body: bytes, write: Callable[[bytes], object]) -> None:
        """Write an answer at the speed of the link, which all answers share."""
        for start in range(0, len(body), _CHUNK):
            with self._link:
                if self.bytes_per_s:
                    time.sleep(len(body[start : start + _CHUNK]) / self.bytes_per_s)
            write(body[start : start + _CHUNK])

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy
    upstream: tuple[str, int]

    def _forward(self) -> None:
        upstream = HTTPConnection(*self.upstream, timeout=30)
        upstream.request(self.command, self.path, headers=dict(self.headers))
        answer = upstream.getresponse()
        body, headers = answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        fault = self.proxy.fault() if self.command == "GET" and ".tar" in self.path else ""
        if fault == "reset":
            self._reset()
            return
        if fault == "latency":
            time.sleep(self.proxy.seconds)
        status = 503 if fault == "503" else answer.status
        self._answer(status, headers, {"503": b"", "corrupt": bytes(len(body))}.get(fault, body), fault == "truncated")

    do_GET = do_HEAD = _forward  # noqa: N815

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, is_truncated: bool) -> None:
        self.send_response(status)
        length = headers.pop("content-length", "0") if self.command == "HEAD" else str(len(body))
        for name in headers.keys() - {"transfer-encoding", "connection", "content-length"}:
            self.send_header(name, headers[name])
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command == "GET":
            self.proxy.send(body[: len(body) // 2] if is_truncated else body, self.wfile.write)
        self.close_connection |= is_truncated

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

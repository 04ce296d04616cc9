"""What every request passes before the application: who may ask, how many at once, what is counted and logged.

The log has method, route, status and time. It has no path, query, header or name that a client made up.
"""

import asyncio
import hmac
import logging
import time
from asyncio import TimerHandle, Transport
from contextlib import suppress
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from deploy.upload import Refused

LOG = logging.getLogger("us_jepa.serve")

_OPEN = {"/", "/healthz", "/docs", "/openapi.json"}  # hold nothing of anyone; all else wants the token
_OPEN_FOLDER = "/static-offline-docs/"  # of /docs
_COUNTED = {*_OPEN, "/embed", "/metrics"}
_METHODS = {"GET", "HEAD", "POST"}
_LOOPBACK = {"localhost", "127.0.0.1", "[::1]"}
_LINGER = 2.0  # seconds
_HEADER_SECONDS = 10  # in which a connection must bring a whole header
_BODY = "us_jepa.body"


@dataclass(frozen=True)
class Metrics:
    """What /metrics says."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    requests: Counter = field(init=False)
    refusals: Counter = field(init=False)
    seconds: Histogram = field(init=False)
    frames: Counter = field(init=False)
    batch: Histogram = field(init=False)
    waiting: Gauge = field(init=False)

    def __post_init__(self) -> None:
        made = {
            "requests": Counter("us_jepa_requests", "answered", ["route", "status"], registry=self.registry),
            "refusals": Counter("us_jepa_refusals", "by reason", ["reason"], registry=self.registry),
            "seconds": Histogram("us_jepa_request_seconds", "until answered", ["route"], registry=self.registry),
            "frames": Counter("us_jepa_frames", "embedded", registry=self.registry),
            "batch": Histogram(
                "us_jepa_batch_frames", "in one pass", registry=self.registry, buckets=(1, 2, 4, 8, 16, 32, 64, 128)
            ),
            "waiting": Gauge("us_jepa_waiting_requests", "admitted and not answered", registry=self.registry),
        }
        for name, metric in made.items():
            object.__setattr__(self, name, metric)


class _Body:
    """A request's body, as the server hands it over."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._is_whole = receive, False

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            self._is_whole = True
        return message

    async def drain(self) -> None:
        """Read on for a while, so that a client that is still sending sees the answer, not a reset connection."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                while not self._is_whole:
                    await self()


class _Refusal(JSONResponse):
    """An answer that may come before the body has been read; the connection ends then."""

    def __init__(self, refused: Refused) -> None:
        headers = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(refused.status)
        super().__init__({"reason": refused.reason, "meaning": refused.meaning}, refused.status, headers)

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        body: _Body = scope[_BODY]
        self.headers["connection"] = "close"
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": bytes(self.body), "more_body": True})
        await body.drain()
        await send({"type": "http.response.body", "body": b""})


def refuse(_: Request, refused: Exception) -> _Refusal:
    """Handler of Refused for FastAPI."""
    assert isinstance(refused, Refused)
    return _Refusal(refused)


class Guard:
    """Middleware; see the module.

    Args:
        app: the application.
        metrics: to count in.
        token: that clients must bring, None: none, and then only requests that name this machine are answered, since
            a page of a stranger in somebody's browser reaches loopback under another name.
        max_waiting: uploads that are received, decoded or encoded at the same time.

    """

    def __init__(self, app: ASGIApp, metrics: Metrics, token: bytes | None, max_waiting: int) -> None:
        self._app, self._metrics, self._token, self._max_waiting = app, metrics, token, max_waiting
        self._num_waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        body = _Body(receive)
        scope[_BODY] = body

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._admit(scope, body, note_status)
        finally:
            self._note(scope, status, time.perf_counter() - started)

    async def _admit(self, scope: Scope, body: _Body, send: Send) -> None:
        try:
            self._check(scope)
        except Refused as refused:
            self._metrics.refusals.labels(refused.reason).inc()
            await _Refusal(refused)(scope, body, send)
            return
        if scope["path"] != "/embed":
            await self._app(scope, body, send)
            return
        with _Slot(self) as slot:

            async def send_and_go(message: Message) -> None:
                slot.leave()  # who reads the answer slowly keeps nobody waiting
                await send(message)

            await self._app(scope, body, send_and_go)

    def count(self, change: int) -> None:
        """More or fewer uploads wait."""
        self._num_waiting += change
        self._metrics.waiting.set(self._num_waiting)

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        path = scope["path"]
        if self._token is None:
            host = headers.get(b"host", b"").decode("latin-1")
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
            if name not in _LOOPBACK:
                raise Refused(403, "wrong_host", "without a token, ask under the name localhost or 127.0.0.1")
        elif path not in _OPEN and not path.startswith(_OPEN_FOLDER):
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._token):
                raise Refused(401, "no_token", "send the header `Authorization: Bearer TOKEN`")
        if path == "/embed" and self._num_waiting >= self._max_waiting:
            raise Refused(503, "busy", f"{self._max_waiting} uploads are waiting already; try again")

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope["path"] if scope["path"] in _COUNTED else "other"
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        LOG.info("%s %s %d %.0f ms", method, route, status, seconds * 1000)


class _Slot:
    """A place among the uploads that may wait, left once."""

    def __init__(self, guard: Guard) -> None:
        self._guard, self._is_held = guard, True

    def leave(self) -> None:
        if self._is_held:
            self._is_held = False
            self._guard.count(-1)

    def __enter__(self) -> "_Slot":
        self._guard.count(1)
        return self

    def __exit__(self, *unused: object) -> None:
        self.leave()


class HeaderDeadline(H11Protocol):
    """Hangs up on connections that bring no whole request header in time; the server itself waits for ever."""

    _timer: TimerHandle | None = None
    _seen: object = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Start to look."""
        super().connection_made(transport)
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self.cycle is self._seen:
            self.transport.close()
        else:
            self._look_again()

    def _look_again(self) -> None:
        self._seen = self.cycle
        self._timer = self.loop.call_later(_HEADER_SECONDS, self._look)

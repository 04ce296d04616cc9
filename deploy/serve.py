"""`us-jepa serve`: vectors of uploads over HTTP.

    POST /embed    one DICOM, image or video, as the body or as multipart/form-data; answers Answer as JSON
    GET  /healthz  200 while it works; /metrics for Prometheus; /docs and /openapi.json; / a page to try it

Decoding, region and de-identification are those of sharding (upload.py), frames of many requests go through the encoder
together (batching.py), and guard.py decides who may ask.
"""

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from deploy.answer import Answer, Refusal, make_answer, shown_row
from deploy.batching import Batcher, Encoded, EncoderGoneError, PassFailedError
from deploy.decoders import Decoders
from deploy.embed import open_on_device, size_of, vectors_of
from deploy.guard import LOG, Guard, HeaderDeadline, Metrics, refuse
from deploy.index import Index
from deploy.upload import MemoryFile, Refused, UploadLimits, receive
from eval.encoders import FrozenEncoder
from sharding.recording import InputError

_PAGE = Path(__file__).with_name("serve.html")
_MAX_NEAREST = 50
_KEEP_ALIVE = 10  # seconds
_MORE_CONNECTIONS = 256  # than uploads
_SAFE_PAGE = {  # nothing is loaded from anywhere, nothing may frame it
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class ServeConfig:
    """What to serve and how much of it at once.

    Attributes:
        encoder: as `us-jepa probe --encoders` takes it.
        token: that clients must bring; None: no token, for loopback alone.
        table: of `us-jepa embed`, to find what is like an upload in.
        limits: of one upload.
        num_decoders: uploads that are decoded at the same time.
        max_batch: frames in one pass.
        max_wait: seconds that a frame waits for others.
        max_waiting: uploads at the same time; more are answered with 503. So many bodies are in memory at most.
        encode_seconds: that an upload waits for the encoder; then it is answered with 504.

    """

    encoder: str
    token: bytes | None = None
    table: Path | None = None
    limits: UploadLimits = field(default_factory=UploadLimits)
    num_decoders: int = 2
    max_batch: int = 32
    max_wait: float = 0.005
    max_waiting: int = 32
    encode_seconds: float = 60

    def __post_init__(self) -> None:
        for name in ("num_decoders", "max_batch", "max_waiting"):
            if getattr(self, name) < 1:
                raise InputError(f"serve: {name} is {getattr(self, name)}; it must be at least 1")
        if not self.encode_seconds > 0:
            raise InputError(f"serve: encode_seconds is {self.encode_seconds}; it must be above 0")


class Service:
    """What a running server holds.

    Args:
        cfg: what to serve.

    Raises:
        InputError: no such encoder or table, or one of another encoder.

    """

    def __init__(self, cfg: ServeConfig) -> None:
        encoder = open_on_device(cfg.encoder)
        self.model, self.cfg, self.metrics = encoder.name, cfg, Metrics()
        self.index = None if cfg.table is None else Index(cfg.table)
        if self.index is not None and self.index.width != encoder.width:
            raise InputError(f"serve {cfg.table}: vectors of {self.index.width}, {encoder.name} gives {encoder.width}")
        _warm(encoder)
        self.decoders = Decoders(cfg.num_decoders, cfg.limits, size_of(encoder))
        self.batcher = Batcher(
            partial(vectors_of, encoder), cfg.max_batch, cfg.max_wait, self.metrics.batch.observe, cfg.encode_seconds
        )

    async def embed(self, request: Request, num_nearest: int, *, with_view: bool) -> Answer:
        """Vectors of the upload of a request.

        Raises:
            Refused: with the reason.

        """
        with MemoryFile() as file:
            await receive(request, self.cfg.limits, file)
            clips = await self.decoders.decode(file)
        squares = np.concatenate([clip.squares for clip in clips])
        encoded = await self._encode(squares, shown_row(clips) if with_view else None)
        self.metrics.frames.inc(len(squares))
        return await asyncio.to_thread(make_answer, self.model, clips, encoded, self.index, num_nearest)

    async def _encode(self, squares: np.ndarray, wanted: int | None) -> Encoded:
        try:
            return await self.batcher.encode(squares, wanted)
        except PassFailedError:
            meaning = "the encoder failed at the batch of this upload, and the log says where; others are served on"
            raise Refused(500, "encoder_failed", meaning) from None
        except EncoderGoneError:
            raise Refused(503, "encoder_gone", "the encoder has ended; the server must be started again") from None
        except TimeoutError:
            meaning = (
                f"the encoder gave no answer within {self.cfg.encode_seconds:g} s; try again, or send fewer frames"
            )
            raise Refused(504, "encoder_slow", meaning) from None

    @property
    def status(self) -> str:
        """`ok`, or what is wrong."""
        if not self.batcher.is_alive:
            return "the encoder has ended; the server must be started again"
        if self.batcher.is_stuck:
            return f"the encoder has been busy with one batch for more than {self.cfg.encode_seconds:g} s"
        return "ok"

    def close(self) -> None:
        """End the thread and the children."""
        self.batcher.close()
        self.decoders.close()


def _warm(encoder: FrozenEncoder) -> None:
    """The first pass is the slowest; nobody should wait for it."""
    vectors_of(encoder, np.zeros((1, 2, size_of(encoder), size_of(encoder)), np.uint8))


def make_app(service: Service) -> FastAPI:
    """The application; closing it closes the service."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPIOffline(redoc_url=None, title="us-jepa serve", description=_about(service), lifespan=lifespan)
    app.add_exception_handler(Refused, partial(_counted, service.metrics))
    app.add_middleware(Guard, service.metrics, service.cfg.token, service.cfg.max_waiting)
    _add_routes(app, service)
    return app


def _about(service: Service) -> str:
    return f"Vectors of {service.model}. Uploads are neither written to a disk nor logged."


def _counted(metrics: Metrics, request: Request, refused: Exception) -> Response:
    metrics.refusals.labels(str(refused)).inc()
    return refuse(request, refused)


def _add_routes(app: FastAPI, service: Service) -> None:
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Refusal} for status in (400, 401, 408, 413, 415, 422, 500, 503, 504)
    }
    body = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}

    @app.post("/embed", response_model=Answer, responses=refusals, openapi_extra={"requestBody": body})
    async def embed(
        request: Request, *, view: bool = False, nearest: Annotated[int, Query(ge=0, le=_MAX_NEAREST)] = 0
    ) -> Response:
        """Vectors of one DICOM, image or video, sent as the body or as the one file of multipart/form-data."""
        answer = await service.embed(request, nearest, with_view=view)
        return Response(answer.model_dump_json(), media_type="application/json")

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """200 while it works, 503 with the reason when the encoder has ended or hangs."""
        status = service.status
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(_PAGE.read_text(), headers=_SAFE_PAGE)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(cfg: ServeConfig, host: str, port: int, tls: tuple[Path, Path] | None = None) -> None:
    """Serve until a signal ends it.

    Args:
        cfg: what to serve.
        host: address to listen on.
        port: 0: any that is free.
        tls: certificate and key files.

    Raises:
        InputError: as Service; or a host that others reach, without a token.

    """
    if cfg.token is None and not is_loopback(host):
        raise InputError(f"serve --host {host}: others reach it, so it needs a token; give a token file")
    LOG.setLevel(logging.INFO)
    LOG.addHandler(logging.StreamHandler())
    certificate, key = tls or (None, None)
    uvicorn.run(
        make_app(Service(cfg)),
        host=host,
        port=port,
        access_log=False,  # it has paths and queries; the guard's has none
        server_header=False,
        http=HeaderDeadline,
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE,
        limit_concurrency=cfg.max_waiting + _MORE_CONNECTIONS,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )

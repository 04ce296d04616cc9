"""An encoder that raises, hangs or ends: real requests to a real server whose encoder does so when it is told."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import uvicorn

from deploy.batching import Batcher
from deploy.guard import HeaderDeadline
from deploy.serve import ServeConfig, Service, make_app
from deploy.upload import UploadLimits
from sharding.recording import FrameChoice, InputError
from tests.deploy.server import Reply, ask, free_port

Trouble = Callable[[], None]


class Encoder:
    """The encoder of a service, with trouble before each pass."""

    def __init__(self, service: Service) -> None:
        self._forward = service.batcher._forward
        self.trouble: Trouble = lambda: None

    def __call__(self, squares: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        self.trouble()
        return self._forward(squares)


@contextmanager
def serving(encoder: Path, seconds: float = 60) -> Iterator[tuple[Encoder, Callable[..., Reply]]]:
    """A server in a thread: its encoder, and what asks it."""
    limits = UploadLimits(choice=FrameChoice(2))
    service = Service(ServeConfig(str(encoder), limits=limits, num_decoders=1, encode_seconds=seconds))
    troubled = Encoder(service)
    service.batcher.close()
    service.batcher = Batcher(troubled, max_batch=8, max_wait=0, max_seconds=seconds)
    port = free_port()
    config = uvicorn.Config(make_app(service), port=port, log_config=None, http=HeaderDeadline, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.05)
            assert thread.is_alive()
        yield troubled, partial(ask, port)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def dicom(labelled: Path) -> bytes:
    return (labelled / "r0000_0.dcm").read_bytes()


def raising(error: BaseException) -> Trouble:
    def trouble() -> None:
        raise error

    return trouble


def test_whatever_an_encoder_raises_costs_one_answer(
    small_encoder: Path, dicom: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [AssertionError("x"), TypeError("x"), KeyError("x"), RuntimeError("x"), torch.OutOfMemoryError("x")]
    with serving(small_encoder) as (encoder, asked), caplog.at_level(logging.WARNING, "us_jepa.serve"):
        first = asked("/embed", dicom)
        assert first.status == 200
        for error in errors:
            encoder.trouble = raising(error)
            reply = asked("/embed", dicom)
            assert (reply.status, reply.json()["reason"]) == (500, "encoder_failed")
            assert reply.json()["meaning"]
            assert asked("/healthz").status == 200
            encoder.trouble = lambda: None
            assert asked("/embed", dicom).body == first.body
        assert b'us_jepa_refusals_total{reason="encoder_failed"} 5.0' in asked("/metrics").body
        assert b"us_jepa_waiting_requests 0.0" in asked("/metrics").body
    lines = [record.getMessage() for record in caplog.records if "encoder failed" in record.getMessage()]
    assert [line.split()[2] for line in lines] == [type(error).__name__ for error in errors]


def test_an_encoder_that_hangs_costs_its_time(small_encoder: Path, dicom: bytes) -> None:
    released = threading.Event()
    with serving(small_encoder, seconds=0.5) as (encoder, asked):
        encoder.trouble = lambda: assert_(released.wait(60))
        try:
            for _ in range(2):  # one in the encoder's hands, and one that waits behind it
                reply = asked("/embed", dicom)
                assert (reply.status, reply.json()["reason"]) == (504, "encoder_slow")
                assert "within 0.5 s" in reply.json()["meaning"]
            health = asked("/healthz")
            assert health.status == 503
            assert health.json()["status"] == "the encoder has been busy with one batch for more than 0.5 s"
        finally:
            released.set()
        assert asked("/embed", dicom).status == 200
        assert asked("/healthz").json() == {"status": "ok"}


def assert_(is_true: bool) -> None:
    assert is_true


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_encoder_that_has_ended_is_said(small_encoder: Path, dicom: bytes) -> None:
    with serving(small_encoder) as (encoder, asked):
        encoder.trouble = raising(SystemExit())  # the one thing that ends a thread without a word
        for _ in range(3):
            reply = asked("/embed", dicom)
            assert (reply.status, reply.json()["reason"]) == (503, "encoder_gone")
            assert reply.json()["meaning"] == "the encoder has ended; the server must be started again"
        health = asked("/healthz")
        assert (health.status, health.json()) == (503, {"status": reply.json()["meaning"]})


def test_no_time_for_the_encoder_is_named() -> None:
    with pytest.raises(InputError, match="encode_seconds is 0; it must be above 0"):
        ServeConfig("pixels", encode_seconds=0)

"""Uploads that nobody should send: each costs one request, and the server answers afterwards."""

import concurrent.futures
import http.client
import itertools
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.bench.hostile import bombs, mutate, write_seeds
from tests.deploy.server import Server, multipart

TURNED_AWAY = {400, 413, 415, 422}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return [path.read_bytes() for path in write_seeds(tmp_path_factory.mktemp("seeds"))]


def hostile(seeds: list[bytes], seed: int, num_bombs: int) -> Iterator[bytes]:
    """Without end: bombs first, then mutated files, noise, and other kinds of text."""
    rng = np.random.default_rng(seed)
    yield from (data for _, data in itertools.islice(bombs(), num_bombs))
    for number in itertools.count():
        yield rng.bytes(int(rng.integers(1, 5000))) if number % 9 == 0 else b"<html>" * int(rng.integers(1, 99))
        for _ in range(6):
            yield mutate(seeds[int(rng.integers(len(seeds)))], rng)


def send(server: Server, data: bytes, number: int) -> int:
    """Status of an upload; every third is multipart, every seventh of these broken off."""
    if number % 3:
        return server.ask("/embed", data).status
    body, kind = multipart(data)
    reply = server.ask("/embed", body[: len(body) // 2] if number % 7 == 0 else body, content_type=kind)
    return reply.status


def survives(server: Server, seeds: list[bytes], num_uploads: int, num_bombs: int) -> None:
    uploads = list(itertools.islice(hostile(seeds, num_uploads, num_bombs), num_uploads))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda row: send(server, *row), zip(uploads, itertools.count())))
    # A mutation may leave a recording whole, which is embedded then.
    assert set(found) <= TURNED_AWAY | {200}
    assert sum(status in TURNED_AWAY for status in found) > 0.6 * num_uploads
    assert server.is_well()


def test_bombs_and_broken_files(guarded: Server, seeds: list[bytes]) -> None:
    survives(guarded, seeds, 40, num_bombs=10)  # the others take seconds to make


@pytest.mark.slow
def test_500_bombs_and_broken_files(guarded: Server, seeds: list[bytes]) -> None:
    survives(guarded, seeds, 500, num_bombs=100)
    for _ in range(10):
        assert trickle(guarded).startswith(b"HTTP/1.1 408 ")
    assert guarded.is_well()


def trickle(server: Server) -> bytes:
    """A byte now and then."""
    head = (
        f"POST /embed HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {server.token}\r\nContent-Length: 9999\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), 20) as client:
        client.sendall(f"{head}\r\n".encode())
        client.settimeout(0.2)
        for _ in range(40):
            try:
                client.sendall(b"x")
                return client.recv(65536)
            except TimeoutError:
                continue
    return b""


def test_a_body_that_trickles_in_ends(guarded: Server) -> None:
    assert trickle(guarded).startswith(b"HTTP/1.1 408 ")


def test_a_gigabyte_is_refused_before_it_is_sent(guarded: Server) -> None:
    started_at = time.monotonic()
    with socket.create_connection(("127.0.0.1", guarded.port), 20) as client:
        head = f"POST /embed HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {guarded.token}\r\n"
        client.sendall(f"{head}Content-Length: {1 << 30}\r\nExpect: 100-continue\r\n\r\n".encode())
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert time.monotonic() - started_at < 1


@pytest.mark.parametrize(
    "head",
    [
        b"GARBAGE\r\n\r\n",
        b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /embed HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * (1 << 17) + b"\r\n\r\n",
    ],
    ids=["no http", "negative length", "odd chunk", "long header"],
)
def test_broken_requests(guarded: Server, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", guarded.port), 20) as client:
        client.sendall(head)
        answer = http.client.HTTPResponse(client)
        answer.begin()
    assert 400 <= answer.status < 500
    assert guarded.is_well()


@pytest.mark.slow
def test_a_connection_that_says_nothing_is_ended(guarded: Server) -> None:
    with socket.create_connection(("127.0.0.1", guarded.port), 30) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        assert client.recv(100) == b""
    assert guarded.is_well()


def test_who_goes_away_in_the_middle_costs_nothing(guarded: Server, tmp_path: Path) -> None:
    head = (
        f"POST /embed HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {guarded.token}\r\nContent-Length: 9999\r\n"
    )
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", guarded.port), 20) as client:
            client.sendall(f"{head}\r\nabc".encode())
    time.sleep(0.3)
    assert guarded.is_well()
    assert b"us_jepa_waiting_requests 0.0" in guarded.ask("/metrics").body

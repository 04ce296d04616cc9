"""`us-jepa serve` under load beside the offline way, on the same frames: `make bench-serve`.

    python -m pipeline.bench.serve [--encoder random:vit_small_patch16_224] [--clients 16] [--seconds 15]

Frames are generated, one PNG each. Offline: decoded in killable children by as many threads as the server has, while
the batch before goes through the encoder; no HTTP, no JSON. Online: a process of clients on loopback, each sends its
next PNG when it has its vector. Both do the same number of frames, about --seconds of the offline way, in turn; the
rate is frames/s of wall clock, and processor time is printed beside it, since others may use the machine. The clients
run on the same cores as the server, so their cost is the server's loss. Exit code 1 when the server has less than 80 %
of the offline rate, at the medians.
"""

import argparse
import asyncio
import http.client
import multiprocessing
import os
import queue
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, cycle, islice
from pathlib import Path

import cv2
import numpy as np
import psutil

from deploy.batching import Batcher
from deploy.decoders import Decoders
from deploy.embed import open_on_device, size_of, vectors_of
from deploy.upload import MemoryFile, UploadLimits
from pipeline.bench.timing import Gate
from sharding.sources.synthetic import SyntheticSpec, generate

_LEAST = 0.8
_FRAMES = 64  # different ones
_DECODERS = 2
_BATCH = 16  # of the offline way: what 16 clients give the server; 32 is no faster on two cores
_PATIENCE = 60  # seconds until the server has started


@dataclass(frozen=True)
class _Round:
    """Frames per second of wall clock, processor seconds per frame, and seconds of each request."""

    rate: float
    cost: float
    times: list[float] = field(default_factory=list)


def main() -> None:
    """Print rates and times."""
    args = _parse()
    pngs = _pngs()
    with tempfile.TemporaryDirectory() as folder, _server(args.encoder, Path(folder)) as server:
        port, process = server
        num_frames = max(4 * args.clients, round(_offline(args.encoder, pngs, 2 * _BATCH).rate * args.seconds))
        _load(port, process, pngs, args.clients, 2 * args.clients)  # warms it up
        offline, online = [], []
        for _ in range(args.rounds):
            offline.append(_offline(args.encoder, pngs, num_frames))
            online.append(_load(port, process, pngs, args.clients, num_frames))
    print(f"\n{args.encoder}, {args.clients} clients, {args.rounds} rounds of {num_frames} frames")
    print(f"{len(os.sched_getaffinity(0))} cores, load of the last minute {os.getloadavg()[0]:.1f}")
    for name, rounds in (("offline", offline), ("served", online)):
        print(
            f"  {name:<8} {_median(rounds, 'rate'):7.1f} frames/s, {_median(rounds, 'cost') * 1000:6.1f} CPU ms/frame"
        )
    times_ms = np.concatenate([one.times for one in online]) * 1000
    print(f"  answered after {np.percentile(times_ms, 50):.0f} ms p50, {np.percentile(times_ms, 99):.0f} ms p99")
    gate = Gate("requests/s over offline frames/s", _median(online, "rate") / _median(offline, "rate"), _LEAST)
    print(gate)
    sys.exit(not gate.passed)


def _median(rounds: list[_Round], name: str) -> float:
    return float(statistics.median(getattr(one, name) for one in rounds))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="random:vit_small_patch16_224")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=15, help="of each round, about")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def _pngs() -> list[bytes]:
    """Frames of generated recordings."""
    found = []
    for seed in range(_FRAMES // 8):
        spec = SyntheticSpec("fan" if seed % 2 else "linear", seed % 3, num_frames=8, height=480, width=640, seed=seed)
        found += [cv2.imencode(".png", frame)[1].tobytes() for frame in generate(spec).frames]
    return found


def _offline(encoder: str, pngs: list[bytes], num_frames: int) -> _Round:
    opened = open_on_device(encoder)
    decoders = Decoders(_DECODERS, UploadLimits(pixels="public"), size_of(opened))
    batcher = Batcher(lambda squares: vectors_of(opened, squares), _BATCH, 0)  # a thread, so that both go on at once
    started, used = time.perf_counter(), _used(psutil.Process())
    asyncio.run(_embed_all(decoders, batcher, list(islice(cycle(pngs), num_frames))))
    found = _Round(num_frames / (time.perf_counter() - started), (_used(psutil.Process()) - used) / num_frames)
    batcher.close()
    decoders.close()
    return found


def _used(process: psutil.Process) -> float:
    """Processor seconds of a process and of the children that it has now."""
    every = [process, *process.children(recursive=True)]
    return float(sum(times.user + times.system for times in (one.cpu_times() for one in every)))


async def _embed_all(decoders: Decoders, batcher: Batcher, pngs: list[bytes]) -> None:
    encoding = None
    for start in range(0, len(pngs), _BATCH):
        squares = await asyncio.gather(*(_decode(decoders, png) for png in pngs[start : start + _BATCH]))
        if encoding is not None:
            await encoding
        encoding = asyncio.ensure_future(batcher.encode(np.concatenate(squares)))
        await asyncio.sleep(0)
    if encoding is not None:
        await encoding


async def _decode(decoders: Decoders, png: bytes) -> np.ndarray:
    with MemoryFile() as file:
        file.write(png)
        (clip,) = await decoders.decode(file)
    return clip.squares


@contextmanager
def _server(encoder: str, folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Port and process of a server that was started for this."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    command = [sys.executable, "-m", "pipeline.cli", "serve", encoder, "--port", str(port), "--pixels", "public"]
    options = ["--decoders", str(_DECODERS)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log)
    try:
        _wait(process, port, folder / "log")
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")


def _load(port: int, server: psutil.Process, pngs: list[bytes], num_clients: int, num_requests: int) -> _Round:
    """By clients in a process of their own, whose start and processor time do not count."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        pool.apply(_clients, (port, pngs, num_clients, num_clients))
        used = _used(server)
        seconds, times = pool.apply(_clients, (port, pngs, num_clients, num_requests))
        return _Round(num_requests / seconds, (_used(server) - used) / num_requests, times)


def _clients(port: int, pngs: list[bytes], num_clients: int, num_requests: int) -> tuple[float, list[float]]:
    """Seconds of all, and of each request."""
    uploads: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    for png in islice(cycle(pngs), num_requests):
        uploads.put(png)
    started = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as pool:
        times = list(pool.map(_ask, [port] * num_clients, [uploads] * num_clients))
    return time.perf_counter() - started, list(chain.from_iterable(times))


def _ask(port: int, uploads: "queue.SimpleQueue[bytes]") -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    times: list[float] = []
    while True:
        try:
            png = uploads.get_nowait()
        except queue.Empty:
            return times
        started = time.perf_counter()
        connection.request("POST", "/embed", png)
        response = connection.getresponse()
        body = response.read()
        if response.status != http.client.OK:
            raise RuntimeError(f"{response.status}: {body[:200]!r}")
        times.append(time.perf_counter() - started)


if __name__ == "__main__":
    main()

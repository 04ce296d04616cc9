"""`us-jepa serve` under load beside the offline way, on the same frames: `make bench-serve`.

    python -m pipeline.bench.serve [--encoder random:vit_small_patch16_224] [--clients 16] [--seconds 15]

Frames are generated, one PNG each. Offline: decoded in one killable child after the other by as many threads as the
server has, while batches of the frames before go through the encoder; no HTTP, no JSON. Online: a process of clients on
loopback, each sends its next PNG when it has its vector. Rounds of both are interleaved; the rate is frames/s of wall
clock. The clients run on the same cores as the server, so their cost is the server's loss. Exit code 1 when the server
has less than 80 % of the offline rate, at the medians.
"""

import argparse
import asyncio
import http.client
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np

from deploy.batching import Batcher
from deploy.embed import open_on_device, size_of, vectors_of
from deploy.upload import Decoders, MemoryFile, UploadLimits
from pipeline.bench.timing import Gate
from sharding.sources.synthetic import SyntheticSpec, generate

_LEAST = 0.8
_FRAMES = 64  # different ones
_DECODERS = 2
_BATCH = 32
_PATIENCE = 60  # seconds until the server has started


def main() -> None:
    """Print rates and times."""
    args = _parse()
    pngs = _pngs()
    offline, online, times = [], [], []
    with tempfile.TemporaryDirectory() as folder, _server(args.encoder, Path(folder)) as port:
        _load(port, pngs, args.clients, args.seconds / 5)  # warms it up
        for _ in range(args.rounds):
            offline.append(asyncio.run(_offline(args.encoder, pngs, args.seconds)))
            found = _load(port, pngs, args.clients, args.seconds)
            online.append(len(found) / args.seconds)
            times += found
    _print(args, offline, online, np.array(times) * 1000)
    gate = Gate("requests/s over offline frames/s", statistics.median(online) / statistics.median(offline), _LEAST)
    print(gate)
    sys.exit(not gate.passed)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="random:vit_small_patch16_224")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=15, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def _print(args: argparse.Namespace, offline: list[float], online: list[float], times_ms: np.ndarray) -> None:
    cores = len(os.sched_getaffinity(0))
    print(f"\n{args.encoder}, {args.clients} clients, {args.rounds} rounds of {args.seconds:g} s, {cores} cores")
    for name, rates in (("offline, frames/s", offline), ("served, requests/s", online)):
        print(f"  {name:<20} {statistics.median(rates):8.1f}   {min(rates):.1f} to {max(rates):.1f}")
    middle, slow = np.percentile(times_ms, (50, 99))
    print(f"  {'answered after':<20} {middle:8.0f} ms p50   {slow:.0f} ms p99   of {len(times_ms)} requests")


def _pngs() -> list[bytes]:
    """Frames of generated recordings."""
    found = []
    for seed in range(_FRAMES // 8):
        spec = SyntheticSpec("fan" if seed % 2 else "linear", seed % 3, num_frames=8, height=480, width=640, seed=seed)
        found += [cv2.imencode(".png", frame)[1].tobytes() for frame in generate(spec).frames]
    return found


async def _offline(encoder: str, pngs: list[bytes], seconds: float) -> float:
    """Frames per second of decoding and encoding in batches, until the seconds have passed."""
    opened = open_on_device(encoder)
    decoders = Decoders(_DECODERS, UploadLimits(pixels="public"), size_of(opened))
    batcher = Batcher(lambda squares: vectors_of(opened, squares), _BATCH, 0)  # a thread, so that both go on at once
    num_frames, source, encoding = 0, cycle(pngs), None
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        squares = await asyncio.gather(*(_decode(decoders, png) for png in islice(source, _BATCH)))
        if encoding is not None:
            num_frames += len((await encoding).vectors)
        encoding = asyncio.ensure_future(batcher.encode(np.concatenate(squares)))
        await asyncio.sleep(0)
    if encoding is not None:
        num_frames += len((await encoding).vectors)
    rate = num_frames / (time.perf_counter() - started)
    batcher.close()
    decoders.close()
    return rate


async def _decode(decoders: Decoders, png: bytes) -> np.ndarray:
    with MemoryFile() as file:
        file.write(png)
        (clip,) = await decoders.decode(file)
    return clip.squares


@contextmanager
def _server(encoder: str, folder: Path) -> Iterator[int]:
    """Port of a server that was started for this."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    command = [sys.executable, "-m", "pipeline.cli", "serve", encoder, "--port", str(port), "--pixels", "public"]
    options = ["--decoders", str(_DECODERS), "--max-batch", str(_BATCH)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log)
    try:
        _wait(process, port, folder / "log")
        yield port
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


def _load(port: int, pngs: list[bytes], num_clients: int, seconds: float) -> list[float]:
    """Seconds of each request that was answered in time, by clients in a process of their own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_clients, (port, pngs, num_clients, seconds))


def _clients(port: int, pngs: list[bytes], num_clients: int, seconds: float) -> list[float]:
    times: list[float] = []
    until = time.perf_counter() + seconds
    threads = [
        threading.Thread(target=_ask, args=(port, pngs[first:] + pngs[:first], until, times))
        for first in range(num_clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def _ask(port: int, pngs: list[bytes], until: float, times: list[float]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for png in cycle(pngs):
        started = time.perf_counter()
        connection.request("POST", "/embed", png)
        response = connection.getresponse()
        body = response.read()
        if response.status != http.client.OK:
            raise RuntimeError(f"{response.status}: {body[:200]!r}")
        if time.perf_counter() > until:
            return
        times.append(time.perf_counter() - started)


if __name__ == "__main__":
    main()

"""Shards in a bucket behind a slow and faulty link, streamed at half its speed: `make bench-remote` after bench-stream.

A real S3 server on loopback, and a proxy that limits the bytes per second and lets a share of the answers fail in five
ways. Printed: the time to the first batch, the steady rate, and which share of the time the loader kept its user
waiting after that, beyond what handing over a batch takes from local shards at the same pace.
"""

import argparse
import logging
import multiprocessing
import os
import shutil
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path

import boto3
import numpy as np
from moto.server import ThreadedMotoServer

from pipeline.bench.faults import FaultyProxy
from sharding.cache import ShardCache
from sharding.loader import StreamConfig, micro_batches
from sharding.order import Mixture
from sharding.shard import Shard
from sharding.shard_set import ShardSet, find_shards
from sharding.stream import PositionDataset

_BATCH = 64
_LINK = 24e6  # bytes per second
_FAULTS = 0.3  # share of the requests
_MAX_WAIT = 0.02
_BASELINE = 30  # batches
_KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}


def main() -> None:
    """Print the figures; exit code 1 when the loader waits too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-stream"))
    args = parser.parse_args()
    os.environ["US_JEPA_CACHE"] = str(args.folder / "cache")
    local = find_shards(str(args.folder / "tars"), ShardCache(args.folder, 0))
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    server = context.Process(target=_serve, args=(theirs, [shard.place for shard in local.shards]), daemon=True)
    server.start()
    os.environ |= _KEYS | {name: pipe.recv() for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")}
    cache = args.folder / "fetched"
    shutil.rmtree(cache, ignore_errors=True)
    num_bytes = sum(shard.num_bytes for shard in local.shards)
    print(f"{num_bytes / 1e6:.0f} MB in {len(local.shards)} shards, cache of half, link of {_LINK / 1e6:.0f} MB/s")
    remote = ShardSet("s3", tuple(_remote(shard) for shard in local.shards), local.sha256)
    usual = statistics.median(_waits(_open(local, cache, 0), num_bytes, _BASELINE))
    waited = _stream(_open(remote, cache, num_bytes // 2), num_bytes, usual)
    pipe.send("end")
    print(f"faults: {pipe.recv()}")
    raise SystemExit(int(waited > _MAX_WAIT))


def _serve(pipe: Connection, paths: list[str]) -> None:
    """Server and proxy, in a process of their own: the loader is measured, not they."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= _KEYS
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="scans")
    for path in paths:
        client.upload_file(path, "scans", Path(path).name)
    proxy = FaultyProxy(host, port, share=_FAULTS)
    proxy.bytes_per_s = _LINK
    for _ in range(2):
        pipe.send(proxy.url)
    pipe.recv()
    pipe.send({kind: number for kind, number in proxy.done.items() if number})


def _remote(shard: Shard) -> Shard:
    return Shard(f"s3://scans/{Path(shard.place).name}", shard.num_samples, shard.num_bytes, shard.sha256)


def _open(found: ShardSet, cache: Path, max_bytes: int) -> PositionDataset:
    counts = np.array([shard.num_samples for shard in found.shards])
    mixture = Mixture((counts,), 0, _BATCH, window=1000, max_groups=1)
    return PositionDataset([found], mixture, 224, ShardCache(cache, max_bytes))


def _stream(dataset: PositionDataset, num_bytes: int, usual: float) -> float:
    """One pass at half the speed of the link; returns the share of the time that was waited."""
    started = time.perf_counter()
    first, *waits = _waits(dataset, num_bytes, dataset.order.num_samples // _BATCH)
    seconds = time.perf_counter() - started - first
    waited = sum(max(0.0, wait - usual) for wait in waits) / seconds
    print(f"first batch after {first:.2f} s, then {len(waits) * _BATCH / seconds:.0f} samples/s")
    print(
        f"waited {waited:.2%}, at most {max(waits) * 1e3:.0f} ms; handing over takes {usual * 1e3:.1f} ms locally, too"
    )
    return waited


def _waits(dataset: PositionDataset, num_bytes: int, num_batches: int) -> list[float]:
    """Seconds that each batch was waited for by one who takes them at half the speed of the link."""
    pause = num_bytes / dataset.order.num_samples * _BATCH / (_LINK / 2)
    batches = micro_batches(dataset, StreamConfig(_BATCH, 0, 1, 1), 0)
    waits = []
    for _ in range(num_batches):
        asked = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - asked)
        time.sleep(pause)
    batches.close()  # type: ignore[attr-defined]
    return waits


if __name__ == "__main__":
    main()

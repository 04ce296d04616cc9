"""Shards in a bucket behind a slow and faulty link, streamed at half its speed: `make bench-remote`, after bench-stream.

A real S3 server on loopback, and a proxy that limits the bytes per second and lets a share of the answers fail in five
ways. Printed: the time to the first batch, the steady rate, and which share of the time the loader kept its user
waiting after that.
"""

import argparse
import logging
import os
import shutil
import statistics
import time
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


def main() -> None:
    """Print the figures; exit code 1 when the loader waits too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-stream"))
    args = parser.parse_args()
    os.environ["US_JEPA_CACHE"] = str(args.folder / "cache")
    local = find_shards(str(args.folder / "tars"), ShardCache(args.folder, 0))
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    proxy = _serve(server, local)
    cache = args.folder / "fetched"
    shutil.rmtree(cache, ignore_errors=True)
    num_bytes = sum(shard.num_bytes for shard in local.shards)
    proxy.bytes_per_s, proxy.share = _LINK, _FAULTS
    print(f"{num_bytes / 1e6:.0f} MB in {len(local.shards)} shards, cache of half, link of {_LINK / 1e6:.0f} MB/s")
    remote = ShardSet("s3", tuple(_remote(shard) for shard in local.shards), local.sha256)
    waited = _stream(_open(remote, cache, num_bytes // 2), num_bytes)
    print(f"faults: {dict(proxy.done)}")
    proxy.close()
    server.stop()
    raise SystemExit(int(waited > _MAX_WAIT))


def _serve(server: ThreadedMotoServer, local: ShardSet) -> FaultyProxy:
    host, port = server.get_host_and_port()
    proxy = FaultyProxy(host, port, share=0.0)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": proxy.url, "AWS_ENDPOINT_URL": proxy.url,
    }  # fmt: skip
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="scans")
    for shard in local.shards:
        client.upload_file(shard.place, "scans", Path(shard.place).name)
    return proxy


def _remote(shard: Shard) -> Shard:
    return Shard(f"s3://scans/{Path(shard.place).name}", shard.num_samples, shard.num_bytes, shard.sha256)


def _open(found: ShardSet, cache: Path, max_bytes: int) -> PositionDataset:
    counts = np.array([shard.num_samples for shard in found.shards])
    mixture = Mixture((counts,), 0, _BATCH, window=1000, max_groups=1)
    return PositionDataset([found], mixture, 224, ShardCache(cache, max_bytes))


def _stream(dataset: PositionDataset, num_bytes: int) -> float:
    """One pass at half the speed of the link; returns the share of the time that was waited."""
    num_batches = dataset.order.num_samples // _BATCH
    seconds_per_batch = num_bytes / dataset.order.num_samples * _BATCH / (_LINK / 2)
    started = time.perf_counter()
    batches = micro_batches(dataset, StreamConfig(_BATCH, 0, 1, 1), 0)
    next(batches)
    began = time.perf_counter()
    waits = []
    for _ in range(num_batches - 1):
        time.sleep(seconds_per_batch)
        asked = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - asked)
    seconds = time.perf_counter() - began
    batches.close()  # type: ignore[attr-defined]
    rate = (num_batches - 1) * _BATCH / seconds
    waited = sum(waits) / seconds
    print(f"first batch after {began - started:.2f} s, then {rate:.0f} samples/s", end="; ")
    print(f"waited {waited:.2%}, median {statistics.median(waits) * 1e3:.1f} ms, most {max(waits) * 1e3:.0f} ms")
    return waited


if __name__ == "__main__":
    main()

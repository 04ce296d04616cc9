"""`us-jepa doctor`: is this machine ready, are these shards, and does the stream keep up? Says what to change."""

import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from sharding.cache import ShardCache
from sharding.loader import StreamConfig, allow_open_files, micro_batches
from sharding.order import Mixture
from sharding.recording import InputError
from sharding.shard_set import ShardSet, find_shards
from sharding.stream import PositionDataset
from sharding.tar_index import cache_folder

_MIN_SHM = 1 << 30
_MIN_DISK = 5 << 30
_CACHE_BYTES = 50 << 30
_CANVAS, _BATCH = 256, 128
_SECONDS = 3.0  # of measuring
_FIRST_BATCH = 30.0  # seconds after which a resume is slow

Line = tuple[bool, str]


def examine(places: list[str], world: int, num_workers: int, images_per_s: float, cap: int) -> int:
    """Print one line per check; the exit code is 1 when one of them fails.

    Args:
        places: data sets, as `data.shards` takes them.
        world: GPUs.
        num_workers: per GPU.
        images_per_s: that one GPU takes.
        cap: samples of a data set per epoch at most, 0 for all.

    """
    failures = 0
    for good, text in _lines(places, world, num_workers, images_per_s, cap):
        print(f"{'ok  ' if good else 'BAD '} {text}", flush=True)
        failures += not good
    return 1 if failures else 0


def _lines(places: list[str], world: int, num_workers: int, images_per_s: float, cap: int) -> Iterator[Line]:
    yield from _machine()
    cache = ShardCache(cache_folder() / "shards", _CACHE_BYTES)
    sets = []
    for place in places:
        try:
            sets.append(find_shards(place, cache))
        except InputError as error:
            yield False, str(error)
    if not sets:
        return
    allow_open_files()
    counts = tuple(np.array([shard.num_samples for shard in found.shards]) for found in sets)
    try:
        dataset = PositionDataset(sets, Mixture(counts, 0, _BATCH, cap), _CANVAS, cache)
        yield from _sets(sets, dataset, world)
        yield from _speed(dataset, world, num_workers, images_per_s)
    except InputError as error:
        yield False, str(error)


def _machine() -> Iterator[Line]:
    yield sys.version_info >= (3, 11), f"python {sys.version.split()[0]} (3.11 or newer)"
    yield True, f"torch {torch.__version__}, {torch.cuda.device_count()} GPU, {os.cpu_count()} cores"
    compiler = shutil.which("g++") or shutil.which("clang++")
    yield compiler is not None, f"C++ compiler: {compiler or 'none; DeepSpeed builds its CPU communication with one'}"
    launcher = Path(sys.executable).parent / "deepspeed"
    yield launcher.exists(), f"deepspeed launcher: {launcher}"
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    places = (
        ("/dev/shm", Path("/dev/shm"), _MIN_SHM),
        ("disk here", Path.cwd(), _MIN_DISK),
        ("cache", cache, _MIN_DISK),
    )
    for name, place, least in places:
        free = shutil.disk_usage(place).free if place.exists() else 0
        yield free >= least, f"{name}: {free / 2**30:.1f} GiB free (at least {least / 2**30:.0f})"


def _sets(sets: list[ShardSet], dataset: PositionDataset, world: int) -> Iterator[Line]:
    shares = dataset.order.shares
    for found, share in zip(sets, shares.tolist(), strict=True):
        part = share / dataset.order.num_samples
        epochs = -(-found.num_samples // max(share, 1))
        text = (
            f"{found.place}: {found.num_samples} training frames in {len(found.shards)} shards, {part:.0%} of an epoch"
        )
        yield True, text + (f", all of them seen after {epochs} epochs" if epochs > 1 else "")
    num_shards = sum(len(found.shards) for found in sets)
    advice = "" if num_shards >= world else "; ranks share shards, so each node reads more than its part: shard smaller"
    yield num_shards >= world, f"{num_shards} shards for {world} ranks{advice}"


def _speed(dataset: PositionDataset, world: int, num_workers: int, images_per_s: float) -> Iterator[Line]:
    started = time.perf_counter()
    batches = micro_batches(dataset, StreamConfig(_BATCH, 0, 1, 0), start=10**6)
    next(batches)
    seconds = time.perf_counter() - started
    batches.close()  # type: ignore[attr-defined]
    yield seconds < _FIRST_BATCH, f"first batch of {_BATCH} at step 10^6: {seconds:.2f} s (below {_FIRST_BATCH:.0f})"
    rate, num_read, num_bad = decode_rate(dataset)
    yield num_bad == 0, f"{num_bad} bad samples among {num_read}" + ("; `us-jepa verify` names them" if num_bad else "")
    num_cores = len(os.sched_getaffinity(0))
    usable, need = rate * min(world * max(num_workers, 1), num_cores), images_per_s * world
    yield (
        usable >= need,
        (
            f"decoding {rate:,.0f}/s per core; {num_workers} workers for each of {world} ranks, {num_cores} cores, "
            f"give {usable:,.0f}/s, needed {need:,.0f}/s" + ("" if usable >= need else _advice(need / rate, world))
        ),
    )


def _advice(num_cores: float, world: int) -> str:
    num_workers = math.ceil(num_cores / world)
    return f"; set run.num_workers to {num_workers} on {math.ceil(num_cores)} cores, or shard with --codec zstd"


def decode_rate(dataset: PositionDataset) -> tuple[float, int, int]:
    """Frames per second of one core, how many were read, and how many of them are bad."""
    num_read = num_bad = 0
    started = time.perf_counter()
    step = 0
    while time.perf_counter() - started < _SECONDS:
        batch = dataset.batch(dataset.order.of_step(step))
        num_read, num_bad, step = num_read + len(batch.positions), num_bad + int(batch.num_bad.sum()), step + 1
    return num_read / (time.perf_counter() - started), num_read, num_bad

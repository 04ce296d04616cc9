"""`us-jepa doctor`: is this machine ready, are these shards, and does the stream keep up? Says what to change."""

import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch

from pipeline.deployment import Line, Surroundings, check_space, surroundings
from sharding.cache import ShardCache
from sharding.loader import StreamConfig, micro_batches
from sharding.open_files import allow_open_files
from sharding.order import Mixture
from sharding.reader import BadSampleError
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


@dataclass(frozen=True)
class Load:
    """What a run asks of the stream.

    Attributes:
        world: GPUs.
        num_workers: per GPU.
        images_per_s: that one GPU takes.
        cap: samples of a data set per epoch at most, 0 for all.

    """

    world: int = 1
    num_workers: int = 2
    images_per_s: float = 500
    cap: int = 0


def examine(places: list[str], load: Load, around: Surroundings | None = None) -> int:
    """Print one line per check; the exit code is 1 when one of them fails.

    Args:
        places: data sets, as `data.shards` takes them.
        load: of the run.
        around: what else is checked.

    """
    failures = 0
    for grade, text in _lines(places, load, around):
        print(f"{grade:<4} {text}", flush=True)
        failures += grade == "fail"
    return 1 if failures else 0


def _lines(places: list[str], load: Load, around: Surroundings | None) -> Iterator[Line]:
    yield from _machine()
    if around is not None:
        yield from surroundings(around)
    cache = ShardCache(cache_folder() / "shards", _CACHE_BYTES)
    sets = []
    for place in places:
        try:
            sets.append(find_shards(place, cache))
        except InputError as error:
            yield Line("fail", str(error))
    if not sets:
        return
    allow_open_files()
    counts = tuple(np.array([shard.num_samples for shard in found.shards]) for found in sets)
    try:
        dataset = PositionDataset(sets, Mixture(counts, 0, _BATCH, load.cap), _CANVAS, cache)
        yield from _sets(sets, dataset, load.world)
        yield from _speed(dataset, load)
    except InputError as error:
        yield Line("fail", str(error))


def _machine() -> Iterator[Line]:
    version = sys.version.split()[0]
    yield _line(sys.version_info >= (3, 11), f"python {version} (3.11 or newer)")
    yield Line("ok", f"torch {torch.__version__}, {torch.cuda.device_count()} GPU, {os.cpu_count()} cores")
    compiler = shutil.which("g++") or shutil.which("clang++")
    said = "none; install g++: DeepSpeed builds its CPU communication with it"
    yield _line(compiler is not None, f"C++ compiler: {compiler or said}")
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    memory = "workers hand frames over in it: `docker run --shm-size 8g`, or an emptyDir of medium Memory in Kubernetes"
    yield check_space("/dev/shm", Path("/dev/shm"), _MIN_SHM, memory)
    yield check_space("disk here", Path.cwd(), _MIN_DISK, "make room, or work in another folder")
    yield check_space(f"cache {cache}", cache, _MIN_DISK, "make room, or set US_JEPA_CACHE to another folder")


def _line(good: bool, text: str) -> Line:
    return Line("ok" if good else "fail", text)


def _sets(sets: list[ShardSet], dataset: PositionDataset, world: int) -> Iterator[Line]:
    shares = dataset.order.shares
    for found, share in zip(sets, shares.tolist(), strict=True):
        part = share / dataset.order.num_samples
        epochs = -(-found.num_samples // max(share, 1))
        text = (
            f"{found.place}: {found.num_samples} training frames in {len(found.shards)} shards, {part:.0%} of an epoch"
        )
        yield Line("ok", text + (f", all of them seen after {epochs} epochs" if epochs > 1 else ""))
    num_shards = sum(len(found.shards) for found in sets)
    advice = "" if num_shards >= world else "; ranks share shards, so each node reads more than its part: shard smaller"
    yield _line(num_shards >= world, f"{num_shards} shards for {world} ranks{advice}")


def _speed(dataset: PositionDataset, load: Load) -> Iterator[Line]:
    started = time.perf_counter()
    batches = micro_batches(dataset, StreamConfig(_BATCH, 0, 1, 0), start=10**6)
    next(batches)
    seconds = time.perf_counter() - started
    batches.close()  # type: ignore[attr-defined]
    said = f"first batch of {_BATCH} at step 10^6: {seconds:.2f} s (below {_FIRST_BATCH:.0f})"
    yield _line(seconds < _FIRST_BATCH, said)
    rate, num_read, num_bad = decode_rate(dataset)
    first = f"; the first: {_first_bad(dataset)}" if num_bad else ""
    yield _line(num_bad == 0, f"{num_bad} bad samples among {num_read}{first}")
    num_cores, world = len(os.sched_getaffinity(0)), load.world
    usable, need = rate * min(world * max(load.num_workers, 1), num_cores), load.images_per_s * world
    yield _line(
        usable >= need,
        f"decoding {rate:,.0f}/s per core; {load.num_workers} workers for each of {world} ranks, {num_cores} cores, "
        f"give {usable:,.0f}/s, needed {need:,.0f}/s" + ("" if usable >= need else _advice(need / rate, world)),
    )


def _first_bad(dataset: PositionDataset) -> str:
    """Where the first bad sample is and what is wrong with it; there must be one."""
    samples = (sample for step in count() for _, sample in dataset.samples(dataset.order.of_step(step)))
    return next(str(sample) for sample in samples if isinstance(sample, BadSampleError))


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

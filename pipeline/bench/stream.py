"""Our stream beside webdataset, litdata and mosaic streaming, on one core, on the same JPEGs: `make bench-stream`.

    python -m pipeline.bench.stream [--samples 8000] [--rounds 3] [--folder build/bench-stream]

CPU time of one process, interleaved, median over the rounds; the page cache is warm. Competitors run at their best
documented setting; `lost` and `twice` are samples of one pass that did not come, or came again; the last table says the
same of several ranks. The others' threads are refused more cores, too.
"""

import argparse
import itertools
import math
import os
import statistics
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import torch

from pipeline.bench import stream_peers as peers
from pipeline.bench.stream_ranks import print_ranks
from pipeline.bench.stream_samples import read_samples, write_samples
from sharding.cache import ShardCache
from sharding.loader import StreamConfig, micro_batches
from sharding.order import Mixture
from sharding.shard_set import find_shards
from sharding.stream import PositionDataset

_BATCH = 64  # of a resume and of a worker
_STEP = 1000  # samples of a step; divides the pass
_SIZE = 224  # pixels of a random crop
_RESUME_AT = (1000, 4000, 7000)  # of 8,000 samples
_CROP_SHARE = (0.6, 1.0)
_LOG_ASPECT = math.log(4 / 3)

Way = Callable[[], list[int]]  # one pass; the numbers of the samples that came


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-stream"))
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    os.environ["US_JEPA_CACHE"] = str(args.folder / "cache")
    write_samples(args.folder, args.samples)
    print(f"{args.samples} JPEG frames of 256 x 340, median of {args.rounds} rounds, CPU time\n{peers.versions()}")
    _bench_workers(args.folder, args.rounds)  # first, before the others' threads
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    _bench_passes(args.folder, args.samples, args.rounds)
    _bench_resume(args.folder, args.rounds)
    print_ranks(args.folder, args.samples)


def _bench_passes(folder: Path, num_samples: int, rounds: int) -> None:
    jpegs = read_samples(folder)
    tars = folder / "tars"
    tables: dict[str, dict[str, Way]] = {
        "undecoded": {
            "us-jepa": _Ours(tars, lambda _: None),
            "webdataset shuffle(5000)": peers.WebdatasetRaw(tars),
            "litdata": peers.LitdataRaw(folder / "litdata"),
            "mosaic streaming": peers.MosaicRaw(folder / "mosaic"),
        },
        "decoded": {
            "us-jepa": _Ours(tars, lambda members: _decode(members["jpg"])),
            "us-jepa, as samples with region and facts": _ours_samples(folder / "zstd"),
            "bare loop over bytes in memory": lambda: [n for n, jpeg in jpegs.items() if len(_decode(jpeg))],
            "webdataset, same decoder": peers.WebdatasetDecoded(tars, _decode),
        },
        f"train-ready: random crop to {_SIZE}, uint8": {
            "us-jepa": _Ours(tars, _Crop(lambda members: _decode(members["jpg"]))),
            "us-jepa, zstd": _Ours(folder / "zstd", _Crop(_decode_zstd)),
            "usual recipe: webdataset + PIL RGB + bicubic + float32 x 3": peers.WebdatasetUsual(tars, _SIZE),
        },
    }
    for title, ways in tables.items():
        _print_table(title, ways, num_samples, rounds)


def _print_table(title: str, ways: dict[str, Way], num_samples: int, rounds: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    came: dict[str, list[int]] = {name: way() for name, way in ways.items()}  # warm: indices, caches
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.process_time()
            came[name] = way()
            seconds[name].append(time.process_time() - started)
    first = statistics.median(next(iter(seconds.values())))
    print(f"\n{title:<62} samples/s  us-jepa over it  lost  twice")
    for name, taken in seconds.items():
        counts = Counter(came[name])
        lost, twice = num_samples - len(counts), sum(count - 1 for count in counts.values())
        middle = statistics.median(taken)
        print(f"  {name:<60} {num_samples / middle:9,.0f}  {middle / first:14.2f}x  {lost:4}  {twice:5}", flush=True)


def open_tars(folder: Path, batch: int = _STEP, canvas: int = 256) -> PositionDataset:
    """The stream over a folder of tars."""
    found = find_shards(str(folder), ShardCache(folder, 0))
    counts = np.array([shard.num_samples for shard in found.shards])
    return PositionDataset([found], Mixture((counts,), 0, batch), canvas, ShardCache(folder, 0))


class _Ours:
    """Pass after pass over a folder of tars, every sample through `work`."""

    def __init__(self, folder: Path, work: Callable[[dict[str, bytes]], object]) -> None:
        self._dataset, self._work, self._step = open_tars(folder), work, 0

    def __call__(self) -> list[int]:
        came, work, dataset = [], self._work, self._dataset
        for _ in range(dataset.order.num_samples // _STEP):
            for _, reader, index in dataset.located(dataset.order.of_step(self._step)):
                key, members = reader.raw(index)
                work(members)
                came.append(int(key))
            self._step += 1
        return came


def _ours_samples(folder: Path) -> Way:
    dataset = open_tars(folder)
    steps = range(dataset.order.num_samples // _STEP)
    return lambda: [int(s.key) for step in steps for _, s in dataset.samples(dataset.order.of_step(step))]  # type: ignore[union-attr]


class _Crop:
    """Random resized crop, as the usual recipe does: share of the area, aspect 3:4 to 4:3."""

    def __init__(self, decode: Callable[[dict[str, bytes]], np.ndarray]) -> None:
        self._decode = decode
        self._draws = itertools.cycle(np.random.default_rng(0).random((4096, 4)).tolist())
        self._target = np.empty((_SIZE, _SIZE), np.uint8)

    def __call__(self, members: dict[str, bytes]) -> None:
        frame = self._decode(members)
        height, width = frame.shape
        draws = next(self._draws)
        area = (_CROP_SHARE[0] + (_CROP_SHARE[1] - _CROP_SHARE[0]) * draws[0]) * height * width
        aspect = math.exp(_LOG_ASPECT * (2 * draws[1] - 1))
        h, w = min(height, round((area / aspect) ** 0.5)), min(width, round((area * aspect) ** 0.5))
        top, left = int(draws[2] * (height - h)), int(draws[3] * (width - w))
        cv2.resize(frame[top : top + h, left : left + w], (_SIZE, _SIZE), self._target)


def _decode_zstd(members: dict[str, bytes]) -> np.ndarray:
    width, height = struct.unpack_from(">II", members["region.png"], 16)
    return np.frombuffer(imagecodecs.zstd_decode(members["zst"], out=width * height), np.uint8).reshape(height, width)


def _decode(jpeg: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE))


def _bench_resume(folder: Path, rounds: int) -> None:
    print(f"\nfirst decoded batch of {_BATCH} after a resume         us-jepa  webdataset   ratio")
    for at in _RESUME_AT:
        ours, theirs = [], []
        for _ in range(rounds):
            started = time.process_time()
            dataset = open_tars(folder / "tars", _BATCH)
            assert sum(1 for _ in dataset.samples(dataset.order.of_step(at // _BATCH))) == _BATCH
            ours.append(time.process_time() - started)
            del dataset  # a job that starts has none to close
            started = time.process_time()
            peers.webdataset_resume(folder / "tars", _decode, at, _BATCH)
            theirs.append(time.process_time() - started)
        ratio = statistics.median(theirs) / statistics.median(ours)
        line = f"{statistics.median(ours) * 1e3:7.1f} ms {statistics.median(theirs) * 1e3:8.1f} ms {ratio:6.1f}x"
        print(f"  at sample {at:<38} {line}", flush=True)


def _bench_workers(folder: Path, rounds: int) -> None:
    """Wall clock of squares for training, from the first batch on."""
    taken: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for num_workers, seconds in taken.items():
            dataset = open_tars(folder / "tars", _BATCH)
            batches = micro_batches(dataset, StreamConfig(_BATCH, 0, 1, num_workers), 0)
            for _ in range(2 * num_workers):  # what was made while the processes started
                next(batches)
            started = time.perf_counter()
            num_batches = dataset.order.num_samples // _BATCH
            for _ in range(num_batches):
                next(batches)
            seconds.append(time.perf_counter() - started)
            batches.close()  # type: ignore[attr-defined]
    one, two = (statistics.median(seconds) for seconds in taken.values())
    print(f"\n2 workers over 1, wall clock, squares for training: {one / two:.2f}x")


if __name__ == "__main__":
    main()

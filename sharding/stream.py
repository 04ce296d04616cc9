"""Shards to batches: tars read by offset through mmap, in the order of order.py.

Workers hand over uint8; crop, flip and normalisation happen later, on the device. B is the micro batch, S the
side of the canvas in pixels.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sharding.manifest import load_manifest
from sharding.order import Order, slice_of_rank
from sharding.preprocess import stretch, to_square
from sharding.recording import InputError
from sharding.sample import Sample, decode

_BLOCK = 512  # of a tar


class Batch(NamedTuple):
    """One micro batch on the host.

    Attributes:
        frames: (B, 1, S, S) uint8.
        regions: (B, 1, S, S) uint8, 0 or 255.
        positions: (B,) int64 global sample positions, -1 for a row of padding.

    """

    frames: torch.Tensor
    regions: torch.Tensor
    positions: torch.Tensor


@dataclass(frozen=True)
class StreamConfig:
    """Which part of the stream one rank reads; see order.slice_of_rank."""

    batch: int
    micro_batch: int
    canvas: int
    seed: int
    rank: int
    world: int
    num_workers: int


class ShardReader:
    """The samples of one tar by index.

    Args:
        path: the tar. Its members are found by one walk over the headers.

    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._members = _index(self._bytes)
        self._keys = list(self._members)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Sample:
        key = self._keys[index]
        members = self._members[key]
        return decode(key, {name: self._bytes[start:end] for name, (start, end) in members.items()})


def _index(tar: mmap.mmap) -> dict[str, dict[str, tuple[int, int]]]:
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    offset = 0
    while offset + _BLOCK <= len(tar) and tar[offset] != 0:
        header = tar[offset : offset + _BLOCK]
        name, size = header[:100].rstrip(b"\0").decode(), int(header[124:136].rstrip(b"\0 "), 8)
        key, _, extension = name.partition(".")
        start = offset + _BLOCK
        samples.setdefault(key, {})[extension] = (start, start + size)
        offset = start + -(-size // _BLOCK) * _BLOCK
    return samples


class PositionDataset(Dataset[torch.Tensor]):
    """Global sample position -> (2, S, S) uint8: frame and region in a square canvas.

    Args:
        directories: finished shard directories; their train splits form one data set.
        canvas: side S in pixels.
        seed: of the order.

    Raises:
        InputError: a directory is missing, unfinished, or none has a training sample.

    """

    def __init__(self, directories: list[Path], canvas: int, seed: int) -> None:
        shards = [
            (directory / shard.name, shard.num_samples)
            for directory in directories
            for shard in load_manifest(directory).shards
            if shard.split == "train"
        ]
        if not shards:
            names = ", ".join(map(str, directories))
            raise InputError(
                f"shards: no training sample in {names}; us-jepa shards' report.html says what was refused"
            )
        self._paths = [path for path, _ in shards]
        self._canvas = canvas
        self.order = Order(tuple(count for _, count in shards), seed)

    def sample(self, position: int) -> Sample:
        """Sample at a global position."""
        shards, indices = self.order.at(np.array([position]))
        return _open(self._paths[shards[0]])[int(indices[0])]

    def __getitem__(self, position: int) -> torch.Tensor:
        if position < 0:
            return torch.zeros(2, self._canvas, self._canvas, dtype=torch.uint8)
        sample = self.sample(position)
        frame = stretch(sample.frame, sample.region, sample.meta.percentiles)
        return torch.from_numpy(to_square(frame, sample.region, self._canvas))


@lru_cache(maxsize=1024)
def _open(path: Path) -> ShardReader:
    return ShardReader(path)


class _MicroBatches:
    """Batch sampler without state: the positions of one rank from a step on, for ever."""

    def __init__(self, cfg: StreamConfig, start: int) -> None:
        self._cfg, self._start = cfg, start

    def __iter__(self) -> Iterator[list[int]]:
        cfg, step = self._cfg, self._start
        while True:
            for positions in slice_of_rank(step, cfg.batch, cfg.micro_batch, cfg.rank, cfg.world):
                yield positions.tolist()
            step += 1


def micro_batches(dataset: PositionDataset, cfg: StreamConfig, start: int) -> Iterator[Batch]:
    """Micro batches of one rank from optimizer step `start` on, endless, decoded by `num_workers` processes."""
    sampler = _MicroBatches(cfg, start)
    loader = DataLoader(
        _WithPosition(dataset),
        batch_sampler=sampler,
        num_workers=cfg.num_workers,
        worker_init_fn=_one_thread,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="forkserver" if cfg.num_workers else None,
    )
    for squares, positions in loader:
        yield Batch(squares[:, :1], squares[:, 1:], positions)


class _WithPosition(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, dataset: PositionDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        return self._dataset[position], position


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(1)

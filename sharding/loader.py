"""The micro batches of one rank: worker processes, prefetched shards, and errors that say whose they are."""

import multiprocessing
import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from sharding.open_files import allow_open_files
from sharding.order import Order, micro_batches_per_step, slice_of_rank
from sharding.prefetch import Prefetcher
from sharding.recording import InputError
from sharding.shard import Shard
from sharding.stream import Batch, Packed, PositionDataset


@dataclass(frozen=True)
class StreamConfig:
    """Which part of the stream one rank reads; see order.slice_of_rank.

    Attributes:
        micro_batch: samples per rank and forward.
        rank: process index.
        world: number of processes.
        num_workers: decoding processes of this rank, 0 for none.
        ranks_per_node: that share a cache.
        seconds: that a batch may take.

    """

    micro_batch: int
    rank: int
    world: int
    num_workers: int
    ranks_per_node: int = 1
    seconds: float = 600


class _MicroBatches:
    """Batch sampler without state: the positions of one rank from a step on, for ever."""

    def __init__(self, order: Order, cfg: StreamConfig, start: int) -> None:
        self._order, self._cfg, self._start = order, cfg, start

    def __iter__(self) -> Iterator[list[int]]:
        step = self._start
        while True:
            yield from _of_rank(self._order, self._cfg, step).tolist()
            step += 1


def _of_rank(order: Order, cfg: StreamConfig, step: int) -> np.ndarray:
    return slice_of_rank(order.of_step(step), cfg.micro_batch, cfg.rank, cfg.world)


def micro_batches(dataset: PositionDataset, cfg: StreamConfig, start: int) -> Iterator[Batch]:
    """Micro batches of one rank from optimizer step `start` on, endless, decoded by `num_workers` processes.

    Raises:
        InputError: a shard cannot be read.
        RuntimeError: a worker died, or a batch took longer than it may; names the rank and its shards.

    """
    prefetcher = _prefetcher(dataset, cfg, start)
    if cfg.num_workers:
        _start_forkserver()
    loader = DataLoader(
        dataset,
        batch_sampler=_MicroBatches(dataset.order, cfg, start),
        num_workers=cfg.num_workers,
        collate_fn=_same,
        worker_init_fn=partial(_begin_worker, training_process=os.getpid()),
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="forkserver" if cfg.num_workers else None,
        timeout=cfg.seconds if cfg.num_workers else 0,
    )
    num_per_step = micro_batches_per_step(dataset.batch_size, cfg.micro_batch, cfg.world)
    try:
        for number, batch in enumerate(_named(loader, dataset, cfg, start)):
            if isinstance(batch, InputError):
                raise InputError(f"rank {cfg.rank}: {batch}")
            if prefetcher is not None:
                prefetcher.reached(start + number // num_per_step)
            yield batch.unpack()
    finally:
        if prefetcher is not None:
            prefetcher.close()


def _named(
    loader: "DataLoader[Packed]", dataset: PositionDataset, cfg: StreamConfig, start: int
) -> Iterator[Packed | InputError]:
    """What a loader yields; a worker that dies or stops is said with its rank and shards."""
    num_per_step = micro_batches_per_step(dataset.batch_size, cfg.micro_batch, cfg.world)
    number = 0
    try:
        for batch in loader:
            number += 1
            yield batch
    except (RuntimeError, OSError, EOFError) as error:  # of a dead worker: torch's own, or of the pipe to it
        for worker in multiprocessing.active_children():  # at exit they would be terminated, which they ignore
            worker.kill()
        step = start + number // num_per_step
        positions = _of_rank(dataset.order, cfg, step).ravel()
        shards = ", ".join(shard.place for shard in dataset.shards_of(positions[positions >= 0])[:3])
        raise RuntimeError(
            f"rank {cfg.rank}, step {step}, shards {shards}, ...: a decoding process died or stopped ({error})"
        ) from error


def _prefetcher(dataset: PositionDataset, cfg: StreamConfig, start: int) -> Prefetcher | None:
    if not dataset.has_remote:
        return None

    def needs(step: int) -> list[Shard]:
        positions = _of_rank(dataset.order, cfg, step).ravel()
        return [shard for shard in dataset.shards_of(positions[positions >= 0]) if shard.is_remote]

    max_bytes = dataset.cache.max_bytes // cfg.ranks_per_node
    num_bytes = sum(shard.num_bytes for shard in needs(start))
    if num_bytes > max_bytes:
        raise InputError(
            f"cache {dataset.cache.folder}: step {start} needs shards of {num_bytes} bytes on rank {cfg.rank}, whose "
            f"part of the cache is {max_bytes}; enlarge run.cache_gib, or set data.groups to the number of nodes and "
            "data.window to a few shards' samples"
        )
    return Prefetcher(dataset.cache, needs, start, max_bytes)


def _same(batch: Any) -> Any:  # noqa: ANN401 - the batch of PositionDataset.__getitems__ is one already
    return batch


def _start_forkserver() -> None:
    """Start the process that decoding processes are forked from; torch is imported once, there.

    Launchers and Slurm send SIGTERM to every process of a run: the rank then saves, and needs its batches until it has.
    """
    multiprocessing.set_forkserver_preload([PositionDataset.__module__])
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is ignored stays so in a new program
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGTERM, before)


def _begin_worker(worker: int, training_process: int) -> None:
    threading.Thread(target=_end_with, args=(training_process,), daemon=True).start()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # again: torch set its own
    cv2.setNumThreads(1)
    allow_open_files()


def _end_with(process: int) -> None:
    """End when a process has ended, however it did. Torch watches the parent, which here is the fork server, and that
    one lives as long as its children do.
    """
    with suppress(ProcessLookupError):  # it has ended already
        select.select([os.pidfd_open(process)], [], [])
    os._exit(1)

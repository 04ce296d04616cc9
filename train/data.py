"""The stream of a run, from its config."""

import logging
import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import distributed

from sharding.cache import ShardCache
from sharding.loader import StreamConfig
from sharding.open_files import allow_open_files
from sharding.order import Mixture
from sharding.reader import BadSampleError
from sharding.shard_set import ShardSet, find_shards
from sharding.stream import PositionDataset
from sharding.tar_index import cache_folder
from train.config import PretrainConfig

_log = logging.getLogger(__name__)
_NUM_LABELLED, _NUM_SEARCHED = 2_000, 20_000  # samples of run.probe


class Labelled(NamedTuple):
    """Labelled samples of a set.

    Attributes:
        dataset: the set by position.
        positions: (n,) int64, ascending.
        labels, patients: of each; a sample without a patient has its clip's name.

    """

    dataset: PositionDataset
    positions: np.ndarray
    labels: list[str]
    patients: list[str]


def find_sets(cfg: PretrainConfig) -> list[ShardSet]:
    """The data sets of a run.

    Raises:
        InputError: one is missing, unfinished or empty.

    """
    cache = _cache(cfg)
    return [find_shards(place, cache) for place in cfg.data.shards]


def open_dataset(cfg: PretrainConfig, sets: list[ShardSet]) -> PositionDataset:
    """Training samples by position."""
    allow_open_files()
    data = cfg.data
    mixture = Mixture(_counts(sets), data.seed, cfg.optim.batch, data.cap, data.weights, data.window, data.groups)
    return PositionDataset(sets, mixture, data.canvas, _cache(cfg))


def open_held_out(cfg: PretrainConfig, sets: list[ShardSet]) -> PositionDataset | None:
    """Samples of the val split by position; None when there are none, or `data.val_samples` is 0."""
    held_out = [found.held_out() for found in sets]
    if not cfg.data.val_samples or not any(found.num_samples for found in held_out):
        return None
    return PositionDataset(
        held_out, Mixture(_counts(held_out), cfg.data.seed, cfg.optim.batch), cfg.data.canvas, _cache(cfg)
    )


def open_labelled(cfg: PretrainConfig, place: str) -> Labelled:
    """The first labelled samples of a shard directory, whatever their split, in an order that does not change.

    Raises:
        InputError: no shard directory.

    """
    found = find_shards(place, _cache(cfg))
    both = ShardSet(place, found.shards + found.val_shards, found.sha256)
    dataset = PositionDataset([both], Mixture(_counts([both]), 0, _NUM_LABELLED), cfg.data.canvas, _cache(cfg))
    known: dict[int, tuple[str, str]] = {}
    bad: list[BadSampleError] = []
    for start in range(0, min(dataset.order.num_samples, _NUM_SEARCHED), _NUM_LABELLED):
        positions = np.arange(start, min(start + _NUM_LABELLED, dataset.order.num_samples))
        for row, sample in dataset.samples(positions):
            if isinstance(sample, BadSampleError):
                bad.append(sample)
            elif sample.meta.label is not None:
                known[start + row] = sample.meta.label, sample.meta.patient or sample.meta.clip
        if len(known) >= _NUM_LABELLED:
            break
    if bad:
        _log.warning(
            "run.probe %s: %d samples cannot be read and are left out; one of them: %s", place, len(bad), bad[0]
        )
    chosen = sorted(known)[:_NUM_LABELLED]
    labels, patients = ([known[position][column] for position in chosen] for column in (0, 1))
    return Labelled(dataset, np.array(chosen, dtype=np.int64), labels, patients)


def _counts(sets: list[ShardSet]) -> tuple[np.ndarray, ...]:
    return tuple(np.array([shard.num_samples for shard in found.shards], dtype=np.int64) for found in sets)


def stream_of_rank(cfg: PretrainConfig, rank: int, world: int) -> StreamConfig:
    """Which part of the stream a rank reads."""
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world)  # torchrun, deepspeed
    return StreamConfig(cfg.run.micro_batch, rank, world, cfg.run.num_workers, per_node)


@dataclass(frozen=True)
class ReadFacts:
    """What the stream gave this rank: steps since the last log, seconds in them, of these waited for data, and the sum
    of the last step's key hashes.
    """

    num_steps: int
    seconds: float
    waited: float
    keys_hash: int


def reduce_reading(read: ReadFacts, device: torch.device) -> dict[str, float]:
    """Metrics of the stream over all ranks."""
    keys_hash = torch.tensor(read.keys_hash, device=device)
    distributed.all_reduce(keys_hash)
    return {"data/keys_hash": int(keys_hash), "perf/data_wait_share": read.waited / read.seconds}


def _cache(cfg: PretrainConfig) -> ShardCache:
    return ShardCache(cache_folder() / "shards", int(cfg.run.cache_gib * 2**30))

"""Small streams for the tests."""

import hashlib
import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import torch

from sharding.cache import ShardCache
from sharding.loader import StreamConfig, micro_batches
from sharding.order import Mixture
from sharding.shard_set import find_shards
from sharding.stream import Batch, PositionDataset, split_pixels
from train.augment import augment
from train.config import AugmentConfig, MaskConfig
from train.masks import draw_masks, valid_patches

CANVAS, SIZE, PATCH = 48, 32, 8
MASKS = MaskConfig(context_tokens=4, target_tokens=2, min_patches=1)


def open_stream(
    places: list[str], folder: Path, batch: int = 8, max_bytes: int = 1 << 30, seconds: float = 60, **mixture: object
) -> PositionDataset:
    cache = ShardCache(folder / "cache", max_bytes, seconds)
    sets = [find_shards(place, cache) for place in places]
    counts = tuple(np.array([shard.num_samples for shard in found.shards]) for found in sets)
    return PositionDataset(sets, Mixture(counts, 3, batch, **mixture), CANVAS, cache)  # type: ignore[arg-type]


def global_batches(
    dataset: PositionDataset, start: int, num_steps: int, micro_batch: int = 8, world: int = 1, num_workers: int = 0
) -> list[str]:
    """One hash per global batch: of keys, pixels, crops and masks, row by row, whatever the ranks are."""
    rows: list[list[str]] = [[] for _ in range(num_steps)]
    for rank in range(world):
        cfg = StreamConfig(micro_batch, rank, world, num_workers)
        batches = micro_batches(dataset, cfg, start)
        num_micro = -(-dataset.batch_size // (world * micro_batch))
        for step in range(num_steps):
            for _ in range(num_micro):
                rows[step] += _rows(next(batches))
        batches.close()  # type: ignore[attr-defined]
    return [hashlib.sha256("".join(some).encode()).hexdigest() for some in rows]


def _rows(batch: Batch) -> list[str]:
    frames, regions = split_pixels(batch.pixels)
    cfg = AugmentConfig()
    images, inside = augment(frames, regions, batch.positions, batch.datasets, cfg, SIZE, seed=3)
    masks = draw_masks(valid_patches(inside, PATCH, MASKS), batch.positions, MASKS, seed=3)
    parts = (frames, regions, images, masks.context_ids, masks.target_ids, masks.target_weight)
    if (padding := batch.positions < 0).any():
        assert not masks.target_weight[padding].any()
        assert not batch.key_hashes[padding].any()
    return [
        f"{position} {key} " + _digest(*(part[row] for part in parts))
        for row, (position, key) in enumerate(zip(batch.positions.tolist(), batch.key_hashes.tolist(), strict=True))
        if position >= 0
    ]


def _digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


def picture(number: int, side: int = 24) -> np.ndarray:
    rng = np.random.default_rng(number)
    return cv2.GaussianBlur(rng.integers(0, 256, (side, side + 8), np.uint8), (0, 0), 1)


def write_tar(path: Path, names: list[str], tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar of pictures as anybody writes it."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for number, name in enumerate(names):
            data = cv2.imencode(f".{name.rpartition('.')[2]}", picture(number))[1].tobytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path

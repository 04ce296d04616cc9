"""One optimizer step, and what must happen once before the first: measure the targets, or resume.

Everything on the device is a function of the sample positions. Dimensions: B images, S pixels a side, N patches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from sharding.loader import StreamConfig, micro_batches
from sharding.order import micro_batches_per_step
from sharding.stream import Batch, PositionDataset
from train.augment import augment
from train.checkpoint import Checkpoint, restore_moments
from train.config import PretrainConfig
from train.engine import set_still
from train.masks import Masks, draw_masks, valid_patches
from train.objectives.pixel import PixelTargets
from train.objectives.salt import SaltTargets
from train.tracking import Tracker

Targets = SaltTargets | PixelTargets


@dataclass(frozen=True)
class View:
    """One micro batch on the device, as the step sees it: images (B, 1, S, S) in 0..1, valid (B, N) bool, masks."""

    images: torch.Tensor
    valid: torch.Tensor
    masks: Masks


@dataclass(frozen=True)
class Job:
    """All that a rank needs for its steps."""

    cfg: PretrainConfig
    engine: Any
    targets: Targets
    dataset: PositionDataset
    rank: int
    world: int
    tracker: Tracker | None


def view_of(batch: Batch, cfg: PretrainConfig, patch: int, device: torch.device) -> View:
    """Move, augment, and draw masks; all of it a function of the sample positions."""
    positions = batch.positions.to(device, non_blocking=True)
    frames, regions = (part.to(device, non_blocking=True) for part in (batch.frames, batch.regions))
    datasets = torch.zeros_like(positions)
    images, inside = augment(frames, regions, positions, datasets, cfg.augment, cfg.student.image_size, cfg.data.seed)
    valid = valid_patches(inside, patch, cfg.masks)
    return View(images, valid, draw_masks(valid, positions, cfg.masks, cfg.data.seed))


def run_step(job: Job, views: list[View]) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimizer step: loss and baseline as this rank's share of the global mean, still on the device."""
    scale = 1 / total_weight(views).clamp(min=1)
    # DeepSpeed averages over ranks and micro batches; ours is a mean over all real targets of the step
    undo_averaging = job.world * len(views)
    totals = torch.zeros(2, device=job.engine.device)
    for view in views:
        wanted = job.targets(view.images)
        loss, baseline = job.engine(view.images, view.masks, wanted, scale)
        job.engine.backward(loss * undo_averaging)
        job.engine.step()  # updates the weights on the last micro batch only
        totals += torch.stack([loss.detach(), baseline])
    return totals[0], totals[1]


def total_weight(views: list[View]) -> torch.Tensor:
    """Real target tokens of the step over all ranks, () float32."""
    total = torch.stack([view.masks.target_weight.sum() for view in views]).sum()
    distributed.all_reduce(total)
    return total


def measure_targets(job: Job, patch: int) -> None:
    """Measure the normalisation on the first global batches: every rank computes the same from the same samples."""
    cfg = job.cfg
    stream = StreamConfig(cfg.optim.batch, rank=0, world=1, num_workers=0)
    batches = micro_batches(job.dataset, stream, start=0)
    views = (view_of(next(batches), cfg, patch, job.engine.device) for _ in range(cfg.target.measure_batches))
    job.targets.measure((view.images, view.valid) for view in views)


def resume(job: Job, checkpoint: Checkpoint, stream: Iterator[Batch]) -> None:
    """Bring back moments and target normalisation; the weights were loaded before the engine was built."""
    if isinstance(job.targets, SaltTargets):
        device = job.engine.device
        job.targets.shift = checkpoint.tensors["target.shift"].to(device)
        job.targets.scale = checkpoint.tensors["target.scale"].to(device)
    set_still(job.engine)  # AdamW makes its state on its first step: take one that changes nothing
    patch = job.engine.module.student.patch
    num = micro_batches_per_step(job.cfg.optim.batch, job.cfg.run.micro_batch, job.world)
    run_step(job, [view_of(next(stream), job.cfg, patch, job.engine.device) for _ in range(num)])
    restore_moments(job.engine, checkpoint)

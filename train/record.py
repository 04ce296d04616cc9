"""What a run says of itself: metrics, verdict, pictures, checkpoints."""

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import distributed

from train.checkpoint import CheckpointStore
from train.data import ReadFacts, reduce_reading
from train.engine import gradient_norm, on_rank_0
from train.health import is_collapsed, verdict
from train.job import Job
from train.pictures import features_png, masks_png
from train.step import STATISTICS, Prepared
from train.tracking import Tracker
from train.validation import Validation, validate

_MASK_METRICS = ("masks/context_filled", "masks/targets_kept", "masks/rejected", "masks/failed")


@dataclass(frozen=True)
class Record:
    """Where a rank puts what it finds.

    Attributes:
        store: checkpoints.
        tracker: on rank 0, None elsewhere.
        peak: FLOP/s that this device reaches in matrix products.
        step_flops: useful ones of a step, per image.
        logged: the last metrics of each name, on rank 0.

    """

    store: CheckpointStore
    tracker: Tracker | None
    peak: float
    step_flops: float
    logged: dict[str, float] = field(default_factory=dict)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Log on rank 0, which may fail: every rank must call it."""
        on_rank_0(partial(self._write, step, metrics))

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        assert self.tracker is not None  # this is rank 0
        self.logged.update(metrics)
        self.tracker.log(step, metrics)


def log_step(
    job: Job, step: int, totals: torch.Tensor, prepared: list[Prepared], read: ReadFacts, record: Record, stop: bool
) -> bool:
    """Reduce over ranks and write; the only host sync of the loop. Returns whether any rank was asked to stop.

    Raises:
        FloatingPointError: the loss is not finite.
        InputError: too many bad samples.

    """
    job.device_seconds.add_(read.seconds * job.world)
    reading = reduce_reading(read, job.engine.device) | settle_bad(job, step)
    masks = prepared[-1].view.masks[0]
    shares = torch.stack([part.mean() for part in (masks.filled, masks.target_weight, masks.rejected, masks.failed)])
    values = torch.cat([totals, shares / job.world, totals.new_tensor([stop])])
    distributed.all_reduce(values)
    if not values.isfinite().all():
        raise FloatingPointError(_where_not_finite(job, step, totals))
    *found, wants_stop = values.tolist()
    metrics = dict(zip((*STATISTICS, *_MASK_METRICS), found, strict=True))
    record.write(step, metrics | _optimizer_metrics(job) | _speed(job, read, record) | reading)
    return bool(wants_stop)


def settle_bad(job: Job, step: int) -> dict[str, int]:
    """Bad samples up to a step, over all ranks; every rank must call it.

    Raises:
        InputError: more of an epoch than `data.max_bad_fraction`.

    """
    return job.bad.settle((step + 1) * job.cfg.optim.batch, job.engine.device)


def _optimizer_metrics(job: Job) -> dict[str, float]:
    group, norm = job.engine.optimizer.param_groups[0], gradient_norm(job.engine)
    rates = {"train/learning_rate": group["lr"], "train/weight_decay": group["weight_decay"]}
    return rates if norm is None else rates | {"train/gradient_norm": norm}


def _speed(job: Job, read: ReadFacts, record: Record) -> dict[str, float]:
    rate = job.cfg.optim.batch * read.num_steps / read.seconds
    return {
        "perf/images_per_s": rate,
        "perf/model_flop_utilisation": rate * record.step_flops / (record.peak * job.world),
        "perf/device_hours": float(job.device_seconds) / 3600,
    }


def _where_not_finite(job: Job, step: int, totals: torch.Tensor) -> str:
    flags = [torch.zeros(1, device=totals.device) for _ in range(job.world)]
    distributed.all_gather(flags, (~totals.isfinite()).any().float()[None])
    ranks = ", ".join(str(rank) for rank, flag in enumerate(flags) if flag > 0)
    return f"the loss is not finite at step {step} on rank {ranks}; {_way_out(job)}"


def _way_out(job: Job) -> str:
    return f"the last good checkpoint is in {job.cfg.run.dir}/checkpoints; lower optim.lr or look at the data"


def save(job: Job, step: int, record: Record, *, with_validation: bool) -> None:
    """Validate, then save; the score that may make this the best checkpoint is the held-out loss.

    Raises:
        FloatingPointError: the held-out loss or the features are not finite.
        InputError: too many bad samples.

    """
    found = validate(job) if with_validation else None
    metrics = found.metrics if found is not None else {}
    if not all(map(math.isfinite, metrics.values())):
        raise FloatingPointError(f"held-out images: loss or features are not finite after step {step}; {_way_out(job)}")
    if with_validation and job.probe is not None:
        metrics |= job.probe.score(job.engine, job.look, job.cfg.run.micro_batch, (job.rank, job.world))
    if metrics:
        record.write(step, metrics)
    if found is not None:
        on_rank_0(partial(_draw, job, step, found, record.tracker))
    if record.tracker is not None and record.logged:
        record.tracker.tag("verdict", said := verdict(record.logged))
        print(f"step {step + 1}: {said}")
    comparable = job.objective.is_frozen and not is_collapsed(metrics)
    score = metrics.get("val/loss") if comparable else None
    settle_bad(job, step)  # a checkpoint has all of them
    record.store.save(job.engine, step + 1, job.state(), score)


def _draw(job: Job, step: int, found: Validation, tracker: Tracker | None) -> None:
    assert tracker is not None  # this is rank 0
    folder = job.cfg.run.dir / "pictures"
    folder.mkdir(exist_ok=True)
    patch = job.engine.module.student.patch
    pictures = {"masks": masks_png(found.view, patch), "features": features_png(found.view, found.tokens)}
    for name, png in pictures.items():
        path = Path(folder / f"{name}-{step + 1:08d}.png")
        path.write_bytes(png)
        tracker.artifact(path, "pictures")

"""The hot loop: read, prepare, step; log, validate and save when it is due."""

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import distributed

from sharding.order import micro_batches_per_step
from sharding.stream import CAUSES, Batch
from train.checkpoint import CheckpointStore
from train.config import PretrainConfig
from train.data import ReadFacts, reduce_reading
from train.engine import gradient_norm, set_schedule
from train.health import is_collapsed, verdict
from train.job import Job
from train.pictures import features_png, masks_png
from train.schedule import due
from train.step import STATISTICS, Prepared, keep_until_used, prepare, run_step
from train.tracking import Tracker
from train.validation import Validation, validate


class StoppedError(Exception):
    """The run was asked to end (SIGTERM), and has saved a checkpoint; it goes on with the same command."""


class Record:
    """Where a rank puts what it finds.

    Args:
        store: checkpoints.
        tracker: on rank 0, None elsewhere.
        peak: FLOP/s that this device reaches in matrix products.
        step_flops: useful ones of a step, per image.

    """

    def __init__(self, store: CheckpointStore, tracker: Tracker | None, peak: float, step_flops: float) -> None:
        self.store, self.tracker, self.peak, self.step_flops = store, tracker, peak, step_flops


def train(job: Job, stream: Iterator[Batch], start: int, record: Record, asked_to_stop: Event) -> None:
    """Run optimizer steps start..steps.

    Raises:
        FloatingPointError: the loss is not finite; names step and rank.
        InputError: too many bad samples.
        StoppedError: see there.

    """
    cfg, student = job.cfg, job.engine.module.student
    reader = Reader(job, stream)
    for step in progress_bar(start, cfg, job.rank):
        batches, prepared = reader.next_step()
        set_schedule(job.engine, step, cfg)
        totals = run_step(job.engine, prepared, job.world)
        job.objective.after_step(student, step)
        if job.average is not None:
            job.average.update(student, cfg.optim.average)
        stop = False
        if due(step, cfg.run.log_every, cfg.optim.steps):
            stop = log_step(job, step, totals, prepared, reader.facts(batches), record, asked_to_stop.is_set())
        if stop or due(step, cfg.run.save_every, cfg.optim.steps):
            save(job, step, record)
            reader.restart_clock()
        if stop:
            raise StoppedError(f"run {cfg.run.dir}: asked to stop, saved after step {step}; the same command goes on")


class Reader:
    """Prepared steps. Targets that depend on no step are computed one step ahead, on a GPU beside the step before.

    Args:
        job: of this rank.
        stream: micro batches of this rank.

    """

    def __init__(self, job: Job, stream: Iterator[Batch]) -> None:
        self._job, self._stream = job, stream
        self._num = micro_batches_per_step(job.cfg.optim.batch, job.cfg.run.micro_batch, job.world)
        stream_type: Any = torch.cuda.Stream  # has no types
        self._side = stream_type() if job.engine.device.type == "cuda" and job.objective.is_frozen else None
        self._ahead = self._begin() if self._side is not None else None
        self._num_bad = torch.zeros(len(CAUSES), dtype=torch.int64)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Time from here on is of steps."""
        self._started, self._waited = time.perf_counter(), 0.0

    def next_step(self) -> tuple[list[Batch], list[Prepared]]:
        """Micro batches of the next step."""
        if self._side is None:
            found = self._begin()
        else:
            assert self._ahead is not None
            torch.cuda.current_stream().wait_stream(self._side)
            found = self._ahead
            keep_until_used(found[1])
            self._side.wait_stream(torch.cuda.current_stream())
            self._ahead = self._begin()
        self._num_bad += sum(batch.num_bad for batch in found[0])
        return found

    def facts(self, batches: list[Batch]) -> ReadFacts:
        """Of the steps since the last call."""
        seconds = time.perf_counter() - self._started
        keys = sum(int(batch.key_hashes.sum()) for batch in batches)
        facts = ReadFacts(seconds, self._waited, keys, self._num_bad)
        self.restart_clock()
        return facts

    def _begin(self) -> tuple[list[Batch], list[Prepared]]:
        asked = time.perf_counter()
        batches = [next(self._stream) for _ in range(self._num)]
        self._waited = getattr(self, "_waited", 0.0) + time.perf_counter() - asked
        job = self._job
        with torch.cuda.stream(self._side):  # None: no other stream
            return batches, [prepare(job.look(batch), job.objective, job.means, job.cfg) for batch in batches]


def log_step(
    job: Job, step: int, totals: torch.Tensor, prepared: list[Prepared], read: ReadFacts, record: Record, stop: bool
) -> bool:
    """Reduce over ranks and write; the only host sync of the loop. Returns whether any rank was asked to stop."""
    cfg = job.cfg
    job.seconds.add_(read.seconds)
    reading = reduce_reading(read, cfg, job.dataset.order.num_samples, job.engine.device)
    masks = prepared[-1].view.masks[0]
    shares = torch.stack([part.mean() for part in (masks.filled, masks.target_weight, masks.rejected, masks.failed)])
    values = torch.cat([totals, shares / job.world, totals.new_tensor([stop])])
    distributed.all_reduce(values)
    if not values.isfinite().all():
        raise FloatingPointError(_where_not_finite(job, step, totals))
    *found, wants_stop = values.tolist()
    names = (*STATISTICS, "masks/context_filled", "masks/targets_kept", "masks/rejected", "masks/failed")
    if record.tracker is not None:
        group = job.engine.optimizer.param_groups[0]
        rate = cfg.optim.batch * min(cfg.run.log_every, step + 1) / read.seconds
        perf = {
            "perf/images_per_s": rate,
            "perf/model_flop_utilisation": rate * record.step_flops / (record.peak * job.world),
            "perf/device_hours": float(job.seconds) * job.world / 3600,
        }
        rates = {"train/learning_rate": group["lr"], "train/weight_decay": group["weight_decay"]}
        norm = {"train/gradient_norm": gradient_norm(job.engine)}
        record.tracker.log(step, dict(zip(names, found, strict=True)) | rates | norm | perf | reading)
    return bool(wants_stop)


def _where_not_finite(job: Job, step: int, totals: torch.Tensor) -> str:
    flags = [torch.zeros(1, device=totals.device) for _ in range(job.world)]
    distributed.all_gather(flags, (~totals.isfinite()).any().float()[None])
    ranks = ", ".join(str(rank) for rank, flag in enumerate(flags) if flag > 0)
    return (
        f"the loss is not finite at step {step} on rank {ranks}; the last good checkpoint is in "
        f"{job.cfg.run.dir}/checkpoints; lower optim.lr or look at the data"
    )


def save(job: Job, step: int, record: Record) -> None:
    """Validate, then save; the score that may make this the best checkpoint is the held-out loss."""
    found = validate(job)
    if job.probe is not None:
        labelled = job.probe.score(job.engine, job.look, job.cfg.run.micro_batch, (job.rank, job.world))
        if record.tracker is not None:
            record.tracker.log(step, labelled)
    score = None
    if found is not None:
        comparable = job.objective.is_frozen and not is_collapsed(found.metrics)
        score = found.metrics["val/loss"] if comparable else None
        if record.tracker is not None:
            record.tracker.log(step, found.metrics)
            record.tracker.tag("verdict", verdict(found.metrics))
            _draw(job, step, found, record.tracker)
    record.store.save(job.engine, step + 1, job.state(), score)


def _draw(job: Job, step: int, found: Validation, tracker: Tracker) -> None:
    folder = job.cfg.run.dir / "pictures"
    folder.mkdir(exist_ok=True)
    patch = job.engine.module.student.patch
    pictures = {"masks": masks_png(found.view, patch), "features": features_png(found.view, found.tokens)}
    for name, png in pictures.items():
        path = Path(folder / f"{name}-{step + 1:08d}.png")
        path.write_bytes(png)
        tracker.artifact(path, "pictures")


def progress_bar(start: int, cfg: PretrainConfig, rank: int) -> Iterator[int]:
    """Steps start..steps, with a bar on rank 0."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    steps = range(start, cfg.optim.steps)
    with Progress(*columns, disable=rank > 0) as progress:
        yield from progress.track(
            steps, total=cfg.optim.steps, completed=start, description=f"pretrain {cfg.run.dir.name} ({cfg.objective})"
        )

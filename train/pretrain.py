"""Pretrain an encoder: `deepspeed train/pretrain.py --config train/configs/demo.yaml [section.key=value ...]`.

The same command continues a run that was stopped: the newest checkpoint in `run.dir` decides. It also runs under
torchrun, and as plain `python train/pretrain.py` in one process.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import distributed

from sharding.manifest import load_manifest
from sharding.order import micro_batches_per_step
from sharding.recording import InputError
from sharding.stream import Batch, PositionDataset, StreamConfig, micro_batches
from train.augment import crop_and_flip
from train.checkpoint import Checkpoint, latest_checkpoint, restore_moments, save_checkpoint
from train.config import PretrainConfig, flat_config, load_config, results_differ, save_config
from train.engine import build_engine, set_schedule, set_still, start_distributed
from train.masks import Masks, check_masks, draw_masks, valid_patches
from train.model import LatentPredictor
from train.objectives.pixel import PixelTargets
from train.objectives.salt import SaltTargets, salt_targets
from train.schedule import due
from train.teacher import load_teacher
from train.tracking import Tracker, git_commit, tracking_uri
from train.vit import load_strictly, save_encoder

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
    """Move, crop and flip, and draw masks; all of it a function of the sample positions."""
    positions = batch.positions.to(device, non_blocking=True)
    frames, regions = (part.to(device, non_blocking=True) for part in (batch.frames, batch.regions))
    images, inside = crop_and_flip(frames, regions, positions, cfg.augment, cfg.student.image_size, cfg.data.seed)
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


def train(job: Job, stream: Iterator[Batch], start: int) -> None:
    """Run optimizer steps start..steps."""
    cfg, device, patch = job.cfg, job.engine.device, job.engine.module.student.patch
    num_micro_batches = micro_batches_per_step(cfg.optim.batch, cfg.run.micro_batch, job.world)
    clock, waited = time.perf_counter(), 0.0
    for step in progress_bar(start, cfg, job.rank):
        asked = time.perf_counter()
        batches = [next(stream) for _ in range(num_micro_batches)]
        waited += time.perf_counter() - asked
        set_schedule(job.engine, step, cfg)
        views = [view_of(batch, cfg, patch, device) for batch in batches]
        loss, baseline = run_step(job, views)
        if due(step, cfg.run.log_every, cfg.optim.steps):
            log_step(job, step, loss, baseline, views, (time.perf_counter() - clock, waited))
            clock, waited = time.perf_counter(), 0.0
        if due(step, cfg.run.save_every, cfg.optim.steps):
            save_checkpoint(job.engine, step + 1, target_tensors(job.targets), cfg.run.dir, cfg.run.keep)


def log_step(
    job: Job, step: int, loss: torch.Tensor, baseline: torch.Tensor, views: list[View], clocks: tuple[float, float]
) -> None:
    """Reduce over ranks and write; the only host sync of the loop."""
    masks = views[-1].masks
    share = torch.stack([masks.filled.mean(), masks.target_weight.mean()]) / job.world
    values = torch.cat([torch.stack([loss, baseline]), share])
    distributed.all_reduce(values)
    global_loss, global_baseline, filled, kept = values.tolist()
    if not values.isfinite().all():
        raise FloatingPointError(
            f"loss is {global_loss} at step {step}; the last good checkpoint is in {job.cfg.run.dir}/checkpoints"
        )
    if job.tracker is None:
        return
    cfg = job.cfg
    every = min(cfg.run.log_every, step + 1)
    group = job.engine.optimizer.param_groups[0]
    job.tracker.log(
        step,
        {
            "train/loss": global_loss,
            "train/loss_of_predicting_the_mean": global_baseline,
            "train/learning_rate": group["lr"],
            "train/weight_decay": group["weight_decay"],
            "masks/context_filled": filled,
            "masks/targets_kept": kept,
            "perf/images_per_s": cfg.optim.batch * every / clocks[0],
            "perf/data_wait_share": clocks[1] / clocks[0],
        },
    )


def progress_bar(start: int, cfg: PretrainConfig, rank: int) -> Iterator[int]:
    """Steps start..steps, with a bar on rank 0."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    steps = range(start, cfg.optim.steps)
    with Progress(*columns, disable=rank > 0) as progress:
        yield from progress.track(
            steps, total=cfg.optim.steps, completed=start, description=f"pretrain {cfg.run.dir.name} ({cfg.objective})"
        )


def target_tensors(targets: Targets) -> dict[str, torch.Tensor]:
    """What a checkpoint keeps of the targets: the measured normalisation."""
    return {"target.shift": targets.shift, "target.scale": targets.scale} if isinstance(targets, SaltTargets) else {}


def make_targets(cfg: PretrainConfig, grid: int, patch: int, device: torch.device) -> tuple[Targets, str]:
    """Targets of the objective, and the teacher's hash (`none` without a teacher)."""
    if cfg.teacher is None:
        return PixelTargets(patch), "none"
    teacher, digest = load_teacher(cfg.teacher, grid)
    return salt_targets(teacher, cfg.target, device), digest


def measure_targets(job: Job, patch: int) -> None:
    """Measure the normalisation on the first global batches: every rank computes the same from the same samples."""
    cfg = job.cfg
    stream = StreamConfig(
        batch=cfg.optim.batch, micro_batch=cfg.optim.batch, canvas=cfg.data.canvas, seed=cfg.data.seed,
        rank=0, world=1, num_workers=0,
    )  # fmt: skip
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


def open_run(cfg: PretrainConfig, checkpoint: Checkpoint | None) -> None:
    """Make the run directory, or check that the one that is there belongs to this config.

    Raises:
        InputError: names the settings that differ.

    """
    path = cfg.run.dir / "config.yaml"
    if path.exists() and checkpoint is not None:
        different = results_differ(load_config(path, []), cfg)
        if different:
            raise InputError(
                f"run {cfg.run.dir}: is at step {checkpoint.step} of another config ({'; '.join(different[:3])}); "
                "give another run.dir, or the old settings"
            )
    cfg.run.dir.mkdir(parents=True, exist_ok=True)
    save_config(cfg, path)


def main(argv: list[str]) -> None:
    """Run or continue one pretraining."""
    cfg = parse(argv)
    for directory in cfg.data.shards:
        load_manifest(directory)  # say what is missing before a process group starts
    rank, world = start_distributed()
    torch.manual_seed(cfg.data.seed)
    checkpoint = latest_checkpoint(cfg.run.dir)
    start = checkpoint.step if checkpoint else 0
    if rank == 0:
        open_run(cfg, checkpoint)
    job, data_hash = build(cfg, checkpoint, rank, world)
    status = "FAILED"
    try:
        run(job, checkpoint, start, data_hash)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if job.tracker is not None:
            job.tracker.close(status)
    distributed.barrier()
    distributed.destroy_process_group()


def build(cfg: PretrainConfig, checkpoint: Checkpoint | None, rank: int, world: int) -> tuple[Job, dict[str, str]]:
    """Build data, targets, module and engine; also returns the facts that go with the exported encoder."""
    dataset = PositionDataset(list(cfg.data.shards), cfg.data.canvas, cfg.data.seed)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    probe = LatentPredictor(cfg, latent_width=1).student
    check_masks(cfg.masks, probe.grid)
    targets, teacher_hash = make_targets(cfg, probe.grid, probe.patch, device)
    torch.manual_seed(cfg.data.seed)
    module = LatentPredictor(cfg, targets.width)
    if checkpoint is not None:
        load_strictly(module, checkpoint.part("weights"), f"checkpoint of step {checkpoint.step}")
    engine = build_engine(module, cfg, world)
    facts = {
        "objective": cfg.objective,
        "teacher_sha256": teacher_hash,
        "data_sha256": ",".join(load_manifest(path).sha256() for path in cfg.data.shards),
        "git_commit": git_commit(),
    }
    tracker = None
    if rank == 0:
        tags = facts | {"world_size": str(world), "resumed_at_step": str(checkpoint.step if checkpoint else 0)}
        tracker = Tracker(
            tracking_uri(cfg.run.tracking_uri), cfg.run.experiment, cfg.run.dir,
            params=flat_config(cfg), tags=tags, start=checkpoint.step if checkpoint else 0,
        )  # fmt: skip
    return Job(cfg, engine, targets, dataset, rank, world, tracker), facts


def run(job: Job, checkpoint: Checkpoint | None, start: int, facts: dict[str, str]) -> None:
    """Resume or measure, train, export."""
    cfg = job.cfg
    stream_cfg = StreamConfig(
        batch=cfg.optim.batch, micro_batch=cfg.run.micro_batch, canvas=cfg.data.canvas, seed=cfg.data.seed,
        rank=job.rank, world=job.world, num_workers=cfg.run.num_workers,
    )  # fmt: skip
    if start < cfg.optim.steps:
        if checkpoint is None:
            measure_targets(job, job.engine.module.student.patch)
        else:
            resume(job, checkpoint, micro_batches(job.dataset, stream_cfg, start))
        train(job, micro_batches(job.dataset, stream_cfg, start), start)
    if job.tracker is not None:
        save_encoder(job.engine.module.student, cfg.run.dir / "encoder", facts | {"steps": str(cfg.optim.steps)})
        job.tracker.artifact(cfg.run.dir / "encoder", "encoder")
        job.tracker.artifact(cfg.run.dir / "config.yaml")
        print(f"encoder: {cfg.run.dir / 'encoder'}\nnext: us-jepa probe {cfg.run.dir} --data FOLDER_WITH_LABELS_CSV")


def parse(argv: list[str]) -> PretrainConfig:
    """Read the command line; the launcher's --local_rank is dropped, the environment has it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML file; see train/configs and train/config.py")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for example optim.lr=3e-4")
    known = parser.parse_args([word for word in argv if not word.startswith("--local_rank")])
    return load_config(known.config, known.overrides)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # once, not once per rank
            print(f"pretrain: {error}", file=sys.stderr)
        sys.exit(2)

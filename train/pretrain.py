"""Pretrain an encoder: `deepspeed train/pretrain.py --config train/configs/demo.yaml [section.key=value ...]`.

The same command continues a run that was stopped: the newest checkpoint in `run.dir` decides. It also runs under
torchrun, and as plain `python train/pretrain.py` in one process.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import distributed

from sharding.loader import micro_batches
from sharding.order import micro_batches_per_step
from sharding.recording import InputError
from sharding.shard_set import ShardSet
from sharding.stream import CAUSES, Batch
from train.checkpoint import Checkpoint, CheckpointStore, latest_checkpoint
from train.config import PretrainConfig
from train.config_file import flat_config, load_config, results_differ, save_config
from train.data import ReadFacts, find_sets, open_dataset, reduce_reading, stream_of_rank
from train.engine import build_engine, set_schedule, start_distributed
from train.masks import check_masks
from train.model import LatentPredictor
from train.objectives.pixel import PixelTargets
from train.objectives.salt import SaltTargets, salt_targets
from train.schedule import due
from train.step import Job, Targets, View, measure_targets, resume, run_step, view_of
from train.teacher import load_teacher
from train.tracking import Tracker, git_commit, tracking_uri
from train.vit import load_strictly, new_student, save_encoder


def train(job: Job, stream: Iterator[Batch], start: int, store: CheckpointStore) -> None:
    """Run optimizer steps start..steps."""
    cfg, device, patch = job.cfg, job.engine.device, job.engine.module.student.patch
    num_micro_batches = micro_batches_per_step(cfg.optim.batch, cfg.run.micro_batch, job.world)
    clock, waited = time.perf_counter(), 0.0
    num_bad = torch.zeros(len(CAUSES), dtype=torch.int64)
    for step in progress_bar(start, cfg, job.rank):
        asked = time.perf_counter()
        batches = [next(stream) for _ in range(num_micro_batches)]
        waited += time.perf_counter() - asked
        num_bad += sum(batch.num_bad for batch in batches)
        set_schedule(job.engine, step, cfg)
        views = [view_of(batch, cfg, patch, device) for batch in batches]
        loss, baseline = run_step(job, views)
        if due(step, cfg.run.log_every, cfg.optim.steps):
            read = ReadFacts(
                time.perf_counter() - clock, waited, sum(int(b.key_hashes.sum()) for b in batches), num_bad
            )
            log_step(job, step, loss, baseline, views, read)
            clock, waited = time.perf_counter(), 0.0
        if due(step, cfg.run.save_every, cfg.optim.steps):
            store.save(job.engine, step + 1, target_tensors(job.targets))


def log_step(
    job: Job, step: int, loss: torch.Tensor, baseline: torch.Tensor, views: list[View], read: ReadFacts
) -> None:
    """Reduce over ranks and write; the only host sync of the loop."""
    cfg = job.cfg
    reading = reduce_reading(read, cfg, job.dataset.order.num_samples, job.engine.device)
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
            "perf/images_per_s": cfg.optim.batch * every / read.seconds,
            **reading,
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
    sets = find_sets(cfg)  # say what is missing before a process group starts
    rank, world = start_distributed()
    torch.manual_seed(cfg.data.seed)
    checkpoint = latest_checkpoint(cfg.run.dir)
    start = checkpoint.step if checkpoint else 0
    if rank == 0:
        open_run(cfg, checkpoint)
    job, facts = build(cfg, sets, checkpoint, (rank, world))
    status = "FAILED"
    try:
        run(job, checkpoint, start, facts)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if job.tracker is not None:
            job.tracker.close(status)
    distributed.barrier()
    distributed.destroy_process_group()


def build(
    cfg: PretrainConfig, sets: list[ShardSet], checkpoint: Checkpoint | None, place: tuple[int, int]
) -> tuple[Job, dict[str, str]]:
    """Build data, targets, module and engine of (rank, world); also returns the facts of the exported encoder."""
    rank, world = place
    dataset = open_dataset(cfg, sets)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    probe = new_student(cfg.student.arch, cfg.student.image_size)
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
        "data_sha256": ",".join(found.sha256 for found in sets),
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
    store = CheckpointStore(cfg.run.dir, cfg.run.keep, cfg.run.copy_to)
    stream_cfg = stream_of_rank(cfg, job.rank, job.world)
    if start < cfg.optim.steps:
        if checkpoint is None:
            measure_targets(job, job.engine.module.student.patch)
        else:
            resume(job, checkpoint, micro_batches(job.dataset, stream_cfg, start))
        train(job, micro_batches(job.dataset, stream_cfg, start), start, store)
    if job.tracker is not None:
        export(cfg, facts)
        job.tracker.artifact(cfg.run.dir / "encoder", "encoder")
        job.tracker.artifact(cfg.run.dir / "config.yaml")
        print(f"encoder: {cfg.run.dir / 'encoder'}\nnext: us-jepa probe {cfg.run.dir} --data FOLDER_WITH_LABELS_CSV")
    store.close()


def export(cfg: PretrainConfig, facts: dict[str, str]) -> None:
    """Write the student of the last checkpoint as a self-describing folder `encoder/` of the run directory."""
    last = latest_checkpoint(cfg.run.dir)
    if last is None:
        raise RuntimeError(f"run {cfg.run.dir}: no checkpoint after training")
    student = new_student(cfg.student.arch, cfg.student.image_size)
    load_strictly(student, last.part("weights.student"), f"checkpoint of step {last.step}")
    save_encoder(student, cfg.run.dir / "encoder", facts | {"steps": str(last.step)})


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

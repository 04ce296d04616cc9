"""One pretraining from its config to the exported encoder; command.py reads the command line and calls `start`."""

import logging
import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import NamedTuple

from torch import distributed

from sharding.loader import micro_batches
from sharding.recording import InputError
from sharding.shard_set import ShardSet
from train.agreement import agreed_checkpoint, check_same
from train.checkpoint import Checkpoint, CheckpointStore
from train.command import MENDABLE, STOPPED, say
from train.config import PretrainConfig
from train.config_file import flat_config, load_config, results_differ, save_config
from train.data import find_sets, stream_of_rank
from train.engine import is_lost_rank, matmul_rate, on_rank_0, start_distributed, wait_for_rank_0
from train.flops import costs_of, describe_costs, step_flops_of
from train.job import Job, begin, build_job
from train.loop import StoppedError, train
from train.mlflow_store import tracking_uri
from train.record import Record
from train.smoke import describe_config, smoke_config
from train.tracking import Tracker, git_commit
from train.vit import load_strictly, new_student, save_encoder

_log = logging.getLogger(__name__)


class Outputs(NamedTuple):
    """Where a rank puts what it makes.

    Attributes:
        store: checkpoints.
        tracker: on rank 0, None elsewhere.

    """

    store: CheckpointStore
    tracker: Tracker | None


class LostRankError(Exception):
    """Another rank, or the network to it, is gone."""

    def __init__(self, cause: RuntimeError) -> None:
        super().__init__(
            f"rank {os.environ['RANK']}: has lost another rank ({str(cause).partition(chr(10))[0][:200]}); see what "
            "the others print first, and the network between hosts. The same command goes on from the last checkpoint"
        )


def open_run(cfg: PretrainConfig, checkpoint: Checkpoint | None) -> None:
    """Make the run directory, or check that the one that is there belongs to this config.

    Raises:
        InputError: names the settings that differ.

    """
    path = cfg.run.dir / "config.yaml"
    if path.exists() and (different := results_differ(load_config(path, []), cfg)):
        if checkpoint is None:  # nothing of the other config is kept: this one is a run of its own in MLflow
            (cfg.run.dir / "run.json").unlink(missing_ok=True)
        else:
            raise InputError(
                f"run {cfg.run.dir}: is at step {checkpoint.step} of another config ({'; '.join(different[:3])}); "
                "give another run.dir, or the old settings"
            )
    cfg.run.dir.mkdir(parents=True, exist_ok=True)
    save_config(cfg, path)


def start(cfg: PretrainConfig, is_smoke: bool) -> int:
    """Run or continue; returns the exit code, and prints what a user can mend."""
    try:
        main(cfg, is_smoke)
    except InputError as error:
        say(error)
        return MENDABLE
    except FloatingPointError as error:
        say(error)
        return 1
    except StoppedError as stopped:
        say(stopped)
        return STOPPED
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        say(LostRankError(error))
        return 1
    return 0


def main(cfg: PretrainConfig, is_smoke: bool = False) -> None:
    """Run or continue, or try at reduced size."""
    if not is_smoke:
        pretrain(cfg)
        return
    print(describe_config(cfg))
    with TemporaryDirectory() as folder:
        pretrain(smoke_config(cfg, Path(folder)))


def pretrain(cfg: PretrainConfig) -> None:
    """Run or continue one pretraining."""
    asked_to_stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.set())
    sets = find_sets(cfg)  # say what is missing before a process group starts
    rank, world = start_distributed()
    checkpoint = agreed_checkpoint(cfg, sets)
    on_rank_0(lambda: open_run(cfg, checkpoint))
    job = build_job(cfg, sets, checkpoint, (rank, world))
    facts = facts_of(job, sets)
    check_same("teacher: sha256", facts["teacher_sha256"][:12], "give all hosts the same teacher")
    if checkpoint is not None:
        check_facts(cfg, checkpoint, facts)
    store = CheckpointStore(cfg.run.dir, cfg.run.keep, cfg.run.copy_to, facts)
    outputs = Outputs(store, on_rank_0(lambda: open_tracker(job, facts, checkpoint)))
    try:
        run(job, checkpoint, facts, outputs, asked_to_stop)
    except BaseException as reason:
        leave(outputs, reason)
        raise
    if not wait_for_rank_0(lambda: ship(outputs), asked_to_stop):
        raise StoppedError(f"run {cfg.run.dir}: asked to stop before all copies were made; the same command makes them")
    distributed.barrier()
    distributed.destroy_process_group()


def facts_of(job: Job, sets: list[ShardSet]) -> dict[str, str]:
    """What an exported encoder and a run's tags say of where it comes from."""
    return {
        "objective": job.cfg.objective,
        "teacher_sha256": job.objective.teacher_sha256,
        "data_sha256": ",".join(found.sha256 for found in sets),
        "git_commit": git_commit(),
    }


def check_facts(cfg: PretrainConfig, checkpoint: Checkpoint, facts: dict[str, str]) -> None:
    """Refuse to go on with another teacher or other data under the same name.

    Raises:
        InputError: says which.

    """
    for name in ("teacher_sha256", "data_sha256"):
        before = checkpoint.facts.get(name, facts[name])
        if before != facts[name]:
            raise InputError(
                f"run {cfg.run.dir}: {name} was {before[:12]} until step {checkpoint.step}, and is {facts[name][:12]} "
                "now; bring back what it was, or give another run.dir"
            )


def open_tracker(job: Job, facts: dict[str, str], checkpoint: Checkpoint | None) -> Tracker:
    """The MLflow run, on rank 0."""
    start = checkpoint.step if checkpoint else 0
    tags = facts | {"world_size": str(job.world), "resumed_at_step": str(start)}
    uri, cfg = tracking_uri(job.cfg.run.tracking_uri), job.cfg
    return Tracker(uri, cfg.run.experiment, cfg.run.dir, params=flat_config(cfg), tags=tags, start=start)


def run(job: Job, checkpoint: Checkpoint | None, facts: dict[str, str], outputs: Outputs, asked_to_stop: Event) -> None:
    """Resume or measure, train, export."""
    cfg, start = job.cfg, checkpoint.step if checkpoint else 0
    if start < cfg.optim.steps:
        begin(job, checkpoint)
        width, teacher = job.objective.width, job.objective.teacher
        if job.rank == 0:
            print(describe_costs(costs_of(cfg, width, teacher)))
        peak = matmul_rate(job.engine.device, cfg.optim.precision)
        record = Record(*outputs, peak, step_flops_of(cfg, width, teacher))
        stream = micro_batches(job.dataset, stream_of_rank(cfg, job.rank, job.world), start)
        train(job, stream, start, record, asked_to_stop)
    on_rank_0(lambda: release(cfg, outputs.store, facts, outputs.tracker))


def ship(outputs: Outputs) -> None:
    """Wait until MLflow and `run.copy_to` have all of a run that is done; on rank 0.

    Raises:
        InputError: `run.copy_to` lacks a checkpoint.

    """
    if outputs.tracker is not None:
        outputs.tracker.close("FINISHED")
    outputs.store.close()


def leave(outputs: Outputs, reason: BaseException) -> None:
    """End a run before its last step, for a reason that nothing here may hide.

    Who asks a run to stop kills it soon: then nobody waits for copies.
    """
    is_stop = isinstance(reason, StoppedError | KeyboardInterrupt)
    if outputs.tracker is not None:
        outputs.tracker.close("KILLED" if is_stop else "FAILED")
    if is_stop:
        outputs.store.leave()
        return
    try:
        outputs.store.close()
    except InputError as error:
        _log.warning("%s; the run ends for another reason: %s: %s", error, type(reason).__name__, reason)


def release(cfg: PretrainConfig, store: CheckpointStore, facts: dict[str, str], tracker: Tracker | None) -> None:
    """Export, and say where."""
    assert tracker is not None  # this is rank 0
    step = export(cfg, store, facts)
    tracker.artifact(cfg.run.dir / "encoder", "encoder")
    print(
        f"encoder: {cfg.run.dir / 'encoder'}, of step {step}\n"
        f"next: us-jepa probe {cfg.run.dir} --data FOLDER_WITH_LABELS_CSV"
    )


def export(cfg: PretrainConfig, store: CheckpointStore, facts: dict[str, str]) -> int:
    """Write the encoder of the best checkpoint, else of the last, as a self-describing folder `encoder/` of the run.

    Returns:
        its step.

    """
    chosen = store.best() or store.latest()
    if chosen is None:
        raise RuntimeError(f"run {cfg.run.dir}: no checkpoint after training")
    student = new_student(cfg.student.arch, cfg.student.image_size, cfg.student.args)
    part = "average" if cfg.optim.average else "objective" if cfg.objective == "ema" else "weights.student"
    load_strictly(student, chosen.part(part), f"checkpoint of step {chosen.step}")
    save_encoder(student, cfg.run.dir / "encoder", facts | {"steps": str(chosen.step)})
    return chosen.step

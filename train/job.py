"""All that a rank needs for its steps: built once, and brought to where a checkpoint left it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sharding.loader import StreamConfig, micro_batches
from sharding.order import micro_batches_per_step
from sharding.recording import InputError
from sharding.shard_set import ShardSet
from sharding.stream import PositionDataset
from train.average import Average
from train.bad_samples import BadSamples
from train.checkpoint import Checkpoint, restore_moments
from train.config import PretrainConfig
from train.data import open_dataset, open_held_out, open_labelled, stream_of_rank
from train.engine import build_engine, set_still
from train.health import Means, measure_means
from train.masks import check_masks
from train.objective import Look, Objective, shape_of
from train.objectives.distill import distill
from train.objectives.ema import ema
from train.objectives.pixel import pixel
from train.objectives.salt import salt
from train.online_probe import OnlineProbe
from train.step import Looker, prepare, run_step
from train.teacher import load_teacher
from train.vit import load_strictly


@dataclass(frozen=True)
class Job:
    """One rank's part of a run.

    Attributes:
        cfg: of the run.
        engine: of DeepSpeed, around objective.module.
        objective: what is predicted.
        look: batches to views.
        means: of the targets; changed in place.
        average: of the student, for release; None where it is not wanted.
        device_seconds: () float64 spent in steps, over all ranks and starts of the run; changed in place.
        bad: training samples that cannot be read; changed in place.
        dataset: training samples by position.
        held_out: of the val split; None where there is none.
        probe: of run.probe; None where there is none.
        rank, world: of this process.

    """

    cfg: PretrainConfig
    engine: Any
    objective: Objective
    look: Looker
    means: Means
    average: Average | None
    device_seconds: torch.Tensor
    bad: BadSamples
    dataset: PositionDataset
    held_out: PositionDataset | None
    probe: OnlineProbe | None
    rank: int
    world: int

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps beside weights and moments: the tensors themselves."""
        state = {f"objective.{name}": value for name, value in self.objective.state.items()}
        state |= {f"means.{name}": value for name, value in self.means._asdict().items()}
        state |= {f"average.{name}": value for name, value in (self.average.state if self.average else {}).items()}
        return state | {"clock.device_seconds": self.device_seconds, "bad_samples.state": self.bad.state}


def make_objective(cfg: PretrainConfig, device: torch.device) -> Objective:
    """Build the objective that a config names, with initial weights that depend on the seed alone.

    Raises:
        InputError: masks that do not fit the grid, or a teacher that cannot be loaded.

    """
    grid = shape_of(cfg).grid
    if cfg.objective != "distill":
        check_masks(cfg.masks, grid)
    if cfg.teacher is None:
        torch.manual_seed(cfg.data.seed)
        return pixel(cfg) if cfg.objective == "pixel" else ema(cfg, device)
    teacher, digest = load_teacher(cfg.teacher, grid, cfg.target.layers)
    torch.manual_seed(cfg.data.seed)
    if cfg.run.compile:
        teacher.compile(dynamic=False)
    return (distill if cfg.objective == "distill" else salt)(cfg, teacher, digest, device)


def build_job(cfg: PretrainConfig, sets: list[ShardSet], checkpoint: Checkpoint | None, place: tuple[int, int]) -> Job:
    """Build data, objective and engine of (rank, world)."""
    rank, world = place
    labelled = cfg.run.probe
    probe = OnlineProbe(open_labelled(cfg, labelled), labelled) if labelled is not None else None
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    objective = make_objective(cfg, device)
    module: Any = objective.module
    if checkpoint is not None:
        load_strictly(module, checkpoint.part("weights"), f"checkpoint of step {checkpoint.step}")
    average = Average(module.student, device) if cfg.optim.average else None
    shape, dataset = shape_of(cfg), open_dataset(cfg, sets)
    means = Means(
        torch.zeros(objective.width, device=device), torch.zeros(shape.grid**2, objective.width, device=device)
    )
    return Job(
        cfg, build_engine(module, cfg, world), objective, Looker(cfg, shape.patch, objective.masks, device), means,
        average, torch.zeros((), dtype=torch.float64),
        BadSamples(dataset.order.num_samples, cfg.data.max_bad_fraction), dataset, open_held_out(cfg, sets), probe,
        rank, world,
    )  # fmt: skip


def begin(job: Job, checkpoint: Checkpoint | None) -> None:
    """Measure the targets before the first step, or bring back what the checkpoint kept.

    Raises:
        InputError: the checkpoint lacks some of it, since another version of us-jepa wrote it.

    """
    if checkpoint is None:
        job.objective.measure(_first_looks(job))
        for mean, found in zip(job.means, measure_means(job.objective.targets, _first_looks(job)), strict=True):
            mean.copy_(found)
        return
    state = job.state()
    if missing := sorted(set(state) - set(checkpoint.tensors)):
        raise InputError(
            f"checkpoint of step {checkpoint.step}: has no {missing[0]}, so another version of us-jepa wrote it; "
            "go on with that version, or give another run.dir"
        )
    for name, value in state.items():
        value.data.copy_(checkpoint.tensors[name])
    set_still(job.engine)  # AdamW makes its state on its first step: take one that changes nothing
    stream = micro_batches(job.dataset, stream_of_rank(job.cfg, job.rank, job.world), checkpoint.step)
    num = micro_batches_per_step(job.cfg.optim.batch, job.cfg.run.micro_batch, job.world)
    views = [job.look(next(stream)) for _ in range(num)]
    run_step(job.engine, [prepare(view, job.objective, job.means, job.cfg) for view in views], job.world)
    stream.close()  # type: ignore[attr-defined]
    restore_moments(job.engine, checkpoint)


def _first_looks(job: Job) -> Iterator[Look]:
    """Of the first global batches: every rank computes the same from the same samples."""
    cfg = job.cfg
    batches = micro_batches(job.dataset, StreamConfig(cfg.run.micro_batch, rank=0, world=1, num_workers=0), start=0)
    num = micro_batches_per_step(cfg.optim.batch, cfg.run.micro_batch, 1) * cfg.target.measure_batches
    for _ in range(num):
        view = job.look(next(batches))
        yield view.images, view.valid

"""The hot loop: read, prepare, step; log, validate and save when it is due."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sharding.order import micro_batches_per_step
from sharding.stream import Batch
from train.config import PretrainConfig
from train.data import ReadFacts
from train.engine import set_schedule
from train.job import Job
from train.record import Record, log_step, save
from train.schedule import due
from train.step import Prepared, keep_until_used, prepare, run_step


class StoppedError(Exception):
    """The run was asked to end (SIGTERM), and has saved a checkpoint; it goes on with the same command."""


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
        is_due = due(step, cfg.run.save_every, cfg.optim.steps)
        if stop or is_due:
            with reader.paused():
                # who asks a run to stop kills it half a minute later: no validation then
                save(job, step, record, with_validation=is_due)
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
        self._restart_clock()
        self._ahead = self._begin() if self._side is not None else None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside takes no time: it is no part of a step."""
        began = time.perf_counter()
        yield
        self._started += time.perf_counter() - began

    def _restart_clock(self) -> None:
        self._started, self._waited, self._num_steps = time.perf_counter(), 0.0, 0

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
        self._num_steps += 1
        self._job.bad.add(found[0])
        return found

    def facts(self, batches: list[Batch]) -> ReadFacts:
        """Of the steps since the last call."""
        seconds = time.perf_counter() - self._started
        keys = sum(int(batch.key_hashes.sum()) for batch in batches)
        facts = ReadFacts(self._num_steps, seconds, self._waited, keys)
        self._restart_clock()
        return facts

    def _begin(self) -> tuple[list[Batch], list[Prepared]]:
        asked = time.perf_counter()
        batches = [next(self._stream) for _ in range(self._num)]
        self._waited += time.perf_counter() - asked
        job = self._job
        with torch.cuda.stream(self._side):  # None: no other stream
            return batches, [prepare(job.look(batch), job.objective, job.means, job.cfg) for batch in batches]


def progress_bar(start: int, cfg: PretrainConfig, rank: int) -> Iterator[int]:
    """Steps start..steps, with a bar on rank 0."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    steps = range(start, cfg.optim.steps)
    with Progress(*columns, disable=rank > 0) as progress:
        yield from progress.track(
            steps, total=cfg.optim.steps, completed=start, description=f"pretrain {cfg.run.dir.name} ({cfg.objective})"
        )

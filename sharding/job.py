"""The job: plan -> units -> one commit per unit -> manifest. `kill -9` at any moment, then the same command.

Units run on processes of this machine, on a Dask cluster (cluster.py), or as one slice of an array (`--unit i/n`): a
unit is a pure function of plan and policy, so each way gives the same bytes.
"""

import json
import multiprocessing
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from sharding.child import fork_server, without_main
from sharding.deidentify import Pseudonyms, load_key
from sharding.manifest import MANIFEST
from sharding.merge import merge
from sharding.plan import Plan
from sharding.policy import Job
from sharding.recording import InputError
from sharding.store import Store
from sharding.unit import OUTCOMES, Progress, explain, outcomes_name, read_lines, run_unit

Execute = Callable[[Job, Plan, list[int]], Iterator[Progress]]

_PLAN = "plan.json"
_MAX_DEATHS = 3  # times that worker processes may be killed before the job gives up


def run(job: Job, plan: Plan, execute: Execute) -> Iterator[Progress]:
    """Run all units that are not committed yet, then write the manifest. Yields what each unit did, done ones first.

    Args:
        job: what to do.
        plan: of the job.
        execute: runs units somewhere, `on_processes(n)` or `cluster.on_dask(address)`.

    Raises:
        InputError: another job is writing to OUT, OUT holds another plan, the disk is full, or the source has gone.

    """
    out = Store(job.out)
    with out.locked("job") as check_lock:
        plan_hash = _claim(job, plan)
        _clean(out)
        for progress in _run_units(job, plan, execute, list(range(plan.num_units))):
            check_lock()
            yield progress
        check_lock()
        if not out.exists(MANIFEST):
            _merge(job, plan, plan_hash)


def run_slice(job: Job, plan: Plan, execute: Execute, place: int, num_slices: int) -> Iterator[Progress]:
    """Run units place, place + num_slices, ...; whoever finishes the last unit of the job writes the manifest.

    Raises:
        InputError: as run(), or OUT is remote.

    """
    out = Store(job.out)
    if not out.is_local:
        raise InputError(
            f"{job.out}: --unit needs an OUT in a folder that all slices share, because a remote one cannot tell which "
            "slice is the last; give such a folder and copy it afterwards, or leave --unit out"
        )
    if not 0 <= place < num_slices:
        raise InputError(f"unit {place}/{num_slices}: the first number must be from 0 to {num_slices - 1}")
    with out.locked("job", shared=True), out.locked(f"slice-{place}-{num_slices}"):
        plan_hash = _claim(job, plan)
        yield from _run_units(job, plan, execute, list(range(place, plan.num_units, num_slices)))
        with out.locked("merge", wait=True):
            if not num_missing(job, plan) and not out.exists(MANIFEST):
                _merge(job, plan, plan_hash)


def num_missing(job: Job, plan: Plan) -> int:
    """Units without a commit."""
    return len(_missing(Store(job.out), list(range(plan.num_units))))


def on_processes(num_workers: int) -> Execute:
    """Run units on processes of this machine, a single one in this process.

    A process that is killed costs its unit a second try.
    """
    if num_workers == 1:
        return lambda job, plan, units: (run_unit(job, plan, unit) for unit in units)

    def execute(job: Job, plan: Plan, units: list[int]) -> Iterator[Progress]:
        left = set(units)
        for _ in range(_MAX_DEATHS):
            try:
                for progress in _on_pool(job, plan, sorted(left), num_workers):
                    left.discard(progress.unit)
                    yield progress
            except BrokenProcessPool:
                continue
            return
        raise InputError(
            f"{job.out}: worker processes were killed {_MAX_DEATHS} times, perhaps for want of memory; "
            "give fewer --workers and run the same command again"
        )

    return execute


def _on_pool(job: Job, plan: Plan, units: list[int], num_workers: int) -> Iterator[Progress]:
    with ProcessPoolExecutor(num_workers, fork_server(), _begin, (dict(os.environ),)) as pool:
        with without_main():
            futures = [pool.submit(run_unit, job, plan, unit) for unit in units]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(environment: dict[str, str]) -> None:
    """Give this worker the environment, which the fork server lacks; it holds the credentials of remote folders."""
    os.environ.update(environment)
    _end_with_parent()


def _end_with_parent() -> None:
    """End this worker when the job is killed: an orphan would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_units(job: Job, plan: Plan, execute: Execute, units: list[int]) -> Iterator[Progress]:
    out = Store(job.out)
    missing = set(_missing(out, units))
    for unit in units:
        if unit not in missing:
            yield _progress_of(out, unit)
    try:
        yield from execute(job, plan, sorted(missing))
    except OSError as error:
        raise InputError(explain(error, job)) from error


def _missing(out: Store, units: list[int]) -> list[int]:
    committed = set(out.names(OUTCOMES, ".jsonl"))
    return [unit for unit in units if Path(outcomes_name(unit)).name not in committed]


def _progress_of(out: Store, unit: int) -> Progress:
    lines = read_lines(out, unit)
    outcomes = Counter(line["outcome"] for line in lines)
    return Progress(unit, dict(outcomes), sum(line.get("frames", 0) for line in lines), resumed=True)


def _merge(job: Job, plan: Plan, plan_hash: str) -> None:
    try:
        merge(job, plan, plan_hash)
    except OSError as error:
        raise InputError(explain(error, job)) from error


def _claim(job: Job, plan: Plan) -> str:
    """Mark OUT as holding this plan; returns the plan's keyed hash."""
    out = Store(job.out)
    if out.is_local:
        out.path(OUTCOMES).mkdir(parents=True, exist_ok=True)
    labels = job.labels.read_text(encoding="utf-8", errors="surrogateescape") if job.labels else ""
    pseudonyms = Pseudonyms(load_key(job.key_file))
    plan_hash = pseudonyms.of("plan", f"{plan.sha256}\0{job.policy.hash()}\0{labels}")
    if out.exists(_PLAN) and json.loads(out.read(_PLAN))["plan"] != plan_hash:
        raise InputError(
            f"{job.out}: holds shards of other sources, settings, decoder versions or another key; "
            "give a new OUT, or delete this one"
        )
    out.write(_PLAN, json.dumps({"plan": plan_hash}).encode())
    return plan_hash


def _clean(out: Store) -> None:
    """Remove what killed workers left."""
    if not out.is_local:
        return
    for leftover in [*out.path().glob(".*.tmp"), *out.path(OUTCOMES).glob(".*.tmp")]:
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()

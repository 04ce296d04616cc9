"""Locks of remote folders, on a server that speaks S3: one holder, none that is dead, and whoever lost one is told."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sharding import lease
from sharding.job import on_processes, run, run_slice
from sharding.manifest import load_manifest
from sharding.plan import make_plan
from sharding.recording import InputError
from sharding.store import Store
from tests.conftest import ROOT
from tests.sharding.jobs import job_of, write_recording

_HOLD = """
import sys, time
from sharding.store import Store

with Store(sys.argv[1]).locked("job"):
    print("held", flush=True)
    time.sleep(600)
"""
OTHERS = {"holder": "x", "machine": "another one", "process": 1, "started": 0.0, "beat": 0}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_BEAT", 0.05)


def _await_end_of_lease(meanwhile: Callable[[], object] = lambda: None) -> None:
    """The thread that keeps a lock fresh ends when the lock is lost."""
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "lease"]
    for _ in range(200):
        meanwhile()  # as often as the other holder would
        thread.join(timeout=0.1)
        if not thread.is_alive():
            return
    pytest.fail("the lock was never lost")


def test_two_jobs_on_one_remote_output_refuse_each_other(tmp_path: Path, s3: str) -> None:
    (tmp_path / "source").mkdir()
    write_recording(tmp_path / "source" / "a.dcm", 1)
    job = job_of(tmp_path / "source", f"{s3}/out", tmp_path)
    with Store(job.out).locked("job"), pytest.raises(InputError, match=r"^s3://scans/out: another job is writing here"):
        list(run(job, make_plan(job), on_processes(1)))
    assert not Store(job.out).exists("plan.json")
    for _ in range(2):  # the lock is given back each time
        list(run(job, make_plan(job), on_processes(1)))
    assert load_manifest(job.out).num_samples()
    assert not [name for name, _ in Store(job.out).entries() if "lock" in name]


def test_of_many_that_come_at_once_one_holds_the_lock(s3: str) -> None:
    together, done = threading.Barrier(6), threading.Barrier(6)

    def take(_: int) -> bool:
        together.wait()
        try:
            with Store(f"{s3}/out").locked("job"):
                done.wait()
        except InputError:
            done.wait()
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(take, range(6))) == 1


def test_a_killed_holder_loses_its_lock_at_once_on_its_own_machine(
    s3: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "_LEASE", 1e6)
    command = [sys.executable, "-c", _HOLD, f"{s3}/out"]
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    with Store(f"{s3}/out").locked("job"):
        pass
    assert capsys.readouterr().err == ""


def test_a_silent_holder_elsewhere_loses_its_lock_and_is_told(
    s3: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "_LEASE", 0.3)
    monkeypatch.setattr(lease, "_is_dead_here", lambda _: False)
    store = Store(f"{s3}/out")
    store.write(".locks/job-000000007", json.dumps(OTHERS).encode())
    with store.locked("job") as check:
        check()
        assert store.names(".locks", "") == ["job-000000008"]
        store.write(".locks/job-000000009", json.dumps(OTHERS).encode())  # it takes over in turn
        _await_end_of_lease()
        with pytest.raises(InputError, match="another job has taken over, because this one was silent for 0 s"):
            check()
    assert json.loads(store.read(".locks/job-000000009")) == OTHERS
    assert "see for up to 0 s whether the job that held it is alive" in capsys.readouterr().err


def test_a_store_that_ignores_the_condition_leaves_one_holder(s3: str) -> None:
    """Old servers overwrite: the one who was overwritten finds out."""
    store = Store(f"{s3}/out")
    with store.locked("job") as check:
        _await_end_of_lease(lambda: store.write(".locks/job-000000001", json.dumps(OTHERS).encode()))
        with pytest.raises(InputError, match="another job has taken over"):
            check()


def test_slices_of_a_remote_output_are_refused(tmp_path: Path, s3: str) -> None:
    (tmp_path / "source").mkdir()
    write_recording(tmp_path / "source" / "a.dcm", 1)
    job = job_of(tmp_path / "source", f"{s3}/out", tmp_path)
    with pytest.raises(InputError, match=r"^s3://scans/out: --unit needs an OUT in a folder that all slices share"):
        list(run_slice(job, make_plan(job), on_processes(1), 0, 4))

"""The job: bytes, outcomes, privacy, restart, copies, executors, failures of the file system."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import boto3
import pydicom
import pytest
from distributed import LocalCluster

from sharding.cluster import on_dask
from sharding.job import num_missing, on_processes, run, run_slice
from sharding.manifest import load_manifest
from sharding.plan import make_plan
from sharding.reader import ShardReader
from sharding.recording import FrameChoice, InputError
from sharding.report import write_report
from sharding.store import Store
from sharding.verify import verify
from tests.conftest import KEY
from tests.sharding.jobs import POLICY, bytes_of, job_of, make, outcomes_of, write_recording


def test_shards_made_twice_are_byte_identical(source: Path, whole: Path, tmp_path: Path) -> None:
    assert bytes_of(make(source, tmp_path / "again")) == bytes_of(whole)


def test_every_source_has_exactly_one_outcome(whole: Path) -> None:
    assert len(outcomes_of(whole)) == len({line["source"] for line in outcomes_of(whole)}) == 23
    assert load_manifest(whole).outcomes == {"accepted": 21, "duplicate": 1, "not_readable_kind": 1}
    assert sum(count for _, count in verify(whole)) == load_manifest(whole).num_samples() == 21 * 3


def test_frames_of_a_clip_are_not_neighbours(whole: Path) -> None:
    """Keys are hashes, so a tar in order of key mixes its clips: as many pairs as chance gives."""
    pairs = same = 0
    for shard in load_manifest(whole).shards:
        reader = ShardReader(whole / shard.name)
        clips = [reader[index].meta.clip for index in range(len(reader))]
        same += sum(a == b for a, b in pairwise(clips))
        pairs += len(clips) - 1
    assert same / pairs < 0.2


def test_no_planted_identity_is_in_any_byte(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "source"
    copy.mkdir()
    for path in sorted(source.iterdir())[:3]:
        shutil.copy(path, copy)
    shutil.copy(source / "note.dcm", copy / "Zelmira.dcm")
    out = make(copy, tmp_path / "out")
    write_report(out)
    planted = [b"Quorvath", b"Zelmira", b"19470203", b"note.dcm", b"clip.mp4", b"1.2.826", KEY]
    for path in out.rglob("*"):
        if path.is_file():
            assert not [word for word in planted if word in path.read_bytes() or word.decode() in path.name]


def test_a_killed_job_continues_to_the_same_bytes(source: Path, whole: Path, tmp_path: Path) -> None:
    cut = tmp_path / "out"
    shutil.copytree(whole, cut)
    (cut / "manifest.json").unlink()
    next(iter((cut / "outcomes").glob("*.jsonl"))).unlink()
    (cut / ".train-00000-000.tar.77.tmp").write_bytes(b"half")
    (cut / ".unit-1.tmp").mkdir()
    (cut / "train-00000-007.tar").write_bytes(b"of a run with other part sizes")
    assert bytes_of(make(source, cut)) == bytes_of(whole)


def test_another_plan_or_key_does_not_mix_in(source: Path, tmp_path: Path) -> None:
    out = make(source, tmp_path / "out")
    with pytest.raises(InputError, match="holds shards of other sources, settings, decoder versions or another key"):
        make(source, out, replace(POLICY, choice=FrameChoice(2)))
    with pytest.raises(InputError, match="another key"):
        make(source, out, key=KEY[::-1])


def test_two_jobs_on_one_output_refuse_each_other(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Store(out).locked("job"), pytest.raises(InputError, match="another job is writing here; wait until it"):
        make(source, out)
    assert load_manifest(make(source, out)).num_samples()


@pytest.mark.launch
def test_slices_and_a_dask_cluster_give_the_same_bytes(source: Path, whole: Path, tmp_path: Path) -> None:
    sliced = job_of(source, tmp_path / "sliced", tmp_path)
    plan = make_plan(sliced)
    for place in (2, 3, 1, 0):
        assert not (tmp_path / "sliced" / "manifest.json").exists()
        list(run_slice(sliced, plan, on_processes(1), place, 4))
    assert num_missing(sliced, plan) == 0
    assert bytes_of(tmp_path / "sliced") == bytes_of(whole)
    clustered = job_of(source, tmp_path / "clustered", tmp_path)
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:  # type: ignore[no-untyped-call]
        list(run(clustered, make_plan(clustered), on_dask(cluster.scheduler_address)))
    assert bytes_of(tmp_path / "clustered") == bytes_of(whole)


@pytest.mark.launch
def test_s3_is_source_and_target(source: Path, whole: Path, tmp_path: Path, s3: str) -> None:
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"])
    for path in source.iterdir():
        client.upload_file(str(path), "scans", f"in/{path.name}")
    job = job_of(f"{s3}/in", f"{s3}/out", tmp_path)
    list(run(job, make_plan(job), on_processes(1)))
    assert load_manifest(job.out) == load_manifest(whole)
    assert sum(count for _, count in verify(job.out)) == load_manifest(whole).num_samples()
    for name, data in bytes_of(whole).items():
        assert Store(job.out).read(name) == data, name
    assert write_report(job.out) == f"{s3}/out/report.html"


def test_copies_are_found_across_units(tmp_path: Path) -> None:
    """Equal pixels once; of one instance the lossless copy; nothing else is lost."""
    folder = tmp_path / "source"
    folder.mkdir()
    for seed in range(17):  # two units: even and odd places
        write_recording(folder / f"{seed:02d}.dcm", seed)
    shutil.copy(folder / "00.dcm", folder / "01-again.dcm")
    shutil.copy(folder / "02.dcm", folder / "02-same-unit.dcm")
    plain = pydicom.dcmread(folder / "05.dcm")
    plain.decompress()
    plain.LossyImageCompression = "00"
    plain.save_as(folder / "06-lossless.dcm")
    out = make(folder, tmp_path / "out")
    outcomes = load_manifest(out).outcomes
    assert outcomes["accepted"] == 17
    assert sum(outcomes.values()) == 20
    assert set(outcomes) <= {"accepted", "duplicate", "uid_conflict"}
    assert len({(line["source"]) for line in outcomes_of(out)}) == 20
    keys = [
        ShardReader(out / shard.name)[i].key for shard in load_manifest(out).shards for i in range(shard.num_samples)
    ]
    assert len(keys) == len(set(keys)) == 17 * 3


def test_a_vanished_source_ends_the_job_and_loses_nothing(source: Path, whole: Path, tmp_path: Path) -> None:
    copy, away = tmp_path / "source", tmp_path / "away"
    shutil.copytree(source, copy)
    job = job_of(copy, tmp_path / "out", tmp_path)
    plan = make_plan(job)
    copy.rename(away)
    with pytest.raises(InputError, match=r"a listed file can no longer be read .* bring the folder back and run"):
        list(run(job, plan, on_processes(2)))
    away.rename(copy)
    list(run(job, make_plan(job), on_processes(1)))
    assert bytes_of(tmp_path / "out") == bytes_of(whole)


@pytest.mark.launch
def test_a_full_disk_is_one_sentence_and_loses_nothing(source: Path, whole: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    us_jepa = Path(sys.executable).parent / "us-jepa"
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_bytes(KEY)
    shards = (
        f"{us_jepa} shards {source} {disk}/out --dataset set --max-frames 3 --val-share 0 --key-file {tmp_path}/key"
    )
    mount = f"mount -t tmpfs -o size=300k tmpfs {disk}"
    more = f"mount -o remount,size=64m {disk}"
    script = f"{mount} || exit 99; {shards}; echo code $?; {more}; {shards} && cp -r {disk}/out {tmp_path}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("no right to mount a small disk here")
    assert "code 2" in done.stdout
    assert "no space left; free some and run the same command again, finished units are kept" in done.stderr
    assert load_manifest(tmp_path / "out") == load_manifest(whole)

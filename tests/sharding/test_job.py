"""The job: bytes, outcomes, privacy, restart, copies, executors, labels, failures of the file system."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import boto3
import cv2
import numpy as np
import pydicom
import pytest
from distributed import LocalCluster
from moto.server import ThreadedMotoServer
from pydicom import uid

from sharding.cluster import on_dask
from sharding.deidentify import Pseudonyms
from sharding.job import num_missing, on_processes, run, run_slice
from sharding.labels import Label, load_labels
from sharding.manifest import load_manifest
from sharding.plan import make_plan, write_plan
from sharding.policy import Job, Policy
from sharding.recording import FrameChoice, InputError, Reason
from sharding.report import write_report
from sharding.sources.synthetic import SyntheticSpec, generate
from sharding.sources.synthetic_files import write_dicom, write_mp4
from sharding.store import Store
from sharding.stream import ShardReader
from sharding.verify import verify
from tests.conftest import KEY, make_shards

POLICY = Policy("set", FrameChoice(max_frames=3), val_share=0.0)


def make(source: Path, out: Path, policy: Policy = POLICY, key: bytes = KEY) -> Path:
    return make_shards(source, out, policy, key=key)


def job_of(source: Path | str, out: Path | str, folder: Path, **changes: object) -> Job:
    key = folder / "key"
    key.touch(mode=0o600)
    key.write_bytes(KEY)
    return replace(Job(str(source), str(out), POLICY, key), **changes)  # type: ignore[arg-type]


def outcomes_of(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for path in (out / "outcomes").glob("*.jsonl") for line in path.read_text().splitlines()]


def bytes_of(out: Path) -> dict[str, bytes]:
    """Everything that a job leaves but its locks."""
    found = (path for path in out.rglob("*") if path.is_file() and path.suffix not in {".lock", ".html"})
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in found}


def write_recording(path: Path, seed: int, **changes: object) -> Path:
    spec = SyntheticSpec("fan", seed % 3, num_frames=9, height=160, width=200, seed=seed, patient_id=f"P{seed}")
    write_dicom(generate(replace(spec, **changes)), replace(spec, **changes), path)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for seed in range(20):
        write_recording(folder / f"{seed:02d}.dcm", seed, region_tag=seed % 2 == 0)
    write_mp4(generate(SyntheticSpec(geometry="fan", tissue=0, seed=99)), folder / "clip.mp4")
    (folder / "note.dcm").write_text("a text file")
    shutil.copy(folder / "00.dcm", folder / "zz-copy.dcm")  # in another unit than its original
    return folder


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(source, tmp_path_factory.mktemp("whole") / "out")


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


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a bucket of a real S3 protocol server on loopback."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"URL_S3": f"http://{host}:{port}", "URL": f"http://{host}:{port}"}.items():
        monkeypatch.setenv(f"AWS_ENDPOINT_{name}", value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="scans")
    yield "s3://scans"
    server.stop()


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


def test_archives_are_sources_and_their_tricks_are_refused_by_name(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.write(source / "01.dcm", "deep/01.dcm")
        archive.write(source / "note.dcm", "../../../tmp/escaped.dcm")
    with tarfile.open(folder / "b.tar.gz", "w:gz") as tar:
        tar.add(source / "02.dcm", "02.dcm")
    outcomes = load_manifest(make(folder, tmp_path / "out")).outcomes
    assert outcomes == {"accepted": 2, "unsafe_name": 1}


def test_a_patient_is_in_one_split(source: Path, tmp_path: Path) -> None:
    out = make(source, tmp_path / "out", replace(POLICY, val_share=0.4))
    patients: dict[str, set[str | None]] = {"train": set(), "val": set()}
    for shard in load_manifest(out).shards:
        reader = ShardReader(out / shard.name)
        patients[shard.split] |= {reader[i].meta.patient for i in range(len(reader))}
    pseudonyms = Pseudonyms(KEY)
    for seed in range(20):
        share = pseudonyms.number("split", f"P{seed}\0") / 2**64
        assert pseudonyms.of("patient", f"P{seed}\0") in patients["val" if share < 0.4 else "train"]
    assert not patients["train"] & patients["val"]


def test_labels_and_groups_come_from_a_table(source: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,label,group\nclip.mp4,benign cyst,P3\n03.dcm,normal,P3\n")
    job = job_of(source, tmp_path / "out", tmp_path, labels=table)
    list(run(job, make_plan(job), on_processes(1)))
    found = {}
    for shard in load_manifest(job.out).shards:
        reader = ShardReader(Path(job.out) / shard.name)
        found |= {m.label: m.patient for m in (reader[i].meta for i in range(len(reader)))}
    assert set(found) == {None, "benign cyst", "normal"}
    assert found["benign cyst"] == found["normal"] == Pseudonyms(KEY).of("patient", "P3")


def test_a_label_that_is_a_sentence_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,label,group\nx.dcm,Mrs. Müller's liver,P\n")
    with pytest.raises(InputError, match=r"labels\.csv: label .* is not a class name"):
        load_labels(Store(tmp_path), table)
    (tmp_path / "other.csv").write_text("path,label\n")
    with pytest.raises(InputError, match="no column group; columns: path, label, group"):
        load_labels(Store(tmp_path), tmp_path / "other.csv")


@pytest.mark.parametrize("lists", [("train.json", "validation.json", "test.json"), ("train_val.json", "test.json")])
def test_an_ultrabench_folder_is_a_source_as_it_is(lists: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "AUL_v1.0"
    (folder / "images").mkdir(parents=True)
    (folder / "masks" / "scan").mkdir(parents=True)
    for number, name in enumerate(lists):
        made = generate(SyntheticSpec("curved", 0, num_frames=1, seed=number))
        cv2.imwrite(str(folder / "images" / f"{number}.png"), made.frames[0])
        cv2.imwrite(str(folder / "masks" / "scan" / f"{number}.png"), made.region.astype(np.uint8) * 255)
        record = {"image": f"{number}.png", "scan_mask": f"{number}.png", "label": number, "patient": f"p{number}"}
        (folder / name).write_text(json.dumps([record]))
    (folder / "README.txt").write_text("not listed, so no source")
    out = make(folder, tmp_path / "out", replace(POLICY, pixels="public"))
    assert load_manifest(out).outcomes == {"accepted": len(lists)}
    samples = [ShardReader(out / s.name)[i] for s in load_manifest(out).shards for i in range(s.num_samples)]
    assert {sample.meta.label for sample in samples} == {str(number) for number in range(len(lists))}
    assert all(0.3 < sample.region.mean() < 0.9 for sample in samples)
    assert load_labels(Store(folder), None)["images/0.png"] == Label("0", "p0", "masks/scan/0.png")


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


def test_the_plan_keeps_odd_names_and_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    names = ["a b.dcm", "new\nline.dcm", "50%.dcm", "%0A.dcm", os.fsdecode(b"\xff\xfe.dcm"), "tab\there.dcm"]
    plan = write_plan([(name, 10) for name in names], tmp_path / "plans" / "x.txt")
    assert [name for unit in range(plan.num_units) for name in plan.unit(unit)] == names
    assert plan.path.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_plan_of_many_files_deals_them_out_evenly(tmp_path: Path) -> None:
    plan = write_plan(((f"f/{n}.dcm", 5_000_000) for n in range(100_000)), tmp_path / "x.txt")
    assert plan.num_units == -(-500_000_000_000 // (1 << 30))
    sizes = [len(plan.unit(unit)) for unit in (0, 1, plan.num_units - 1)]
    assert max(sizes) - min(sizes) <= 1
    assert sum(len(plan.unit(unit)) for unit in range(plan.num_units)) == 100_000


def test_links_and_hidden_files_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.dcm").write_bytes(b"123")
    (tmp_path / "a" / ".hidden.dcm").write_bytes(b"")
    (tmp_path / "a" / "link.dcm").symlink_to("/etc/passwd")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert list(Store(tmp_path / "a").entries()) == [("b/x.dcm", 3)]


def test_real_dicom_files_each_have_one_outcome_and_leak_no_name(shared_data: Path, tmp_path: Path) -> None:
    out = make(shared_data / "dicom", tmp_path / "out", Policy("real"))
    write_report(out)
    sources = sorted((shared_data / "dicom").iterdir())
    assert len(outcomes_of(out)) == len(sources) == 16
    assert {line["outcome"] for line in outcomes_of(out)} <= {*Reason, "accepted"}
    assert load_manifest(out).outcomes["accepted"] >= 3
    files = [path for path in out.rglob("*") if path.is_file()]
    text = b"".join(path.read_bytes() for path in files if path.suffix in {".json", ".jsonl"})
    text += b"".join(member for path in out.glob("*.tar") for member in text_of(path))
    whole = b"".join(path.read_bytes() for path in files)
    for path in sources:
        name = str(pydicom.dcmread(path, stop_before_pixels=True).PatientName)
        parts = [part.encode() for part in [name, *name.replace(" ", "^").split("^")] if part]
        assert name.encode() not in whole, path.name
        # four letters meet by chance in megabytes of JPEG; in text they would not
        assert not [part for part in parts if len(part) > 2 and part in text], path.name
        assert not [part for part in parts if len(part) > 4 and part in whole], path.name


def text_of(tar: Path) -> Iterator[bytes]:
    """Names and JSON members of a shard."""
    with tarfile.open(tar) as file:
        for member in file:
            yield member.name.encode()
            if member.name.endswith(".json"):
                yield file.extractfile(member).read()  # type: ignore[union-attr]


def test_a_file_that_may_not_be_read_is_an_outcome(source: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    folder = tmp_path / "source"
    folder.mkdir()
    shutil.copy(source / "00.dcm", folder)
    shutil.copy(source / "01.dcm", folder)
    (folder / "01.dcm").chmod(0)
    assert load_manifest(make(folder, tmp_path / "out")).outcomes == {"accepted": 1, "unreadable": 1}


def test_sop_and_modality_of_other_kinds_are_named(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for number, (modality, sop) in enumerate(
        [("CT", uid.CTImageStorage), ("US", uid.SecondaryCaptureImageStorage), ("US", uid.EnhancedUSVolumeStorage)]
    ):
        dataset = pydicom.dcmread(source / "00.dcm")
        dataset.Modality, dataset.SOPClassUID = modality, sop
        dataset.save_as(folder / f"{number}.dcm")
    outcomes = load_manifest(make(folder, tmp_path / "out")).outcomes
    assert outcomes == {"not_ultrasound": 1, "sop_refused": 1, "unsupported_sop": 1}

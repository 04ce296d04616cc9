"""What a job takes: archives, tables of labels, published layouts, plans, real and foreign files."""

import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom import uid

from pipeline.shards import foretell, make_shards
from sharding.deidentify import Pseudonyms
from sharding.job import on_processes, run
from sharding.labels import Label, load_labels
from sharding.manifest import load_manifest
from sharding.plan import make_plan, write_plan
from sharding.policy import Job, Policy
from sharding.reader import ShardReader
from sharding.recording import InputError, Reason
from sharding.report import write_report
from sharding.sources.synthetic import SyntheticSpec, generate
from sharding.store import Store
from tests.conftest import KEY
from tests.sharding.jobs import POLICY, job_of, make, outcomes_of, write_recording


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
    with pytest.raises(InputError, match=r"labels\.csv: line 2: label .* is not a class name"):
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
    assert load_labels(Store(folder), None)["images/0.png"] == Label("0", "p0", "masks/scan/0.png", "train")


def test_scan_masks_that_are_missing_are_named_before_the_work(tmp_path: Path) -> None:
    folder = tmp_path / "AUL_v1.0"
    (folder / "images").mkdir(parents=True)
    records = [{"image": f"{number}.png", "scan_mask": f"{number}.png", "label": 0} for number in range(2)]
    (folder / "test.json").write_text(json.dumps(records))
    for record in records:
        cv2.imwrite(str(folder / "images" / str(record["image"])), np.zeros((9, 9), np.uint8))
    job = Job(str(folder), str(tmp_path / "out"), POLICY, tmp_path / "key")
    with pytest.raises(InputError, match=r"2 of 2 scan masks are missing, the first is masks/scan/0\.png; put them"):
        make_shards(job, 1)


def test_a_key_inside_the_source_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recording(tmp_path / "one.dcm", 0)
    job = Job(str(tmp_path), str(tmp_path.with_name("out")), POLICY, tmp_path / ".secret" / "key")
    foretell(job, 1)
    assert f"key file {job.key_file} lies in {tmp_path}, which decoders can read" in capsys.readouterr().out


def test_links_are_followed_where_they_stay_below_the_source(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "x.dcm").write_bytes(b"123")
    (folder / ".hidden.dcm").write_bytes(b"")
    (folder / ".git" / "annex").mkdir(parents=True)
    (folder / ".git" / "annex" / "SHA256-1").write_bytes(b"12345")
    (folder / "annexed.dcm").symlink_to(".git/annex/SHA256-1")  # as git-annex leaves files
    (folder / "again").symlink_to("b")
    (folder / "out.dcm").symlink_to("/etc/passwd")
    (folder / "up").symlink_to(tmp_path)
    (folder / "b" / "circle").symlink_to(folder)
    (folder / "b" / "itself").symlink_to("itself")
    (folder / "gone.dcm").symlink_to("nothing")
    links: Counter[str] = Counter()
    assert list(Store(folder).entries(links=links)) == [("again/x.dcm", 3), ("annexed.dcm", 5), ("b/x.dcm", 3)]
    assert links == {"outside": 2, "circular": 2, "broken": 3}  # those in b are met twice


def test_links_that_are_not_followed_are_counted_in_the_manifest(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "linked.dcm").symlink_to(source / "00.dcm")
    job = job_of(folder, tmp_path / "out", tmp_path)
    with pytest.raises(InputError, match="no file in it but 1 symbolic links that lead out of it or nowhere"):
        make_plan(job)
    shutil.copy(source / "01.dcm", folder)
    manifest = load_manifest(make(folder, tmp_path / "out"))
    assert (manifest.outcomes, manifest.notes["links_not_followed"]) == ({"accepted": 1}, 1)
    write_report(tmp_path / "out")
    assert "symbolic links that lead out of the source" in (tmp_path / "out" / "report.html").read_text()
    subprocess.run(["cp", "-rL", folder, tmp_path / "copy"], check=True)  # what the command advises
    assert load_manifest(make(tmp_path / "copy", tmp_path / "out2")).outcomes == {"accepted": 2}


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

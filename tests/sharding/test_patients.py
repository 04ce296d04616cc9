"""Who a recording is of where nobody says so: studies stay together, placeholders are told from patients."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.shards import make_shards
from sharding.deidentify import is_patient
from sharding.manifest import load_manifest
from sharding.policy import Policy
from sharding.reader import ShardReader
from sharding.recording import FrameChoice
from sharding.report import write_report
from tests.cases.odd_names import still
from tests.cases.scans import cine, us_dataset
from tests.sharding.jobs import job_of

POLICY = Policy("set", FrameChoice(max_frames=1), val_share=0.5, pixels="public")


def write_studies(folder: Path, patients: list[str], files_each: int = 2, has_study: bool = True) -> Path:
    """Files of one study per patient."""
    folder.mkdir(exist_ok=True)
    for number, patient in enumerate(patients):
        for part in range(files_each):
            frames = cine(2, 96, 128, seed=number * files_each + part)
            dataset = us_dataset(frames, patient)
            dataset.StudyInstanceUID = f"1.2.3.{number}" if has_study else ""
            dataset.PixelData = frames.tobytes()
            dataset.save_as(folder / f"{number}-{part}.dcm", enforce_file_format=True)
    return folder


def patients_of(out: Path) -> dict[str, set[str | None]]:
    """Pseudonyms of patients by split."""
    found: dict[str, set[str | None]] = {"train": set(), "val": set()}
    for shard in load_manifest(out).shards:
        reader = ShardReader(out / shard.name)
        found[shard.split] |= {reader[row].meta.patient for row in range(len(reader))}
    return found


@pytest.mark.parametrize("identifier", ["", "ANONYMOUS", "0"])
def test_files_of_a_study_stay_together_without_a_patient(
    identifier: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_studies(tmp_path / "source", [identifier] * 8, files_each=3)
    (source / "still.png").write_bytes(still())
    out = tmp_path / "out"
    make_shards(job_of(source, out, tmp_path, policy=POLICY), 1)
    found = patients_of(out)
    assert len(found["train"] | found["val"]) == 9
    assert not found["train"] & found["val"]
    assert load_manifest(out).notes == {"sources_grouped_by_study": 24, "sources_without_patient": 25}
    printed = " ".join(capsys.readouterr().out.split())
    assert "25 sources have no patient identifier: in the split, the study stands for the patient of 24," in printed
    page = (out / "report.html").read_text()
    assert "sources without a patient identifier, or with a placeholder such as ANONYMOUS" in page
    assert "of these, those whose study stands for the patient in the split" in page


def test_without_patient_and_study_each_file_is_its_own(tmp_path: Path) -> None:
    source = write_studies(tmp_path / "source", [""], files_each=3, has_study=False)
    make_shards(job_of(source, tmp_path / "out", tmp_path, policy=POLICY), 1)
    found = patients_of(tmp_path / "out")
    assert len(found["train"] | found["val"]) == 3
    assert load_manifest(tmp_path / "out").notes == {"sources_without_patient": 3}


def test_an_identifier_of_many_studies_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_studies(tmp_path / "source", ["SITE-7"] * 21 + ["P1", "P2"], files_each=1)
    out = tmp_path / "out"
    make_shards(job_of(source, out, tmp_path, policy=replace(POLICY, val_share=0.0)), 1)
    assert load_manifest(out).notes == {"patients_of_many_studies": 1, "studies_of_one_patient": 21}
    assert "1 patient identifiers cover more than 20 studies, one of them 21" in capsys.readouterr().out
    write_report(out)
    assert "patient identifiers that cover more than 20 studies" in (out / "report.html").read_text()
    assert not any(b"SITE-7" in path.read_bytes() or b"1.2.3." in path.read_bytes() for path in out.rglob("*.json*"))


def test_a_group_of_the_table_is_a_patient(tmp_path: Path) -> None:
    source = write_studies(tmp_path / "source", ["ANON", "ANON"], files_each=1)
    table = tmp_path / "labels.csv"
    table.write_text("path,label,group\n0-0.dcm,,Anna\n1-0.dcm,,Anna\n")
    make_shards(job_of(source, tmp_path / "out", tmp_path, policy=POLICY, labels=table), 1)
    found = patients_of(tmp_path / "out")
    assert len(found["train"] | found["val"]) == 1
    assert not load_manifest(tmp_path / "out").notes


def test_placeholders_are_told_from_identifiers() -> None:
    placeholders = ["", "0", "000000", "X", "xxx", "Anonymous", "ANONYMIZED", "Anon.", "n/a", "UNKNOWN", "none", "-"]
    assert not [name for name in placeholders if is_patient(name)]
    identifiers = ["1", "100", "P0", "ANON001", "Anonymous-17", "X12", "000123", "Unknown Soldier", "李"]
    assert all(map(is_patient, identifiers))

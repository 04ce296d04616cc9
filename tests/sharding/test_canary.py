"""Files whose every text tag is planted: nothing of it may be in any byte that leaves the job, or that it prints."""

from pathlib import Path

import pydicom
import pytest
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset

from sharding.sources.synthetic import SyntheticSpec, generate
from sharding.sources.synthetic_files import write_dicom
from tests.conftest import run_command

CANARY, DIGITS = "QXZVJ", "8675309"  # letters and digits that nothing else here spells
_VALUES = {
    **dict.fromkeys(("PN", "LO", "SH", "ST", "LT", "UT", "UC"), f"{CANARY}{DIGITS}"),
    "UI": f"1.2.840.{DIGITS}.4", "DA": "18670530", "TM": "093016.75309", "DT": "18670530093000", "AS": "086Y",
    "AE": CANARY, "IS": DIGITS, "DS": DIGITS,
}  # fmt: skip
_PIXELS = {"NumberOfFrames", "PixelAspectRatio", "FrameIncrementPointer", "SOPClassUID"}
_GROUPS = {0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0028, 0x0032, 0x0038, 0x0040, 0x4008}


def plant(dataset: Dataset) -> int:
    """Fill every text element of the usual groups that is not needed to decode; returns how many."""
    count = 0
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if vr in _VALUES and keyword and tag >> 16 in _GROUPS and keyword not in _PIXELS and keyword not in dataset:
            dataset.add_new(tag, vr, _VALUES[vr])
            count += 1
    for keyword in ("PatientName", "PatientID", "InstitutionName", "StudyID", "AccessionNumber", "BodyPartExamined"):
        setattr(dataset, keyword, f"{CANARY}{DIGITS}"[:16])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = _VALUES["UI"]
    dataset.private_block(0x0029, CANARY, create=True).add_new(1, "LO", CANARY)
    return count


@pytest.mark.launch
def test_no_canary_byte_is_anywhere(tmp_path: Path) -> None:
    folder = tmp_path / CANARY
    folder.mkdir()
    for number, cut in enumerate((None, 5000, 700)):  # a whole file, one cut in its pixels, one cut in its header
        spec = SyntheticSpec("fan", number, num_frames=9, height=160, width=200, patient_id=f"P{number}", banner=False)
        write_dicom(generate(spec), spec, tmp_path / "x.dcm")
        dataset = pydicom.dcmread(tmp_path / "x.dcm")
        assert plant(dataset) > 700
        dataset.save_as(folder / f"{CANARY}{number}.dcm")
        if cut:
            data = (folder / f"{CANARY}{number}.dcm").read_bytes()
            (folder / f"{CANARY}{number}.dcm").write_bytes(data[: -cut if number == 1 else cut])
    out = tmp_path / "out"
    done = run_command("us-jepa", "shards", str(folder), str(out), "--key-file", str(tmp_path / "key"))
    assert done.returncode == 0, done.stderr
    verified = run_command("us-jepa", "verify", str(out))
    assert verified.returncode == 0, verified.stderr
    printed = (done.stdout + done.stderr + verified.stdout).replace(str(folder), "")  # the user's own words
    assert CANARY not in printed
    assert DIGITS not in printed
    found = [path for path in out.rglob("*") if path.is_file()]
    assert len(found) > 5
    for path in found:
        content = path.read_bytes()
        for canary in (CANARY, CANARY.lower(), DIGITS, _VALUES["DA"], _VALUES["TM"], _VALUES["DT"]):
            assert canary.encode() not in content, (path.name, canary)
            assert canary not in path.name

"""Generated recordings as files: what DICOM, mp4 and labels.csv hold."""

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import decord
import numpy as np
import pydicom
import pytest
from pydicom import uid

from sharding.recording import InputError
from sharding.sources.synthetic import HOSPITAL, NUM_TISSUES, Geometry, SyntheticSpec, generate
from sharding.sources.synthetic_files import write_demo_set, write_dicom, write_mp4

GEOMETRIES: tuple[Geometry, ...] = ("fan", "curved", "linear")
SYNTAXES = ["jpeg", "explicit", "rle"]
SPEC = SyntheticSpec("fan", 1, num_frames=4, seed=3)


@pytest.fixture(scope="module")
def demo_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert write_demo_set(folder, num_patients=18, seed=1) == folder / "labels.csv"
    return folder


def labels_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def written(spec: SyntheticSpec, path: Path, syntax: str = "explicit") -> pydicom.FileDataset:
    write_dicom(generate(spec), spec, path, syntax)
    return pydicom.dcmread(path)


# --- DICOM


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("num_frames", [1, 4])
def test_pixels_survive_dicom(syntax: str, colour: bool, num_frames: int, tmp_path: Path) -> None:
    spec = replace(SPEC, colour=colour, num_frames=num_frames)
    frames = generate(spec).frames
    dataset = written(spec, tmp_path / "x.dcm", syntax)
    pixels = dataset.pixel_array.reshape(frames.shape)
    if syntax == "jpeg":
        assert np.abs(pixels.astype(int) - frames).mean() < 4
    else:
        assert np.array_equal(pixels, frames)
    lossy_colour = syntax == "jpeg" and colour
    assert dataset.PhotometricInterpretation == ("YBR_FULL_422" if lossy_colour else "RGB" if colour else "MONOCHROME2")
    assert dataset.LossyImageCompression == ("01" if syntax == "jpeg" else "00")


def test_colour_jpeg_halves_the_chroma_as_its_header_says(tmp_path: Path) -> None:
    dataset = written(replace(SPEC, colour=True, num_frames=1), tmp_path / "x.dcm", "jpeg")
    start = dataset.PixelData.index(b"\xff\xc0")  # start of frame: 3 components, each with its sampling factors
    assert [dataset.PixelData[start + 11 + 3 * i] for i in range(3)] == [0x21, 0x11, 0x11]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_dicom_written_twice_is_byte_identical(syntax: str, tmp_path: Path) -> None:
    written(SPEC, tmp_path / "a.dcm", syntax)
    written(SPEC, tmp_path / "b.dcm", syntax)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()


def test_dicom_holds_the_planted_identity(tmp_path: Path) -> None:
    dataset = written(replace(SPEC, patient_name="Ada^Zim", patient_id="77-12"), tmp_path / "x.dcm")
    assert (dataset.PatientName, dataset.PatientID, dataset.InstitutionName) == ("Ada^Zim", "77-12", HOSPITAL)
    assert dataset.PatientBirthDate
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID


def test_recordings_of_a_patient_share_the_study_and_not_the_instance(tmp_path: Path) -> None:
    first, second = (written(replace(SPEC, seed=i), tmp_path / f"{i}.dcm") for i in range(2))
    other = written(replace(SPEC, patient_id="other"), tmp_path / "o.dcm")
    assert first.StudyInstanceUID == second.StudyInstanceUID != other.StudyInstanceUID
    assert len({first.SOPInstanceUID, second.SOPInstanceUID, other.SOPInstanceUID}) == 3


def test_a_cine_is_a_multiframe_object_with_frame_time_and_a_still_is_not(tmp_path: Path) -> None:
    cine = written(SPEC, tmp_path / "cine.dcm")
    still = written(replace(SPEC, num_frames=1), tmp_path / "still.dcm")
    assert cine.SOPClassUID == uid.UltrasoundMultiFrameImageStorage
    assert (cine.NumberOfFrames, cine.FrameTime, cine.FrameIncrementPointer) == (4, 50.0, 0x00181063)
    assert still.SOPClassUID == uid.UltrasoundImageStorage
    assert "NumberOfFrames" not in still
    assert "FrameIncrementPointer" not in still


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_declared_region_is_the_tight_box_of_the_sector(geometry: Geometry, tmp_path: Path) -> None:
    spec = replace(SPEC, geometry=geometry)
    [tag] = written(spec, tmp_path / "x.dcm").SequenceOfUltrasoundRegions
    region = generate(spec).region
    rows = slice(tag.RegionLocationMinY0, tag.RegionLocationMaxY1 + 1)
    columns = slice(tag.RegionLocationMinX0, tag.RegionLocationMaxX1 + 1)
    box = region[rows, columns]
    assert box.sum() == region.sum()
    assert box[0].any()
    assert box[-1].any()
    assert box[:, 0].any()
    assert box[:, -1].any()
    assert (tag.RegionSpatialFormat, tag.RegionDataType) == (1, 1)
    assert tag.PhysicalUnitsXDirection == tag.PhysicalUnitsYDirection == 3
    assert 0.001 < tag.PhysicalDeltaX == tag.PhysicalDeltaY < 1


def test_without_region_tag_no_region_is_declared(tmp_path: Path) -> None:
    assert "SequenceOfUltrasoundRegions" not in written(replace(SPEC, region_tag=False), tmp_path / "x.dcm")


def test_an_unknown_transfer_syntax_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'j2k': it must be one of jpeg, explicit, rle"):
        written(SPEC, tmp_path / "x.dcm", "j2k")


# --- mp4


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("num_frames", [1, 12, 31])
def test_mp4_has_every_frame_and_its_rate(colour: bool, num_frames: int, tmp_path: Path) -> None:
    made = generate(replace(SPEC, colour=colour, num_frames=num_frames))
    write_mp4(made, tmp_path / "x.mp4", fps=25)
    reader = decord.VideoReader(str(tmp_path / "x.mp4"))
    assert len(reader) == num_frames
    assert reader.get_avg_fps() == pytest.approx(25)
    frames = made.frames if colour else made.frames[..., None]
    assert np.abs(reader[num_frames - 1].asnumpy().astype(int) - frames[-1]).mean() < 10


def test_mp4_that_cannot_be_opened_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot write mp4"):
        write_mp4(generate(SPEC), tmp_path / "missing" / "x.mp4")


def test_mp4_of_odd_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"241 x 320.*even"):
        write_mp4(generate(replace(SPEC, height=241)), tmp_path / "x.mp4")


# --- labelled set


def test_labels_name_every_file_once_with_two_recordings_per_patient(demo_set: Path) -> None:
    rows = labels_of(demo_set)
    assert list(rows[0]) == ["path", "label", "group"]
    assert {row["path"] for row in rows} | {"labels.csv"} == {path.name for path in demo_set.iterdir()}
    assert len(rows) == len({row["path"] for row in rows}) == 36
    assert set(Counter(row["group"] for row in rows).values()) == {2}


def test_a_patient_has_one_label_and_labels_are_balanced(demo_set: Path) -> None:
    rows = labels_of(demo_set)
    assert len({(row["group"], row["label"]) for row in rows}) == len({row["group"] for row in rows}) == 18
    assert Counter(row["label"] for row in rows) == {f"tissue_{t}": 12 for t in range(NUM_TISSUES)}


def test_file_kind_names_and_region_tags_tell_nothing_of_the_label(demo_set: Path) -> None:
    rows = labels_of(demo_set)
    assert set(Counter((row["label"], Path(row["path"]).suffix) for row in rows).values()) == {6}
    assert not [row for row in rows if row["label"] in row["path"]]
    dicom = [(row["label"], pydicom.dcmread(demo_set / row["path"])) for row in rows if row["path"].endswith("dcm")]
    tags = Counter((label, "SequenceOfUltrasoundRegions" in dataset) for label, dataset in dicom)
    assert set(tags.values()) == {3}


def test_geometry_tells_nothing_of_the_label(demo_set: Path) -> None:
    rows = [row for row in labels_of(demo_set) if row["path"].endswith("dcm")]
    top_width = Counter((row["label"], top_of(pydicom.dcmread(demo_set / row["path"]).pixel_array)) for row in rows)
    assert top_width == {(f"tissue_{t}", geometry): 2 for t in range(NUM_TISSUES) for geometry in GEOMETRIES}


def top_of(frames: np.ndarray) -> str:
    """Tell the geometry from the lit columns below the banner: a point, two ends of an arc, or a line."""
    rows = frames[:, 27:31, 20:300].max(axis=0) > 12
    lit = np.flatnonzero(rows.any(axis=0))
    if np.ptp(lit) < 20:
        return "fan"
    return "linear" if len(lit) > 0.9 * np.ptp(lit) else "curved"


def test_other_seeds_make_other_patients(tmp_path: Path) -> None:
    write_demo_set(tmp_path / "a", 3, seed=1)
    write_demo_set(tmp_path / "b", 3, seed=2)
    first, second = ({row["group"] for row in labels_of(tmp_path / name)} for name in "ab")
    assert not first & second


def test_a_set_made_twice_is_the_same(tmp_path: Path) -> None:
    write_demo_set(tmp_path / "a", 3, seed=1)
    write_demo_set(tmp_path / "b", 3, seed=1)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_fewer_patients_than_tissues_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_patients is 2; it must be at least 3"):
        write_demo_set(tmp_path, 2, seed=0)

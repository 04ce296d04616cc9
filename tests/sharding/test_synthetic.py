"""Generated recordings: what is true of the pixels, and that the files hold them."""

import csv
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import decord
import numpy as np
import pydicom
import pytest
from pydicom import uid
from sklearn.metrics import roc_auc_score

from sharding.recording import InputError
from sharding.sources.synthetic import HOSPITAL, NUM_TISSUES, Geometry, SyntheticSpec, generate
from sharding.sources.synthetic_files import write_demo_set, write_dicom, write_mp4
from sharding.sources.synthetic_screen import BANNER_SHARE

GEOMETRIES: tuple[Geometry, ...] = ("fan", "curved", "linear")
SIZES = [(240, 320), (96, 128), (480, 360), (241, 641)]
SYNTAXES = ["jpeg", "explicit", "rle"]
SPEC = SyntheticSpec("fan", 1, num_frames=4, seed=3)
NUM_SEEDS = 30


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


# --- pixels


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equal_specs_give_equal_pixels(geometry: Geometry) -> None:
    spec = replace(SPEC, geometry=geometry)
    first, second = generate(spec), generate(replace(spec))
    assert np.array_equal(first.frames, second.frames)
    assert np.array_equal(first.region, second.region)
    assert np.array_equal(first.glyphs, second.glyphs)


@pytest.mark.parametrize("change", [{"seed": 4}, {"patient_id": "other"}, {"tissue": 2}, {"geometry": "linear"}])
def test_another_spec_gives_another_tissue(change: dict[str, int | str]) -> None:
    spec = replace(SPEC, **change)  # type: ignore[arg-type] # of the field's own type
    assert not np.array_equal(generate(SPEC).frames[:, 30:], generate(spec).frames[:, 30:])


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_sector_holds_no_glyph_and_stays_clear_of_the_banner(geometry: Geometry, height: int, width: int) -> None:
    made = generate(replace(SPEC, geometry=geometry, height=height, width=width, num_frames=2))
    near = cv2.dilate(made.region.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    assert not (made.glyphs & near).any()
    assert not made.region[: round(BANNER_SHARE * height) + 1].any()
    assert 0.2 < made.region.mean() < 0.8


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("colour", [False, True])
def test_what_is_lit_is_sector_or_glyph(geometry: Geometry, colour: bool) -> None:
    made = generate(replace(SPEC, geometry=geometry, colour=colour))
    assert made.frames.shape == made.glyphs.shape + (3,) * colour
    assert made.frames.dtype == np.uint8
    lit = made.frames.any(axis=-1) if colour else made.frames > 0
    assert np.array_equal(lit, made.glyphs | made.region)


def test_tissue_in_colour_is_the_grey_tissue() -> None:
    grey, colour = generate(SPEC), generate(replace(SPEC, colour=True))
    assert np.array_equal(colour.frames[:, grey.region], np.repeat(grey.frames[:, grey.region, None], 3, axis=-1))


def test_without_banner_nothing_is_drawn_over_the_same_tissue() -> None:
    plain, drawn = generate(replace(SPEC, banner=False)), generate(SPEC)
    assert not plain.glyphs.any()
    assert drawn.glyphs.any()
    assert np.array_equal(plain.frames[:, plain.region], drawn.frames[:, drawn.region])


def test_the_clock_changes_in_every_frame_and_nothing_else_of_the_screen_does() -> None:
    glyphs = generate(replace(SPEC, num_frames=30)).glyphs
    assert all((a != b).any() for a, b in pairwise(glyphs))
    rows, columns = np.nonzero(glyphs.any(axis=0) & ~glyphs.all(axis=0))
    assert columns.min() > 0.7 * SPEC.width
    assert rows.max() < BANNER_SHARE * SPEC.height


def test_the_name_is_drawn_also_when_it_is_long() -> None:
    first = generate(replace(SPEC, patient_name="Adelheid^" + "Quorvath" * 12))
    second = generate(replace(SPEC, patient_name="Adelheid^" + "Quorvath" * 11))
    assert (first.glyphs != second.glyphs).any()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("tissue", range(NUM_TISSUES))
def test_the_sector_moves_everywhere_and_is_nowhere_black(geometry: Geometry, tissue: int) -> None:
    made = generate(SyntheticSpec(geometry, tissue, seed=tissue))
    inside = made.frames[:, made.region].astype(np.float32)
    deviation = inside.std(axis=0)
    assert (deviation > 2.5).mean() > 0.97
    assert deviation.mean() > 8
    assert inside.min() > 0
    assert inside.mean(axis=0).min() > 12


@pytest.mark.parametrize("tissue", range(NUM_TISSUES))
def test_neighbouring_frames_are_more_alike_than_distant_ones(tissue: int) -> None:
    made = generate(replace(SPEC, tissue=tissue, num_frames=16))
    change = made.frames[:, made.region] - made.frames[:, made.region].mean(axis=0)
    alike = np.corrcoef(change)
    assert np.diagonal(alike, 1).mean() > np.diagonal(alike, 4).mean() + 0.2


@pytest.mark.parametrize(
    ("field", "value"),
    [("geometry", "round"), ("tissue", 3), ("num_frames", 0), ("height", 95), ("width", 100), ("seed", -1)],
)
def test_a_spec_out_of_range_is_refused_with_name_and_value(field: str, value: int | str) -> None:
    with pytest.raises(InputError, match=f"{field} is .?{value}.*must be"):
        replace(SPEC, **{field: value})  # type: ignore[arg-type] # wrong on purpose


# --- classes


def first_frame(tissue: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    patient = f"{tissue}-{seed}"
    made = generate(SyntheticSpec(GEOMETRIES[seed % 3], tissue, num_frames=1, seed=seed, patient_id=patient))
    inner = cv2.erode(made.region.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
    return made.frames[0].astype(np.float32), inner


def texture_of(frame: np.ndarray, inner: np.ndarray) -> tuple[float, float, float]:
    """Mean grey level, skewness of the fine detail, and coarse over fine detail."""
    fine = (frame - cv2.GaussianBlur(frame, (0, 0), 6))[inner]
    coarse = (cv2.GaussianBlur(frame, (0, 0), 3) - cv2.GaussianBlur(frame, (0, 0), 10))[inner]
    skewness = ((fine - fine.mean()) ** 3).mean() / fine.std() ** 3
    return float(frame[inner].mean()), float(skewness), float(coarse.std() / fine.std())


@pytest.fixture(scope="module")
def textures() -> np.ndarray:
    """(tissue, seed, statistic)."""
    return np.array([[texture_of(*first_frame(t, s)) for s in range(NUM_SEEDS)] for t in range(NUM_TISSUES)])


def auroc(textures: np.ndarray, tissues: tuple[int, int], statistic: int) -> float:
    scores = textures[tissues, :, statistic].ravel()
    return float(roc_auc_score(np.repeat([0, 1], NUM_SEEDS), scores))


@pytest.mark.parametrize(("tissues", "statistic"), [((0, 1), 1), ((0, 2), 1), ((1, 2), 2)])
def test_texture_tells_the_tissues_apart_and_mean_brightness_does_not(
    textures: np.ndarray, tissues: tuple[int, int], statistic: int
) -> None:
    assert 0.25 < auroc(textures, tissues, 0) < 0.75
    assert auroc(textures, tissues, statistic) > 0.85


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
    assert not [row for row in rows if "tissue" in row["path"] or row["label"][-1] in Path(row["path"]).suffix]
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

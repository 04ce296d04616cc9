"""DICOM: headers, declared facts, hostile and foreign files; each ends in an outcome."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragments
from pydicom.pixels import apply_color_lut

from pipeline.bench.transcode import (
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    RLE,
    encode_frame,
    store,
)
from sharding.recording import FrameChoice, Reason, Recording, Rejected
from sharding.sources import kind_of, read
from sharding.sources.dicom_codestream import read_jpegxl_size
from tests.sharding.dicom_files import ALL, BASELINE, J2K, JPEG, picture, reason_of, write

# Headers


def test_missing_preamble_and_meta(tmp_path: Path) -> None:
    stored = store(picture(), "MONOCHROME2")
    for syntax in (EXPLICIT, IMPLICIT):
        data = write(tmp_path / "a.dcm", syntax, stored).read_bytes()
        first = data.index(b"\x08\x00\x16\x00")
        for cut in (132, first):  # without preamble, and without meta information as well
            (tmp_path / "b.dcm").write_bytes(data[cut:])
            assert kind_of(tmp_path / "b.dcm") == "dicom"
            np.testing.assert_array_equal(read(tmp_path / "b.dcm", "n", ALL).frames, stored.frames)
    data = write(tmp_path / "a.dcm", RLE, stored).read_bytes()
    (tmp_path / "b.dcm").write_bytes(data[data.index(b"\x08\x00\x16\x00") :])
    assert reason_of(tmp_path / "b.dcm") == Reason.UNSUPPORTED_CODEC


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n" + b"\0" * 200, b"Patient: Zelmira\n" * 20, b"\0" * 300, b"", b"\x08\0\x05\0" * 40]
)
def test_what_is_no_dicom(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(data)
    with pytest.raises(Rejected):
        read(path, "n", ALL)
    if data[:4] != b"\x89PNG":
        assert reason_of(path) == Reason.NOT_READABLE_KIND


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"Modality": "CT"}, Reason.NOT_ULTRASOUND),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, Reason.SOP_REFUSED),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4"}, Reason.SOP_REFUSED),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.4.1", "Modality": "XC"}, Reason.SOP_REFUSED),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.2"}, Reason.UNSUPPORTED_SOP),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.3"}, Reason.UNSUPPORTED_SOP),
        ({"SOPClassUID": "1.2.840.10008.1.3.10"}, Reason.NOT_IMAGE),
        ({"Rows": 4097}, Reason.TOO_LARGE),
        ({"NumberOfFrames": 20_001}, Reason.TOO_LARGE),
        ({"Rows": 0}, Reason.EMPTY),
        ({"Rows": 4096, "Columns": 4096}, Reason.EMPTY),
        ({"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, Reason.UNSUPPORTED_CODEC),
        ({"BitsStored": 9}, Reason.UNDECODABLE),
    ],
)
def test_refusals(attributes: dict[str, Any], reason: Reason, tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", EXPLICIT, store(picture(), "MONOCHROME2"), **attributes)
    assert reason_of(tmp_path / "a.dcm") == reason


def test_report_without_pixels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", EXPLICIT, store(picture(1), "MONOCHROME2"))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\xe0\x7f\x10\x00")])
    assert reason_of(path) == Reason.NOT_IMAGE
    for number in ("94", "95", "204", "205"):
        write(path, f"{JPEG}.{number}", store(picture(1), "RGB"), [b"\0\0"])
        assert reason_of(path) == Reason.UNSUPPORTED_CODEC


def test_bombs(tmp_path: Path) -> None:
    stored = store(picture(1), "MONOCHROME2")
    path = write(tmp_path / "a.dcm", DEFLATED, stored, ImageComments="x")
    zeros = zlib.compressobj(9, wbits=-15)
    data = path.read_bytes()
    meta = data[: data.index(DEFLATED.encode()) + len(DEFLATED)]
    path.write_bytes(meta + zeros.compress(b"\0" * (200 << 20)) + zeros.flush())
    assert reason_of(path) == Reason.INFLATE_RATIO
    for syntax, marker, huge in (
        (BASELINE, b"\xff\xc0", struct.pack(">HH", 65500, 65500)),
        (f"{JPEG}.80", b"\xff\xf7", struct.pack(">HH", 65500, 65500)),
    ):
        frame = bytearray(encode_frame(syntax, stored, 0))
        place = frame.index(marker) + 5
        frame[place : place + 4] = huge
        write(path, syntax, stored, [bytes(frame)])
        assert reason_of(path) == Reason.SIZE_MISMATCH
    frame = bytearray(encode_frame(J2K, stored, 0))
    frame[8:16] = struct.pack(">II", 16000, 16000)
    assert reason_of(write(path, J2K, stored, [bytes(frame)])) == Reason.SIZE_MISMATCH
    large = bytes(imagecodecs.jpegxl_encode(np.zeros((2000, 3000), np.uint8), lossless=True))
    assert reason_of(write(path, f"{JPEG}.110", stored, [large])) == Reason.SIZE_MISMATCH
    rle = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x00" * 100_000
    assert reason_of(write(path, RLE, stored, [rle])) == Reason.UNDECODABLE


@given(st.integers(1, 3000), st.integers(1, 3000))
@settings(max_examples=15, deadline=None)
def test_size_of_jpeg_xl(rows: int, columns: int) -> None:
    for is_boxed in (False, True):
        data = imagecodecs.jpegxl_encode(np.zeros((rows, columns), np.uint8), effort=1, usecontainer=is_boxed)
        assert read_jpegxl_size(bytes(data)) == (rows, columns)


# Facts


def _region(box: tuple[int, int, int, int], form: int = 1, kind: int = 1, **extra: float) -> Dataset:
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = form, kind, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = box[:2]
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = box[2:]
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = extra.get("x", 0.05), extra.get("y", 0.05)
    return region


@pytest.mark.parametrize(
    ("regions", "boxes", "spacing"),
    [
        ([_region((2, 3, 40, 30))], ((2, 3, 40, 30),), ((0.5, 0.5),)),
        ([_region((2, 3, 40, 30)), _region((0, 0, 46, 30))], None, ()),  # one box reaches beyond the image
        ([_region((2, 3, 6, 6))], None, ()),  # too small
        ([_region((0, 0, 45, 33))], None, ()),  # the whole frame
        ([_region((2, 3, 40, 30), x=0.07)], ((2, 3, 40, 30),), (None,)),
        ([_region((2, 3, 40, 30), x=3, y=3)], ((2, 3, 40, 30),), (None,)),
        ([_region((2, 3, 40, 30)), _region((1, 1, 2, 9), 4, 10)], ((2, 3, 40, 30),), ((0.5, 0.5),)),
        ([_region((1, 1, 9, 9), 2)], None, ()),
        ([], None, ()),
    ],
)
def test_regions(regions: list[Dataset], boxes: object, spacing: object, tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", EXPLICIT, store(picture(1), "RGB"), SequenceOfUltrasoundRegions=regions)
    recording = read(path, "n", ALL)
    assert recording.regions == boxes
    assert recording.mm_per_pixel == spacing
    assert len(recording.excluded) == sum(region.RegionSpatialFormat != 1 for region in regions)


@pytest.mark.parametrize(
    ("attributes", "times"),
    [
        ({"FrameTime": 50, "CineRate": 10}, [0, 50, 100]),
        ({"CineRate": 10, "RecommendedDisplayFrameRate": 30}, [0, 100, 200]),
        ({"RecommendedDisplayFrameRate": 20}, [0, 50, 100]),
        ({"FrameTime": 50, "FrameTimeVector": [0, 30, 40], "FrameIncrementPointer": 0x00181065}, [0, 30, 70]),
        ({"FrameTime": 50, "FrameTimeVector": [0, 30, 40], "FrameIncrementPointer": 0x00181063}, [0, 50, 100]),
        ({"FrameTimeVector": [0, 30], "CineRate": 10}, [0, 100, 200]),
        ({"FrameTime": 0.01, "CineRate": 5000}, None),
        ({"FrameTime": 5000}, None),
        ({}, None),
    ],
)
def test_times(attributes: dict[str, Any], times: list[float] | None, tmp_path: Path) -> None:
    recording = read(write(tmp_path / "a.dcm", EXPLICIT, store(picture(3), "MONOCHROME2"), **attributes), "n", ALL)
    assert (recording.frame_times_ms is None) == (times is None)
    if times is not None:
        np.testing.assert_allclose(recording.frame_times_ms, times)


def test_identifiers(tmp_path: Path) -> None:
    stored = store(picture(1), "RGB")
    facts = {"Manufacturer": "GE Healthcare", "ManufacturerModelName": "Vivid E95", "IssuerOfPatientID": "H"}
    recording = read(write(tmp_path / "a.dcm", EXPLICIT, stored, SOPInstanceUID="1.2.3", **facts), "name", ALL)
    assert (recording.patient, recording.clip) == ("P1\0H", "1.2.3")
    assert recording.device == ("GE Healthcare", "Vivid E95")
    recording = read(write(tmp_path / "a.dcm", EXPLICIT, stored, PatientID=" "), "name", ALL)
    assert recording.patient == "name"


# Files of others


def _others() -> list[Path]:
    folders = [Path(pydicom.__file__).parent / "data" / "test_files"]
    try:
        import data_store  # noqa: PLC0415 - of pydicom-data

        folders.append(Path(data_store.__file__).parent / "data")
    except ImportError:
        pass
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def _as_ultrasound(path: Path, target: Path) -> tuple[Path, Dataset | None]:
    try:
        dataset = pydicom.dcmread(path)
        if "PixelData" not in dataset:
            return path, None
        dataset.Modality, dataset.SOPClassUID = "US", "1.2.840.10008.5.1.4.1.1.3.1"
        dataset.save_as(target, enforce_file_format=False)
    except Exception:  # broken on purpose; read as it is
        return path, None
    return target, dataset


@pytest.mark.filterwarnings("ignore")
def test_every_file_of_pydicom_has_an_outcome(tmp_path: Path) -> None:
    outcomes: dict[str, Recording | Reason] = {}
    for path in _others():
        if path.stat().st_size < 2_000_000:
            source, dataset = _as_ultrasound(path, tmp_path / "a.dcm")
            try:
                outcomes[path.name] = found = read(source, "n", FrameChoice(4))
            except Rejected as refusal:
                outcomes[path.name] = refusal.reason
            else:
                _compare(found, dataset)
    accepted = [found for found in outcomes.values() if isinstance(found, Recording)]
    assert len(accepted) > 80
    assert outcomes["MR_truncated.dcm"] == Reason.EMPTY
    assert outcomes["DICOMDIR"] == Reason.NOT_IMAGE
    assert outcomes["badVR.dcm"] == Reason.UNDECODABLE


def _compare(found: Recording, dataset: Dataset | None) -> None:
    """Grey 8-bit or windowed frames against pydicom's pixels, where it has a decoder."""
    assert dataset is not None
    try:
        pixels = dataset.pixel_array
    except Exception:  # pydicom lacks the decoder
        return
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        pixels = (pixels >> 8 if pixels.max() > 255 else pixels).astype(np.uint8)
    pixels = pixels[found.frame_ids] if int(dataset.get("NumberOfFrames") or 1) > 1 else pixels[None]
    if pixels.dtype != np.uint8:
        low, high = int(pixels.min()), int(pixels.max())
        pixels = ((pixels.astype(np.float64) - low) * 255 / max(1, high - low)).round().astype(np.uint8)
    grey = pixels if pixels.ndim == 3 else np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in pixels])
    wanted = 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey
    assert cv2.absdiff(found.frames, wanted).max() <= 1


@pytest.mark.parametrize(
    "name", ["SC_rgb_jpeg.dcm", "SC_jpeg_no_color_transform.dcm", "SC_jpeg_no_color_transform_2.dcm"]
)
def test_rgb_in_jpeg(name: str, tmp_path: Path, change: Callable[[Path, Path], None]) -> None:
    """R, G and B in a JPEG without JFIF; a decoder's own guess is wrong by up to 137 levels."""
    change(Path(str(get_testdata_file(name))), tmp_path / "a.dcm")
    reference = pydicom.dcmread(str(get_testdata_file("SC_rgb_jpeg_dcmd.dcm"))).pixel_array
    frames = read(tmp_path / "a.dcm", "n", ALL).frames
    if not name.endswith("_2.dcm"):
        assert cv2.absdiff(frames[0], cv2.cvtColor(reference, cv2.COLOR_RGB2GRAY)).max() <= 4
    else:
        pixels = pydicom.dcmread(str(get_testdata_file(name))).pixel_array
        np.testing.assert_array_equal(frames[0], cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))


@pytest.fixture
def change() -> Callable[[Path, Path], None]:
    """Copy a file as an ultrasound image, byte by byte: some of these files cannot be written by pydicom."""

    def copy(source: Path, target: Path) -> None:
        dataset = pydicom.dcmread(source, force=True)
        frames = list(generate_fragments(dataset.PixelData))[1:]
        kept = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored")
        stored = replace(store(picture(1), "RGB"), attributes={name: dataset[name].value for name in kept})
        write(target, BASELINE, stored, frames)

    return copy

"""DICOM: every transfer syntax decodes to the samples that went in; hostile and broken files end in a named reason."""

import struct
import tracemalloc
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
    BIG_ENDIAN,
    DEFLATED,
    DEFLATED_FRAMES,
    EXPLICIT,
    IMPLICIT,
    RLE,
    Stored,
    dataset_of,
    encode_frame,
    encode_video,
    native_bytes,
    store,
    write_file,
)
from sharding.recording import FrameChoice, Reason, Recording, Rejected
from sharding.sources import kind_of, read
from sharding.sources.colour import is_rgb_jpeg, split_planes
from sharding.sources.dicom_codestream import read_jpeg, read_jpegxl_size
from sharding.sources.dicom_pixels import group_fragments, locate_native, walk_fragments

ALL = FrameChoice(max_frames=1000)
JPEG = "1.2.840.10008.1.2.4"
BASELINE, LOSSLESS, J2K = f"{JPEG}.50", f"{JPEG}.70", f"{JPEG}.90"
RNG = np.random.default_rng(5)


def picture(num_frames: int = 5, rows: int = 34, columns: int = 46) -> np.ndarray:
    """(T, H, W, 3) smooth noise that differs between frames and channels."""
    noise = RNG.integers(0, 256, (num_frames, rows, columns, 3), dtype=np.uint8)
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 1.5) for frame in noise])


def reason_of(path: Path) -> Reason:
    with pytest.raises(Rejected) as caught:
        read(path, "n", ALL)
    return caught.value.reason


def write(
    path: Path, syntax: str, stored: Stored, fragments: list[bytes] | bytes | None = None, **extra: object
) -> Path:
    if fragments is None:
        is_native = syntax in {IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED}
        every = range(len(stored.samples))
        fragments = native_bytes(syntax, stored) if is_native else [encode_frame(syntax, stored, i) for i in every]
    write_file(path, syntax, dataset_of(stored, **extra), fragments)
    return path


CASES = [
    (syntax, column)
    for columns, syntaxes in (
        (("MONOCHROME1", "12 of 16 bits", "PALETTE COLOR", "RGB", "YBR_FULL"), (EXPLICIT, RLE, LOSSLESS, f"{JPEG}.80")),
        (("12 of 16 bits", "RGB planar", "YBR_FULL_422"), (IMPLICIT, BIG_ENDIAN, DEFLATED)),
        (("MONOCHROME2", "12 of 16 bits", "RGB"), (J2K, f"{JPEG}.201", f"{JPEG}.110", DEFLATED_FRAMES, f"{JPEG}.57")),
        (("YBR_RCT",), (J2K, f"{JPEG}.202")),
    )
    for syntax in syntaxes
    for column in columns
]


@pytest.mark.parametrize(("syntax", "column"), CASES)
def test_lossless_is_exact(syntax: str, column: str, tmp_path: Path) -> None:
    stored = store(picture(), column)
    recording = read(write(tmp_path / "a.dcm", syntax, stored), "n", ALL)
    np.testing.assert_array_equal(recording.frames, stored.frames)
    np.testing.assert_array_equal(recording.frame_ids, np.arange(5))
    assert (recording.colour is None) == (stored.colour is None)
    if stored.colour is not None:
        np.testing.assert_array_equal(recording.colour, stored.colour)
    assert not recording.is_lossy
    assert not recording.is_truncated


@pytest.mark.parametrize(
    ("syntax", "column"),
    [
        (BASELINE, "MONOCHROME2"),
        (BASELINE, "RGB"),
        (BASELINE, "YBR_FULL_422"),
        (f"{JPEG}.51", "12 of 16 bits"),
        (f"{JPEG}.81", "RGB"),
        (f"{JPEG}.91", "YBR_ICT"),
        (f"{JPEG}.203", "RGB"),
        (f"{JPEG}.111", "YBR_FULL"),
        (f"{JPEG}.112", "RGB"),
    ],
)
def test_lossy_is_close(syntax: str, column: str, tmp_path: Path) -> None:
    stored = store(picture(), column)
    recording = read(write(tmp_path / "a.dcm", syntax, stored), "n", ALL)
    assert cv2.PSNR(recording.frames, stored.frames) > 38
    assert recording.is_lossy


@pytest.mark.parametrize(
    ("number", "codec", "container"),
    [
        ("100", "mpeg2video", "mpeg2video"),
        ("102", "libx264", "h264"),
        ("103", "libx264", "mp4"),
        ("104.1", "libx264", "mpegts"),
        ("107", "libx265", "hevc"),
    ],
)
@pytest.mark.parametrize("num_declared", [40, 12])
def test_video(number: str, codec: str, container: str, num_declared: int, tmp_path: Path) -> None:
    pytest.importorskip("av")
    rgb = np.repeat(picture(40, 64, 96).mean(axis=-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    stored = store(rgb, "YBR_PARTIAL_420")
    data = encode_video(rgb, codec, container, rate=25)
    size = len(data) // 3 // 2 * 2 if "." in number else len(data)
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    path = write(tmp_path / "v.dcm", f"{JPEG}.{number}", stored, parts, NumberOfFrames=num_declared, CineRate=25)
    recording = read(path, "n", FrameChoice(max_frames=8))
    np.testing.assert_array_equal(recording.frame_ids, FrameChoice(max_frames=8).decoded(40))
    assert cv2.PSNR(recording.frames, stored.frames[recording.frame_ids]) > 34
    np.testing.assert_allclose(recording.frame_times_ms, recording.frame_ids * 40.0)
    write(path, f"{JPEG}.{number}", stored, parts, Rows=66)
    assert reason_of(path) == Reason.SIZE_MISMATCH


def test_only_chosen_frames_are_decoded(tmp_path: Path) -> None:
    stored = store(picture(30), "RGB")
    fragments = [encode_frame(BASELINE, stored, i) for i in range(30)]
    chosen = FrameChoice(max_frames=3).decoded(30)
    broken = [data if i in chosen else data[:40] + b"\0" * 60 + b"\xff\xd9" for i, data in enumerate(fragments)]
    path = write(tmp_path / "a.dcm", BASELINE, stored, broken)
    recording = read(path, "n", FrameChoice(max_frames=3))
    np.testing.assert_array_equal(recording.frame_ids, chosen)
    assert len(recording.frames) < 20
    assert reason_of(path) == Reason.UNDECODABLE  # all of them


@pytest.mark.parametrize("syntax", [EXPLICIT, BASELINE])
def test_memory_does_not_grow_with_frames_that_are_not_chosen(syntax: str, tmp_path: Path) -> None:
    num_frames, side = (1500, 1000) if syntax == EXPLICIT else (300, 700)
    stored = store(picture(1, side, side), "MONOCHROME2")
    fragments = b"\0\0" if syntax == EXPLICIT else [encode_frame(BASELINE, stored, 0)] * num_frames
    path = write(tmp_path / "a.dcm", syntax, stored, fragments, NumberOfFrames=num_frames)
    if syntax == EXPLICIT:  # a file with a hole of 1.5 GB
        with path.open("r+b") as file:
            file.seek(-6, 2)
            file.write(struct.pack("<I", num_frames * side * side))
            file.truncate(file.tell() + num_frames * side * side)
    tracemalloc.start()
    recording = read(path, "n", FrameChoice(max_frames=3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(recording.frames) < 20
    assert peak < 60e6


# Colour


@pytest.mark.parametrize("is_rgb", [True, False])
@pytest.mark.parametrize("marker", ["jfif", "adobe", "ids", "none"])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_colour_rule(is_rgb: bool, marker: str, photometric: str, tmp_path: Path) -> None:
    """JFIF, Adobe's marker and names of components win over the photometric interpretation, in this order."""
    stored = store(picture(1), "RGB")
    space = "RGB" if is_rgb else "YCBCR"
    data = _strip_markers(imagecodecs.jpeg8_encode(stored.samples[0], level=97, outcolorspace=space, subsampling="444"))
    ids = b"RGB" if marker == "ids" and is_rgb else b"\x01\x02\x03"
    data = _rename_components(data, ids)
    if marker == "jfif":
        data = data[:2] + b"\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0" + data[2:]
    if marker == "adobe":
        data = data[:2] + b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0" + bytes([0 if is_rgb else 1]) + data[2:]
    known = {"jfif": False, "adobe": is_rgb, "ids": is_rgb or photometric == "RGB", "none": photometric == "RGB"}
    assert is_rgb_jpeg(read_jpeg(data), photometric) == known[marker]
    write(tmp_path / "a.dcm", BASELINE, stored, [data], PhotometricInterpretation=photometric)
    recording = read(tmp_path / "a.dcm", "n", ALL)
    assert (cv2.PSNR(recording.frames, stored.frames) > 38) == (known[marker] == is_rgb)


def test_coarse_chroma_is_chroma(tmp_path: Path) -> None:
    stored = store(picture(1), "RGB")
    data = _strip_markers(imagecodecs.jpeg8_encode(stored.samples[0], level=97, subsampling="422"))
    write(tmp_path / "a.dcm", BASELINE, stored, [data])
    assert cv2.PSNR(read(tmp_path / "a.dcm", "n", ALL).frames, stored.frames) > 36


def _strip_markers(data: bytes) -> bytes:
    """Without APP0 and APP14."""
    kept, offset = data[:2], 2
    while data[offset + 1] != 0xDA:
        length = 2 + struct.unpack_from(">H", data, offset + 2)[0]
        kept += b"" if data[offset + 1] in {0xE0, 0xEE} else data[offset : offset + length]
        offset += length
    return kept + data[offset:]


def _rename_components(data: bytes, ids: bytes) -> bytes:
    changed = bytearray(data)
    frame, scan = read_jpeg(data).offset, data.index(b"\xff\xda")
    for number, name in enumerate(ids):
        changed[frame + 10 + 3 * number] = changed[scan + 5 + 2 * number] = name
    return bytes(changed)


def test_thin_coloured_marks_stay_visible() -> None:
    rgb = np.repeat(picture(1, 200, 200)[0][..., :1], 3, axis=-1)
    cv2.line(rgb, (10, 20), (180, 150), (255, 255, 0), 1)
    marks = np.ptp(rgb, axis=-1) > 100
    decoded = imagecodecs.jpeg8_decode(imagecodecs.jpeg8_encode(rgb, level=90, subsampling="422"))
    assert (split_planes(decoded)[1][marks] > 40).mean() > 0.99


# Counts, tables, cuts


@pytest.mark.parametrize("table", ["none", "right", "wrong", "first only", "beyond"])
@pytest.mark.parametrize("num_pieces", [1, 3])
@pytest.mark.parametrize("num_declared", [5, 1, 2, 9])
def test_offset_tables_and_counts(table: str, num_pieces: int, num_declared: int, tmp_path: Path) -> None:
    """A wrong table is found out; a wrong count does not matter when one fragment is one frame."""
    stored = store(picture(), "MONOCHROME2")
    frames = [encode_frame(BASELINE, stored, i) for i in range(5)]
    pieces = [_pieces(frame, num_pieces) for frame in frames]
    starts = np.cumsum([0] + [sum(8 + len(piece) for piece in frame) for frame in pieces])[:-1].tolist()
    tables = {"none": [], "right": starts, "wrong": [i + 2 for i in starts], "first only": [0], "beyond": [0, 1 << 30]}
    value = _items([np.array(tables[table], "<u4").tobytes(), *(piece for frame in pieces for piece in frame)])
    path = _write_raw(tmp_path / "a.dcm", BASELINE, stored, value, NumberOfFrames=num_declared)
    if num_pieces > 1 and num_declared != 5:
        assert reason_of(path) == Reason.FRAME_COUNT_MISMATCH
    else:
        np.testing.assert_array_equal(read(path, "n", ALL).frames, _decoded(frames))


def _pieces(data: bytes, count: int) -> list[bytes]:
    size = -(-len(data) // count // 2) * 2
    return [data[i : i + size] + b"\0" * (len(data[i : i + size]) % 2) for i in range(0, len(data), size)]


def _items(values: list[bytes]) -> bytes:
    return b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(value)) + value for value in values) + bytes.fromhex(
        "feffdde000000000"
    )


def _write_raw(path: Path, syntax: str, stored: Stored, value: bytes, **extra: object) -> Path:
    """File whose encapsulated pixel data is given byte by byte."""
    write_file(path, syntax, dataset_of(stored, **extra), [b"\0\0"])
    data = path.read_bytes()
    start = data.index(b"\xe0\x7f\x10\x00OB") + 12
    path.write_bytes(data[:start] + value)
    return path


def _decoded(frames: list[bytes]) -> np.ndarray:
    return np.stack([imagecodecs.jpeg8_decode(frame) for frame in frames])


def test_extended_table_rules_where_fragments_have_no_signature(tmp_path: Path) -> None:
    stored = store(picture(), "MONOCHROME2")
    pieces = [_pieces(encode_frame(DEFLATED_FRAMES, stored, i), 2) for i in range(5)]
    starts = np.cumsum([0] + [sum(8 + len(piece) for piece in frame) for frame in pieces])[:-1]
    value = _items([b"", *(piece for frame in pieces for piece in frame)])
    path = tmp_path / "a.dcm"
    _write_raw(path, DEFLATED_FRAMES, stored, value, ExtendedOffsetTable=starts.astype("<u8").tobytes())
    np.testing.assert_array_equal(read(path, "n", ALL).frames, stored.frames)
    _write_raw(path, DEFLATED_FRAMES, stored, value)
    assert reason_of(path) == Reason.FRAME_COUNT_MISMATCH


@pytest.mark.parametrize("syntax", [EXPLICIT, RLE, BASELINE, J2K, DEFLATED])
@pytest.mark.parametrize("share", [0.6, 0.95])
def test_cut_files_give_their_whole_frames(syntax: str, share: float, tmp_path: Path) -> None:
    stored = store(picture(20), "MONOCHROME2")
    path = write(tmp_path / "a.dcm", syntax, stored)
    whole = read(path, "n", ALL).frames
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    recording = read(path, "n", ALL)
    assert recording.is_truncated
    assert 20 * share - 4 < len(recording.frames) < 20
    np.testing.assert_array_equal(recording.frames, whole[: len(recording.frames)])
    first = data.index(b"\xe0\x7f\x10\x00") + 60 if syntax != DEFLATED else 500
    path.write_bytes(data[:first])
    assert reason_of(path) in {Reason.EMPTY, Reason.UNDECODABLE, Reason.NOT_IMAGE, Reason.NOT_ULTRASOUND}


def test_real_cut_cine(tmp_path: Path) -> None:
    data = Path(str(get_testdata_file("examples_ybr_color.dcm"))).read_bytes()
    (tmp_path / "a.dcm").write_bytes(data[: int(len(data) * 0.6)])
    recording = read(tmp_path / "a.dcm", "n", ALL)
    assert 15 <= len(recording.frames) < 20
    assert recording.is_truncated


@pytest.mark.parametrize("num_declared", [5, 1, 3, 9])
def test_native_count(num_declared: int, tmp_path: Path) -> None:
    stored = store(picture(), "MONOCHROME2")
    recording = read(write(tmp_path / "a.dcm", EXPLICIT, stored, NumberOfFrames=num_declared), "n", ALL)
    np.testing.assert_array_equal(recording.frames, stored.frames)
    assert not recording.is_truncated


@given(st.binary(max_size=400), st.integers(1, 9), st.booleans())
@settings(max_examples=300, deadline=None)
def test_walks_of_any_bytes_stay_inside(data: bytes, num_declared: int, has_signature: bool) -> None:
    def begins(head: bytes) -> bool:
        return head[:1] < b"\x80"

    for locate in (
        lambda: group_fragments(data, walk_fragments(data, 0), (), num_declared, begins if has_signature else None),
        lambda: group_fragments(_items([b"", data, data]), walk_fragments(_items([b"", data, data]), 0), (), 2, begins),
        lambda: locate_native(data, 3, 300, 7, num_declared),
    ):
        try:
            found = locate()
        except Rejected:
            continue
        assert all(0 <= start <= end <= len(found.data) for pieces in found.pieces for start, end in pieces)


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


# Levels


def test_overlay_in_unused_bits_is_dropped(tmp_path: Path) -> None:
    stored = store(picture(), "12 of 16 bits")
    text = np.zeros(stored.samples.shape, np.uint16)
    text[:, 5:12, 5:30] = 0x8000
    path = write(tmp_path / "a.dcm", EXPLICIT, replace(stored, samples=stored.samples | text))
    np.testing.assert_array_equal(read(path, "n", ALL).frames, stored.frames)
    shifted = replace(stored, samples=(stored.samples << 3) | (text >> 15))
    path = write(tmp_path / "a.dcm", RLE, shifted, HighBit=14)
    np.testing.assert_array_equal(read(path, "n", ALL).frames, stored.frames)


def test_signed_levels_keep_their_order(tmp_path: Path) -> None:
    stored = store(picture(), "12 of 16 bits")
    signed = replace(stored, samples=(stored.samples.astype(np.int16) - 2000).view(np.uint16))
    path = write(tmp_path / "a.dcm", EXPLICIT, signed, PixelRepresentation=1)
    np.testing.assert_array_equal(read(path, "n", ALL).frames, stored.frames)


def test_one_window_per_clip(tmp_path: Path) -> None:
    samples = np.stack([np.full((20, 20), level, np.uint16) for level in (100, 600, 1100)])
    samples[:, 0, 0] = 100
    stored = replace(store(picture(3, 20, 20), "12 of 16 bits"), samples=samples)
    frames = read(write(tmp_path / "a.dcm", EXPLICIT, stored), "n", ALL).frames
    assert frames[:, 5, 5].tolist() == [0, 128, 255]


def test_big_endian_words_of_8_bits(tmp_path: Path) -> None:
    stored = store(picture(), "MONOCHROME2")
    path = write(tmp_path / "a.dcm", BIG_ENDIAN, stored, stored.samples.view("<u2").byteswap().tobytes())
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x7f\xe0\x00\x10OB", b"\x7f\xe0\x00\x10OW"))
    np.testing.assert_array_equal(read(path, "n", ALL).frames, stored.frames)


def test_full_chroma_named_halved(tmp_path: Path) -> None:
    stored = store(picture(), "YBR_FULL")
    path = write(tmp_path / "a.dcm", EXPLICIT, stored, PhotometricInterpretation="YBR_FULL_422")
    np.testing.assert_array_equal(read(path, "n", ALL).frames, stored.frames)


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

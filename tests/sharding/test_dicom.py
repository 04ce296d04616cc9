"""DICOM: every transfer syntax decodes to the samples that went in, in the right colours and levels."""

import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest

from pipeline.bench.transcode import (
    BIG_ENDIAN,
    DEFLATED,
    DEFLATED_FRAMES,
    EXPLICIT,
    IMPLICIT,
    RLE,
    encode_frame,
    encode_video,
    store,
)
from sharding.recording import FrameChoice, Reason
from sharding.sources import read
from sharding.sources.colour import is_rgb_jpeg, split_planes
from sharding.sources.dicom_codestream import read_jpeg
from tests.sharding.dicom_files import ALL, BASELINE, J2K, JPEG, LOSSLESS, picture, reason_of, write

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
            file.write(b"\xff")  # black throughout is no picture
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

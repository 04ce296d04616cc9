"""DICOM: offset tables, frame counts and files that end early."""

import struct
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from pipeline.bench.transcode import (
    DEFLATED,
    DEFLATED_FRAMES,
    EXPLICIT,
    RLE,
    Stored,
    dataset_of,
    encode_frame,
    store,
    write_file,
)
from sharding.recording import Reason, Rejected
from sharding.sources import read
from sharding.sources.dicom_pixels import group_fragments, locate_native, walk_fragments
from tests.sharding.dicom_files import ALL, BASELINE, J2K, picture, reason_of, write


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

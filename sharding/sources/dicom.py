"""Ultrasound DICOM: the chosen frames, the declared regions and the few tags that may leave the file."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut

from sharding.deidentify import allowed_tags, is_patient
from sharding.recording import MAX_BYTES, MAX_FRAMES, MAX_SIDE, FrameChoice, Reason, Recording, Rejected
from sharding.sources.colour import stack_planes
from sharding.sources.dicom_codec import CODECS, NATIVE, PALETTE, VIDEO, Codec, Layout, decode_native
from sharding.sources.dicom_header import Header, read_header
from sharding.sources.dicom_pixels import Frames, group_fragments, locate_native, walk_fragments
from sharding.sources.dicom_tags import frame_times_ms, other_regions, tissue_regions
from sharding.sources.video import read_stream

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_ACCEPTED = {_STORAGE + end for end in ("6.1", "3.1", "6", "3")}  # ultrasound (multi-frame), and as retired
_CAMERAS = {_STORAGE + end for end in ("77.1.1.1", "77.1.2.1", "77.1.4", "77.1.4.1", "77.1.1", "77.1.2")}
_CAPTURE = _STORAGE + "7"  # secondary capture and its multi-frame kinds
_DIRECTORY = "1.2.840.10008.1.3.10"
_BITS = {8, 16, 32}
_SAMPLES = {1, 3}
_MAX_GREY = 255


def read_dicom(path: Path, name: str, choice: FrameChoice) -> Recording:
    """Decode the chosen frames of a DICOM file to grey and colour planes (T, H, W) uint8.

    Args:
        path: file.
        name: patient and clip of a file that has no identifiers.
        choice: which frames.

    Raises:
        Rejected: with the reason.

    """
    header = read_header(path)
    _refuse_other_kinds(header)
    layout, num_declared = replace(_layout(header), with_colour=choice.with_colour), _num_declared(header.dataset)
    _refuse_large(layout, num_declared)
    if header.syntax in VIDEO:
        recording = _read_video(header, layout, num_declared, choice)
    else:
        recording = _read_frames(header, layout, num_declared, choice)
    return _with_tags(recording, header.dataset, name)


def _refuse_other_kinds(header: Header) -> None:
    dataset = header.dataset
    kind = _text(dataset, "SOPClassUID")
    if header.start is None or kind == _DIRECTORY:
        raise Rejected(Reason.NOT_IMAGE)
    if kind in _CAMERAS or kind == _CAPTURE or kind.startswith(f"{_CAPTURE}."):
        raise Rejected(Reason.SOP_REFUSED)
    if _text(dataset, "Modality") != "US":
        raise Rejected(Reason.NOT_ULTRASOUND)
    if kind not in _ACCEPTED:
        raise Rejected(Reason.UNSUPPORTED_SOP)
    if header.syntax not in {*NATIVE, *VIDEO, *CODECS} or (header.syntax in NATIVE) != (header.length is not None):
        raise Rejected(Reason.UNSUPPORTED_CODEC)


def _text(dataset: Dataset, name: str) -> str:
    return str(dataset.get(name) or "").strip("\0 ")


def _layout(header: Header) -> Layout:
    dataset = header.dataset

    def number(name: str, default: int) -> int:
        value = dataset.get(name)
        return default if value is None else int(value)

    allocated = number("BitsAllocated", 8)
    stored = number("BitsStored", allocated)
    layout = Layout(
        rows=number("Rows", 0),
        columns=number("Columns", 0),
        num_samples=number("SamplesPerPixel", 1),
        num_allocated=allocated,
        num_stored=stored,
        high_bit=number("HighBit", stored - 1),
        is_signed=number("PixelRepresentation", 0) == 1,
        photometric=_text(dataset, "PhotometricInterpretation"),
        is_planar=number("PlanarConfiguration", 0) == 1,
        order="<" if header.is_little_endian else ">",
    )
    if allocated not in _BITS or layout.num_samples not in _SAMPLES:
        raise Rejected(Reason.UNSUPPORTED_CODEC)
    if not 1 <= stored <= layout.high_bit + 1 <= allocated:
        raise Rejected(Reason.UNDECODABLE)
    return layout


def _num_declared(dataset: Dataset) -> int:
    return max(1, int(dataset.get("NumberOfFrames") or 1))


def _refuse_large(layout: Layout, num_frames: int) -> None:
    if min(layout.size) < 1:
        raise Rejected(Reason.EMPTY)
    if max(layout.size) > MAX_SIDE or num_frames > MAX_FRAMES or layout.frame_bytes * num_frames > MAX_BYTES:
        raise Rejected(Reason.TOO_LARGE)


def _read_frames(header: Header, layout: Layout, num_declared: int, choice: FrameChoice) -> Recording:
    if header.syntax in NATIVE:
        layout = _as_stored(header, layout, num_declared)
        frames, codec = _native_frames(header, layout, num_declared), Codec(decode_native)
    else:
        codec = CODECS[header.syntax]
        frames = _encapsulated_frames(header, codec, num_declared)
    frame_ids = choice.decoded(len(frames))
    planes, colour = stack_planes(_pictures(header.dataset, layout, codec, (frames.read(int(i)) for i in frame_ids)))
    return Recording(
        frames=_MAX_GREY - planes if layout.photometric == "MONOCHROME1" else planes,
        frame_ids=frame_ids,
        source_kind="dicom",
        patient="",
        clip="",
        colour=colour,
        frame_times_ms=frame_times_ms(header.dataset, frame_ids, len(frames)),
        is_lossy=codec.is_lossy or _text(header.dataset, "LossyImageCompression") == "01",
        is_truncated=frames.is_truncated or header.is_cut,
    )


def _as_stored(header: Header, layout: Layout, num_declared: int) -> Layout:
    """Chroma halved by name is not always halved in the file; the length tells."""
    assert header.length is not None
    is_short = header.length < layout.frame_bytes * num_declared
    is_halved = layout.photometric.endswith("_422") and is_short and layout.columns % 2 == 0
    return replace(layout, is_halved=is_halved)


def _native_frames(header: Header, layout: Layout, num_declared: int) -> Frames:
    assert header.start is not None
    assert header.length is not None
    data, start, length = header.data, header.start, header.length
    if not header.is_little_endian and layout.num_allocated == 8 and _is_word(header):  # noqa: PLR2004
        data, start = _swapped(data[start : start + length]), 0
    return locate_native(data, start, length, layout.frame_bytes, num_declared)


def _is_word(header: Header) -> bool:
    """Whether 8-bit samples lie in 16-bit words, which big endian turns around."""
    assert header.start is not None
    return header.data[header.start - 8 : header.start - 6] == b"OW"


def _swapped(words: bytes) -> bytes:
    return np.frombuffer(words[: len(words) // 2 * 2], "<u2").byteswap().tobytes()


def _encapsulated_frames(header: Header, codec: Codec, num_declared: int) -> Frames:
    assert header.start is not None
    table = header.dataset.get("ExtendedOffsetTable") or b""
    extended = tuple(np.frombuffer(table, "<u8", count=len(table) // 8).tolist())
    found = walk_fragments(header.data, header.start)
    return group_fragments(header.data, found, extended, num_declared, codec.begins, codec.end_mark)


def _pictures(dataset: Dataset, layout: Layout, codec: Codec, frames: Iterator[bytes]) -> Iterator[np.ndarray]:
    finish = _palette(dataset, layout) if layout.photometric == PALETTE else _same
    for data in frames:
        yield finish(codec.decode(data, layout))


def _same(picture: np.ndarray) -> np.ndarray:
    return picture


def _palette(dataset: Dataset, layout: Layout) -> Callable[[np.ndarray], np.ndarray]:
    """Look-up from indices (H, W) to RGB (H, W, 3) uint8.

    A table of 16-bit entries may hold 8-bit levels; its descriptor does not tell, its largest entry does.
    """
    indices = np.arange(1 << min(16, layout.num_stored), dtype=np.uint8 if layout.num_stored <= 8 else np.uint16)  # noqa: PLR2004
    table: np.ndarray[Any, Any] = apply_color_lut(indices, dataset)
    levels = (table >> 8 if table.max() > _MAX_GREY else table).astype(np.uint8)
    return lambda picture: levels[picture]


def _read_video(header: Header, layout: Layout, num_declared: int, choice: FrameChoice) -> Recording:
    assert header.start is not None
    found = walk_fragments(header.data, header.start)
    data = b"".join(header.data[start:end] for start, end in found.pieces)
    stream = read_stream(data, num_declared, choice, layout.size)
    times = frame_times_ms(header.dataset, stream.frame_ids, stream.num_frames)
    is_truncated = found.is_cut or (not found.has_end and stream.num_frames < num_declared)
    return replace(stream.recording("dicom", "", is_truncated), frame_times_ms=times)


def _study_or(name: str, study: str) -> str:
    """What keeps recordings of one patient together where nobody says who it is; no PatientID reads like it."""
    return f"\0study\0{study}" if study else name


def _with_tags(recording: Recording, dataset: Dataset, name: str) -> Recording:
    patient, study = _text(dataset, "PatientID"), _text(dataset, "StudyInstanceUID")
    has_patient = is_patient(patient)
    boxes, spacing = tissue_regions(dataset)
    manufacturer = _text(dataset, "Manufacturer")
    return replace(
        recording,
        patient=f"{patient}\0{_text(dataset, 'IssuerOfPatientID')}" if has_patient else _study_or(name, study),
        study=study,
        has_patient=has_patient,
        clip=_text(dataset, "SOPInstanceUID") or name,
        regions=boxes,
        excluded=other_regions(dataset),
        mm_per_pixel=spacing,
        tags=allowed_tags(manufacturer, _text(dataset, "BodyPartExamined")),
        device=(manufacturer, _text(dataset, "ManufacturerModelName")),
    )

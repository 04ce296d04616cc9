"""Ultrasound DICOM: pixels, declared regions and the few tags that may leave the file.

Facts about the attributes: DICOM PS3.3 C.8.5.5 (region calibration), C.7.6.5 (cine).
"""

import warnings
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, get_decoder

from sharding.deidentify import allowed_tags
from sharding.recording import MAX_BYTES, MAX_FRAMES, MAX_SIDE, Box, Reason, Recording, Rejected

_ACCEPTED_SOPS = {
    uid.UltrasoundImageStorage,
    uid.UltrasoundMultiFrameImageStorage,
    "1.2.840.10008.5.1.4.1.1.6",  # retired Ultrasound Image, still in old archives
    "1.2.840.10008.5.1.4.1.1.3",  # retired Ultrasound Multi-frame Image
}
_RGB = 3  # samples per pixel
_MAX_GREY = 255
_MM_RANGE = (0.01, 10.0)  # plausible size of a pixel
_TWO_D, _TISSUE, _COLOUR_FLOW, _CENTIMETRE = 1, 1, 2, 3


def patient_of(path: Path, name: str) -> str:
    """Patient identifier of a DICOM file, `name` when the file has none."""
    header = _header(path)
    patient = str(header.get("PatientID", "") or "").strip("\0 ")
    return f"{patient}\0{header.get('IssuerOfPatientID', '')}" if patient else name


def read_dicom(path: Path, name: str) -> Recording:
    """Decode a DICOM file to grey frames (T, H, W) uint8.

    Raises:
        Rejected: `undecodable`, `not_ultrasound`, `unsupported_sop`, `unsupported_codec`, `too_large`, `empty`.

    """
    dataset = _header(path)
    _refuse_other_kinds(dataset)
    frames = _grey_frames(dataset)
    boxes, spacing = _tissue_regions(dataset)
    return Recording(
        frames=frames,
        source_kind="dicom",
        patient=patient_of(path, name),
        clip=str(dataset.get("SOPInstanceUID", name)),
        regions=boxes,
        excluded=_other_regions(dataset),
        frame_times_ms=_frame_times_ms(dataset, len(frames)),
        mm_per_pixel=spacing,
        tags=allowed_tags(str(dataset.get("Manufacturer", "")), str(dataset.get("BodyPartExamined", ""))),
    )


def _header(path: Path) -> FileDataset:
    # pydicom reads pixel data lazily enough for our sizes; warnings would echo values of the file.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return pydicom.dcmread(path, defer_size="1 MB")
        except (InvalidDicomError, OSError, ValueError, EOFError) as error:
            raise Rejected(Reason.UNDECODABLE) from error


def _refuse_other_kinds(dataset: FileDataset) -> None:
    if dataset.get("Modality") != "US":
        raise Rejected(Reason.NOT_ULTRASOUND)
    if dataset.get("SOPClassUID") not in _ACCEPTED_SOPS:
        raise Rejected(Reason.UNSUPPORTED_SOP)
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    try:
        available = syntax is not None and get_decoder(syntax).is_available
    except NotImplementedError:  # video, JPEG XL, private
        available = False
    if not available:
        raise Rejected(Reason.UNSUPPORTED_CODEC)
    rows, columns = int(dataset.get("Rows", 0)), int(dataset.get("Columns", 0))
    num_frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if max(rows, columns) > MAX_SIDE or num_frames > MAX_FRAMES or rows * columns * num_frames > MAX_BYTES:
        raise Rejected(Reason.TOO_LARGE)


def _grey_frames(dataset: FileDataset) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels = dataset.pixel_array  # pydicom 3 has turned YBR into RGB here
            if dataset.PhotometricInterpretation == "PALETTE COLOR":
                pixels = apply_color_lut(pixels, dataset)
        except Exception as error:  # codecs raise anything on hostile bytes; the text would echo them
            raise Rejected(Reason.UNDECODABLE) from error
    if pixels.size == 0:
        raise Rejected(Reason.EMPTY)
    is_colour = pixels.shape[-1] == _RGB
    if pixels.ndim == 2 + is_colour:
        pixels = pixels[None]
    pixels = _to_eight_bits(pixels, dataset)
    if is_colour:
        return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in pixels])
    return 255 - pixels if dataset.PhotometricInterpretation == "MONOCHROME1" else pixels


def _to_eight_bits(pixels: np.ndarray, dataset: FileDataset) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        # A 16-bit palette may hold 8-bit values; its descriptor does not tell, its largest value does.
        return (pixels >> 8 if pixels.max() > _MAX_GREY else pixels).astype(np.uint8)
    scale = _MAX_GREY / (2 ** int(dataset.BitsStored) - 1)
    scaled: np.ndarray = (pixels.astype(np.float32) * scale).clip(0, _MAX_GREY).astype(np.uint8)
    return scaled


def _box(region: Dataset) -> Box:
    return (
        int(region.RegionLocationMinX0),
        int(region.RegionLocationMinY0),
        int(region.RegionLocationMaxX1),
        int(region.RegionLocationMaxY1),
    )


def _is_tissue(region: Dataset) -> bool:
    return region.get("RegionSpatialFormat") == _TWO_D and region.get("RegionDataType") in {
        _TISSUE,
        _COLOUR_FLOW,
    }


def _tissue_regions(
    dataset: FileDataset,
) -> tuple[tuple[Box, ...] | None, tuple[tuple[float, float] | None, ...]]:
    tissue = [region for region in dataset.get("SequenceOfUltrasoundRegions", []) if _is_tissue(region)]
    boxes = tuple(_box(region) for region in tissue)
    inside = all(0 <= x0 < x1 < dataset.Columns and 0 <= y0 < y1 < dataset.Rows for x0, y0, x1, y1 in boxes)
    if not boxes or not inside:  # somebody resampled the pixels and left the tag: none of it is true any more
        return None, ()
    return boxes, tuple(_mm_per_pixel(region) for region in tissue)


def _mm_per_pixel(region: Dataset) -> tuple[float, float] | None:
    if {region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection")} != {_CENTIMETRE}:
        return None
    x, y = (abs(float(region.get(f"PhysicalDelta{axis}", 0))) * 10 for axis in "XY")
    low, high = _MM_RANGE
    plausible = low <= x <= high and low <= y <= high
    return (x, y) if plausible else None


def _other_regions(dataset: FileDataset) -> tuple[Box, ...]:
    return tuple(_box(r) for r in dataset.get("SequenceOfUltrasoundRegions", []) if not _is_tissue(r))


def _frame_times_ms(dataset: FileDataset, num_frames: int) -> np.ndarray | None:
    vector = dataset.get("FrameTimeVector")
    if vector is not None and len(vector) == num_frames:
        return np.cumsum(np.asarray(vector, dtype=np.float64))
    rate = dataset.get("CineRate") or dataset.get("RecommendedDisplayFrameRate")
    frame_time = dataset.get("FrameTime") or (1000 / float(rate) if rate else None)
    return None if frame_time is None else np.arange(num_frames) * float(frame_time)

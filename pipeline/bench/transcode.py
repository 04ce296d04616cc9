"""Frames to DICOM files of any transfer syntax, for the table of formats and for tests; the product only decodes.

MPEG-2, H.264 and HEVC need PyAV, which only the tests install.
"""

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.pixels import apply_color_lut, convert_color_space
from pydicom.uid import generate_uid

DEFLATED, BIG_ENDIAN, IMPLICIT = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2"
EXPLICIT, RLE, DEFLATED_FRAMES = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.8.1"
NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)
_US, _US_CINE = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1"
_QUALITY = 97
_BITS_12 = 4095


@dataclass(frozen=True)
class Stored:
    """A recording as samples to be stored, and what must come out again.

    Attributes:
        samples: (T, H, W) or (T, H, W, 3), as an encoder takes them.
        rgb: (T, H, W, 3) uint8 for encoders that convert colour themselves, None for grey.
        attributes: of the image pixel module.
        frames: (T, H, W) uint8 that `read` must give back.
        colour: (T, H, W) uint8 likewise, None for grey.

    """

    samples: np.ndarray
    rgb: np.ndarray | None
    attributes: dict[str, Any]
    frames: np.ndarray
    colour: np.ndarray | None


def store(rgb: np.ndarray, column: str) -> Stored:
    """Samples of frames (T, H, W, 3) in one photometric interpretation; `column` is one of `COLUMNS`."""
    return _STORES[column](rgb)


def _planes(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    grey = np.stack([cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in rgb])
    return grey, np.ptp(rgb, axis=-1)


def _attributes(photometric: str, num_samples: int = 1, num_bits: int = 8, num_stored: int = 8) -> dict[str, Any]:
    attributes = {
        "SamplesPerPixel": num_samples,
        "PhotometricInterpretation": photometric,
        "BitsAllocated": num_bits,
        "BitsStored": num_stored,
        "HighBit": num_stored - 1,
        "PixelRepresentation": 0,
    }
    return attributes | ({"PlanarConfiguration": 0} if num_samples > 1 else {})


def _grey(rgb: np.ndarray) -> Stored:
    grey = _planes(rgb)[0]
    return Stored(grey, None, _attributes("MONOCHROME2"), grey, None)


def _inverse(rgb: np.ndarray) -> Stored:
    grey = _planes(rgb)[0]
    return Stored(255 - grey, None, _attributes("MONOCHROME1"), grey, None)


def _twelve_bits(rgb: np.ndarray) -> Stored:
    levels = _planes(rgb)[0].astype(np.uint16) * 13 + 9
    low, high = int(levels.min()), int(levels.max())
    frames = ((levels.astype(np.float64) - low) * 255 / (high - low)).round().astype(np.uint8)
    return Stored(levels, None, _attributes("MONOCHROME2", 1, 16, 12), frames, None)


def _palette(rgb: np.ndarray) -> Stored:
    indices = _planes(rgb)[0]
    attributes = _attributes("PALETTE COLOR")
    ramp = np.arange(256, dtype=np.uint16)
    for name, levels in (("Red", ramp), ("Green", ramp // 2 + 60), ("Blue", 255 - ramp)):
        attributes[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        attributes[f"{name}PaletteColorLookupTableData"] = (levels * 257).astype("<u2").tobytes()
    dataset = Dataset()
    dataset.update({})
    for name, value in attributes.items():
        setattr(dataset, name, value)
    coloured = (apply_color_lut(indices, dataset) >> 8).astype(np.uint8)
    return Stored(indices, None, attributes, *_planes(coloured))


def _rgb(rgb: np.ndarray, photometric: str = "RGB") -> Stored:
    return Stored(rgb, rgb, _attributes(photometric, 3), *_planes(rgb))


def _planar(rgb: np.ndarray) -> Stored:
    return Stored(np.moveaxis(rgb, -1, 1), rgb, _attributes("RGB", 3) | {"PlanarConfiguration": 1}, *_planes(rgb))


def _ybr(rgb: np.ndarray) -> Stored:
    ybr = np.stack([convert_color_space(frame, "RGB", "YBR_FULL") for frame in rgb])
    back = np.stack([convert_color_space(frame, "YBR_FULL", "RGB") for frame in ybr])
    return Stored(ybr, rgb, _attributes("YBR_FULL", 3), *_planes(back))


def _ybr_422(rgb: np.ndarray) -> Stored:
    """Two bytes per pixel: Y1 Y2 Cb Cr."""
    ybr = np.stack([convert_color_space(frame, "RGB", "YBR_FULL") for frame in rgb])
    halved = ybr[:, :, ::2, 1:]
    shape = (*ybr.shape[:2], ybr.shape[2] // 2, 2)
    samples = np.concatenate([ybr[..., 0].reshape(shape), halved], axis=-1)
    ybr[..., 1:] = np.repeat(halved, 2, axis=2)
    back = np.stack([convert_color_space(frame, "YBR_FULL", "RGB") for frame in ybr])
    return Stored(samples, rgb, _attributes("YBR_FULL_422", 3), *_planes(back))


_STORES: dict[str, Callable[[np.ndarray], Stored]] = {
    "MONOCHROME2": _grey,
    "MONOCHROME1": _inverse,
    "12 of 16 bits": _twelve_bits,
    "PALETTE COLOR": _palette,
    "RGB": _rgb,
    "RGB planar": _planar,
    "YBR_FULL": _ybr,
    "YBR_FULL_422": _ybr_422,
    "YBR_RCT": lambda rgb: _rgb(rgb, "YBR_RCT"),
    "YBR_ICT": lambda rgb: _rgb(rgb, "YBR_ICT"),
    "YBR_PARTIAL_420": lambda rgb: _rgb(rgb, "YBR_PARTIAL_420"),
}
COLUMNS = tuple(_STORES)


def encode_frame(syntax: str, stored: Stored, number: int) -> bytes:
    """One frame in a transfer syntax that has fragments per frame."""
    pixels = np.ascontiguousarray(stored.samples[number])
    photometric, num_bits = stored.attributes["PhotometricInterpretation"], stored.attributes["BitsStored"]
    family = syntax.rsplit(".", 1)[-1]
    if syntax == RLE:
        return _rle(pixels)
    if syntax == DEFLATED_FRAMES:
        engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return engine.compress(pixels.tobytes()) + engine.flush()
    if family in {"50", "51"}:
        return _jpeg(pixels if stored.rgb is None else np.ascontiguousarray(stored.rgb[number]), photometric, num_bits)
    if family in {"57", "70"}:
        predictor = 1 if family == "70" else 4
        spaces: dict[str, Any] = {"colorspace": "RGB", "outcolorspace": "RGB"} if pixels.ndim > 2 else {}  # noqa: PLR2004
        return bytes(
            imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=predictor, bitspersample=num_bits, **spaces)
        )
    if family in {"80", "81"}:
        return bytes(imagecodecs.jpegls_encode(pixels, level=0 if family == "80" else 1))
    return _wavelet(family, pixels, stored, number)


def _wavelet(family: str, pixels: np.ndarray, stored: Stored, number: int) -> bytes:
    photometric, num_bits = stored.attributes["PhotometricInterpretation"], stored.attributes["BitsStored"]
    has_transform = photometric in {"YBR_RCT", "YBR_ICT"}
    if family in {"90", "91", "92", "93"}:
        is_lossless = family in {"90", "92"} or photometric == "YBR_RCT"
        kind = {"codecformat": "j2k", "mct": has_transform, "bitspersample": num_bits, "reversible": is_lossless}
        return bytes(imagecodecs.jpeg2k_encode(pixels, level=0 if is_lossless else 48, **kind))
    if family in {"201", "202", "203"}:
        is_lossless = family != "203" or photometric == "YBR_RCT"
        level = None if is_lossless else 0.002 * 2.0 ** (8 - num_bits)
        return bytes(imagecodecs.htj2k_encode(pixels, level=level, reversible=is_lossless, rgb=has_transform))
    if family == "111":
        data = _jpeg(pixels if stored.rgb is None else np.ascontiguousarray(stored.rgb[number]), photometric, num_bits)
        return bytes(imagecodecs.jpegxl_encode_jpeg(data))
    distance: dict[str, Any] = {} if family == "110" else {"distance": 0.3}
    return bytes(imagecodecs.jpegxl_encode(pixels, lossless=family == "110", bitspersample=num_bits, **distance))


def _jpeg(pixels: np.ndarray, photometric: str, num_bits: int) -> bytes:
    if pixels.ndim == 2:  # noqa: PLR2004 - grey
        return bytes(imagecodecs.jpeg8_encode(pixels, level=_QUALITY, bitspersample=num_bits))
    space = "RGB" if photometric == "RGB" else "YCBCR"
    subsampling = "422" if photometric.endswith("_422") else "444"
    kind: dict[str, Any] = {"colorspace": "RGB", "outcolorspace": space, "subsampling": subsampling}
    return bytes(imagecodecs.jpeg8_encode(pixels, level=_QUALITY, **kind))


def _rle(pixels: np.ndarray) -> bytes:
    """Segments by sample and then by byte, the highest first; PackBits row by row (PS3.5 G)."""
    samples = pixels[..., None] if pixels.ndim == 2 else pixels  # noqa: PLR2004 - grey
    octets = samples.astype(samples.dtype.newbyteorder(">")).view(np.uint8)
    octets = octets.reshape(*samples.shape, samples.itemsize)
    segments = []
    for sample in range(samples.shape[2]):
        for place in range(samples.itemsize):
            rows = octets[:, :, sample, place]
            packed = b"".join(bytes(imagecodecs.packbits_encode(row.tobytes())) for row in rows)
            segments.append(packed + b"\0" * (len(packed) % 2))
    offsets = [64 + sum(map(len, segments[:number])) for number in range(len(segments))]
    header = np.array([len(segments), *offsets, *[0] * (15 - len(segments))], "<u4")
    return header.tobytes() + b"".join(segments)


def encode_video(rgb: np.ndarray, codec: str, container: str, pixel_format: str = "yuv420p", rate: int = 20) -> bytes:
    """Frames (T, H, W, 3) as a video, of good quality.

    Args:
        rgb: frames.
        codec: FFmpeg's name of an encoder.
        container: FFmpeg's name of a format.
        pixel_format: FFmpeg's name.
        rate: frames per second.

    """
    import av  # noqa: PLC0415 - only the tests install it

    options = {
        "mpeg2video": {"qmin": "1", "qmax": "1", "b": "60M"},
        "mpeg4": {"b": "60M"},
        "libx264": {"crf": "8"},
        "libx265": {"crf": "6", "x265-params": "log-level=none"},
    }.get(codec, {})
    target = io.BytesIO()
    with av.open(target, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = rgb.shape[1:3]
        stream.pix_fmt = pixel_format
        for frame in rgb:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        output.mux(stream.encode())
    return target.getvalue()


def dataset_of(stored: Stored, **extra: object) -> Dataset:
    """Ultrasound data set around samples, without pixel data; `extra` overrides attributes by keyword."""
    num_frames, rows, columns = stored.frames.shape
    dataset = Dataset()
    values = {"SOPClassUID": _US_CINE if num_frames > 1 else _US, "SOPInstanceUID": generate_uid(), "Modality": "US"}
    values |= {"PatientID": "P1", "Rows": rows, "Columns": columns, "NumberOfFrames": num_frames}
    for name, value in (values | stored.attributes | extra).items():
        if value is not None:
            setattr(dataset, name, value)
    return dataset


def write_file(path: Path, syntax: str, dataset: Dataset, fragments: list[bytes] | bytes) -> None:
    """Write a DICOM file.

    Args:
        path: file.
        syntax: transfer syntax UID, also one that pydicom does not know.
        dataset: without pixel data.
        fragments: one per frame, or native pixels.

    """
    dataset.PixelData = fragments if isinstance(fragments, bytes) else encapsulate(fragments, has_bot=True)
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 or not isinstance(fragments, bytes) else "OW"  # noqa: PLR2004
    dataset["PixelData"].is_undefined_length = not isinstance(fragments, bytes)
    meta = Dataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    body = _serialise(dataset, syntax == IMPLICIT, syntax != BIG_ENDIAN)
    if syntax == DEFLATED:
        engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = engine.compress(body) + engine.flush()
    path.write_bytes(b"\0" * 128 + b"DICM" + _serialise(meta, False, True) + body)


def _serialise(dataset: Dataset, is_implicit: bool, is_little: bool) -> bytes:
    target = DicomBytesIO()
    target.is_implicit_VR, target.is_little_endian = is_implicit, is_little
    write_dataset(target, dataset)
    return target.getvalue()


def native_bytes(syntax: str, stored: Stored) -> bytes:
    """Native pixels in the byte order of a transfer syntax."""
    is_little = syntax != BIG_ENDIAN
    return stored.samples.astype(stored.samples.dtype.newbyteorder("<" if is_little else ">")).tobytes()

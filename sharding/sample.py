"""The sample: one frame as it lies in a tar, and the rules that keep it readable and nameless.

Members of a sample are `<key>.jpg` (codec `jpeg`) or `<key>.zst` (codec `zstd`: the grey levels, row by row), with
`<key>.region.png` and `<key>.json`, so that any WebDataset reader can open a shard.
"""

import json
import re
import zlib
from dataclasses import dataclass
from typing import Literal

import cv2
import imagecodecs
import numpy as np

KEY = re.compile(r"[a-z0-9_-]+")  # a dot would end the key in WebDataset readers and merge samples
_JPEG_QUALITY = 95
_ZSTD_LEVEL = 1  # speckle does not shrink further

Codec = Literal["jpeg", "zstd"]
EXTENSION: dict[Codec, str] = {"jpeg": "jpg", "zstd": "zst"}

SourceKind = Literal["dicom", "video", "image"]
_ONE_BIT_GREY = bytes([1, 0, 0, 0, 0])  # depth, colour type, compression, filter, interlace of a PNG header
Certificate = Literal["tag", "motion", "profile", "public", "as_is"]


@dataclass(frozen=True)
class Meta:
    """Everything that is said about a frame: numbers and closed codes, no free text.

    Attributes:
        dataset: name of the shard directory's dataset.
        clip: pseudonym of the clip.
        frame: index in the recording.
        percentiles: grey levels (low, high) at 2 and 98 % inside the region.
        source_kind: `dicom`, `video` or `image`.
        certificate: what vouches for the region: `tag`, `motion`, `profile`, `public`, `as_is`.
        time_ms: milliseconds since the first frame of the recording.
        mm_per_pixel: (x, y).
        manufacturer: family, from a closed table.
        body_part: coded, from a closed table.
        patient: pseudonym of the patient, or of the group that a table of labels gives.
        label: class name from a table of labels.

    """

    dataset: str
    clip: str
    frame: int
    percentiles: tuple[int, int]
    source_kind: SourceKind
    certificate: Certificate
    time_ms: float | None = None
    mm_per_pixel: tuple[float, float] | None = None
    manufacturer: str | None = None
    body_part: str | None = None
    patient: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Sample:
    """One stored frame.

    Attributes:
        key: name in the tar, matches KEY.
        frame: (h, w) uint8, zero outside the region.
        region: (h, w) bool.
        meta: what is said about it.

    """

    key: str
    frame: np.ndarray
    region: np.ndarray
    meta: Meta


def encode(sample: Sample, codec: Codec = "jpeg") -> dict[str, bytes]:
    """Members of a sample by file name, sorted.

    Raises:
        ValueError: the key has a character that is not in [a-z0-9_-].

    """
    frame = encode_frame(sample.frame, sample.region, codec)
    return name_members(sample.key, sample.meta, frame, encode_region(sample.region), codec)


def extensions_of(codec: Codec) -> list[str]:
    """Of the members of a sample, sorted."""
    return sorted([EXTENSION[codec], "json", "region.png"])


def name_members(key: str, meta: Meta, frame: bytes, region_png: bytes, codec: Codec = "jpeg") -> dict[str, bytes]:
    """Members of a sample whose pixels are encoded already, sorted."""
    if not KEY.fullmatch(key):
        raise ValueError(f"key {key!r}: only [a-z0-9_-] is allowed, a dot would merge samples in readers")
    known = {name: value for name, value in vars(meta).items() if value is not None}
    said = json.dumps(known, sort_keys=True, separators=(",", ":")).encode()
    content = {EXTENSION[codec]: frame, "json": said, "region.png": region_png}
    return {f"{key}.{extension}": content[extension] for extension in extensions_of(codec)}


def encode_frame(frame: np.ndarray, region: np.ndarray, codec: Codec = "jpeg") -> bytes:
    """Code of a frame (h, w) uint8; after it nothing outside the region (h, w) bool exists."""
    if codec == "zstd":
        return bytes(imagecodecs.zstd_encode((frame * region).tobytes(), level=_ZSTD_LEVEL))
    return _encoded(".jpg", frame * region, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])


def encode_region(region: np.ndarray) -> bytes:
    """One-bit PNG of a region (h, w) bool."""
    options = [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    return _encoded(".png", region * np.uint8(255), options)


def _encoded(extension: str, pixels: np.ndarray, options: list[int]) -> bytes:
    done, data = cv2.imencode(extension, pixels, options)
    if not done:
        raise RuntimeError(f"OpenCV could not encode {pixels.shape} {pixels.dtype} as {extension}")
    return data.tobytes()


def decode(key: str, members: dict[str, bytes]) -> Sample:
    """Read a sample from its members by extension (`jpg` or `zst`, `region.png`, `json`).

    The frame is zero outside the region again: JPEG rings over the border.

    Raises:
        ValueError: a member is missing or does not decode; the message names the key and the member.

    """
    for extension in ("zst" if "zst" in members else "jpg", "region.png", "json"):
        if extension not in members:
            raise ValueError(f"sample {key}: no .{extension}; it has {sorted(members)}")
    region = decode_region(members["region.png"])
    if region is None:
        region = decode_grey(key, "region.png", members["region.png"]) > 0
    frame = _decode_zstd(key, members["zst"], region) if "zst" in members else decode_grey(key, "jpg", members["jpg"])
    if frame.shape != region.shape:
        raise ValueError(f"sample {key}: frame is {frame.shape}, region {region.shape}; they must be equal")
    meta = json.loads(members["json"])
    pairs = {name: tuple(meta[name]) for name in ("percentiles", "mm_per_pixel") if name in meta}
    return Sample(key, frame * region, region, Meta(**(meta | pairs)))


def _decode_zstd(key: str, data: bytes, region: np.ndarray) -> np.ndarray:
    try:
        levels = imagecodecs.zstd_decode(data, out=region.size)
    except (imagecodecs.ZstdError, ValueError) as error:
        raise ValueError(f"sample {key}: .zst ({len(data)} bytes) does not decode") from error
    if len(levels) != region.size:
        raise ValueError(f"sample {key}: .zst holds {len(levels)} grey levels, the region is {region.shape}")
    return np.frombuffer(levels, np.uint8).reshape(region.shape)


def decode_region(png: bytes) -> np.ndarray | None:
    """Region (h, w) bool of a PNG as encode_region writes it, a quarter of OpenCV's time; None for any other PNG."""
    if png[24:29] != _ONE_BIT_GREY or png[37:41] != b"IDAT":
        return None
    columns, rows, num_bytes = (int.from_bytes(png[start : start + 4]) for start in (16, 20, 33))
    try:
        rows_of_bits = zlib.decompressobj().decompress(png[41 : 41 + num_bytes], rows * (1 + -(-columns // 8)))
        packed = np.frombuffer(rows_of_bits, np.uint8).reshape(rows, 1 + -(-columns // 8))
    except (zlib.error, ValueError):
        return None
    if packed[:, 0].any():  # a filter
        return None
    return np.unpackbits(packed[:, 1:]).reshape(rows, -1)[:, :columns].view(bool)


def decode_grey(key: str, extension: str, data: bytes) -> np.ndarray:
    """Picture of a member (h, w) uint8.

    Raises:
        ValueError: it does not decode; the message names the key and the member.

    """
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
    if pixels is None:
        raise ValueError(f"sample {key}: .{extension} ({len(data)} bytes) does not decode")
    return pixels

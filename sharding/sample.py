"""The sample: one frame as it lies in a tar, and the rules that keep it readable and nameless.

Members of a sample are `<key>.jpg` (or `.zst`), `<key>.region.png` and `<key>.json`, so that any WebDataset reader can
open a shard.
"""

import json
import re
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

KEY = re.compile(r"[a-z0-9_-]+")  # a dot would end the key in WebDataset readers and merge samples
_JPEG_QUALITY = 95

SourceKind = Literal["dicom", "video", "image"]
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


def encode(sample: Sample) -> dict[str, bytes]:
    """Members of a sample by file name, sorted.

    Raises:
        ValueError: the key has a character that is not in [a-z0-9_-].

    """
    jpg = encode_frame(sample.frame, sample.region)
    return name_members(sample.key, sample.meta, jpg, encode_region(sample.region))


def name_members(key: str, meta: Meta, jpg: bytes, region_png: bytes) -> dict[str, bytes]:
    """Members of a sample whose pixels are encoded already."""
    if not KEY.fullmatch(key):
        raise ValueError(f"key {key!r}: only [a-z0-9_-] is allowed, a dot would merge samples in readers")
    known = {name: value for name, value in vars(meta).items() if value is not None}
    said = json.dumps(known, sort_keys=True, separators=(",", ":")).encode()
    return {f"{key}.jpg": jpg, f"{key}.json": said, f"{key}.region.png": region_png}


def encode_frame(frame: np.ndarray, region: np.ndarray) -> bytes:
    """JPEG of a frame (h, w) uint8; after it nothing outside the region (h, w) bool exists."""
    return _encoded(".jpg", frame * region, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])


def encode_region(region: np.ndarray) -> bytes:
    """One-bit PNG of a region (h, w) bool."""
    return _encoded(".png", region * np.uint8(255), [cv2.IMWRITE_PNG_BILEVEL, 1])


def _encoded(extension: str, pixels: np.ndarray, options: list[int]) -> bytes:
    done, data = cv2.imencode(extension, pixels, options)
    if not done:
        raise RuntimeError(f"OpenCV could not encode {pixels.shape} {pixels.dtype} as {extension}")
    return data.tobytes()


def decode(key: str, members: dict[str, bytes]) -> Sample:
    """Read a sample from its members by extension (`jpg`, `region.png`, `json`).

    The frame is zero outside the region again: JPEG rings over the border.

    Raises:
        ValueError: a member is missing or does not decode; the message names the key and the member.

    """
    for extension in ("jpg", "region.png", "json"):
        if extension not in members:
            raise ValueError(f"sample {key}: no .{extension}; it has {sorted(members)}")
    frame = decode_grey(key, "jpg", members["jpg"])
    region = decode_grey(key, "region.png", members["region.png"]) > 0
    if frame.shape != region.shape:
        raise ValueError(f"sample {key}: frame is {frame.shape}, region {region.shape}; they must be equal")
    meta = json.loads(members["json"])
    pairs = {name: tuple(meta[name]) for name in ("percentiles", "mm_per_pixel") if name in meta}
    return Sample(key, frame * region, region, Meta(**(meta | pairs)))


def decode_grey(key: str, extension: str, data: bytes) -> np.ndarray:
    """Picture of a member (h, w) uint8.

    Raises:
        ValueError: it does not decode; the message names the key and the member.

    """
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
    if pixels is None:
        raise ValueError(f"sample {key}: .{extension} ({len(data)} bytes) does not decode")
    return pixels

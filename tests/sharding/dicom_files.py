"""Small DICOM files of every kind, for the tests of the reader."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.bench.transcode import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    Stored,
    dataset_of,
    encode_frame,
    native_bytes,
    write_file,
)
from sharding.recording import FrameChoice, Reason, Rejected
from sharding.sources import read

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

"""From a recording to the frames that are stored: the one preprocessing of shards, labelled sets and embeddings."""

from dataclasses import dataclass

import cv2
import numpy as np

from sharding.recording import Recording
from sharding.region import Region, find_regions

SHORT_SIDE = 256  # pixels of a stored frame; smaller frames keep their size
_LOW, _HIGH = 2, 98  # percentiles that become black and white (US-JEPA section 4.3)


@dataclass(frozen=True)
class Clip:
    """The frames of one region of a recording, ready to be stored.

    Attributes:
        frames: (T, h, w) uint8, zero outside the region, cropped to its bounding box.
        region: (h, w) bool.
        frame_ids: (T,) index of each frame in the recording.
        percentiles: grey levels (low, high) at 2 and 98 % inside the region, over the clip.
        mm_per_pixel: (x, y) after resizing, None where unknown.
        certificate: what vouches for the region.

    """

    frames: np.ndarray
    region: np.ndarray
    frame_ids: np.ndarray
    percentiles: tuple[int, int]
    mm_per_pixel: tuple[float, float] | None
    certificate: str


def cut_clips(recording: Recording, max_frames: int, public: bool = False) -> list[Clip]:
    """Cut a recording into one clip per region, at most `max_frames` evenly spaced frames each.

    Raises:
        Rejected: when no region is certified.

    """
    num_frames = len(recording.frames)
    frame_ids = np.linspace(0, num_frames - 1, min(num_frames, max_frames)).round().astype(int)
    return [_cut(recording.frames[frame_ids], frame_ids, r) for r in find_regions(recording, public)]


def _cut(frames: np.ndarray, frame_ids: np.ndarray, region: Region) -> Clip:
    rows, columns = np.flatnonzero(region.mask.any(axis=1)), np.flatnonzero(region.mask.any(axis=0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    mask = region.mask[box]
    scale = min(1.0, SHORT_SIDE / min(mask.shape))
    size = (round(mask.shape[1] * scale), round(mask.shape[0] * scale))
    small_mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)
    small = np.stack([cv2.resize(frame[box] * mask, size, interpolation=cv2.INTER_AREA) for frame in frames])
    small *= small_mask
    low, high = np.percentile(small[:, small_mask], (_LOW, _HIGH)).round().astype(int)
    spacing = region.mm_per_pixel
    return Clip(
        frames=small,
        region=small_mask,
        frame_ids=frame_ids,
        percentiles=(int(low), int(high)),
        mm_per_pixel=None if spacing is None else (spacing[0] / scale, spacing[1] / scale),
        certificate=region.certificate,
    )


def stretch(frame: np.ndarray, region: np.ndarray, percentiles: tuple[int, int]) -> np.ndarray:
    """Map the percentiles (low, high) to 0 and 255, zero outside the region; (h, w) uint8 in and out."""
    low, high = percentiles
    levels = (np.arange(256, dtype=np.float32) - low) * (255 / max(high - low, 1))
    stretched: np.ndarray = cv2.LUT(frame, levels.clip(0, 255).round().astype(np.uint8)) * region
    return stretched


def to_square(frame: np.ndarray, region: np.ndarray, size: int) -> np.ndarray:
    """Fit a frame and its region into a black square, keeping the aspect ratio: speckle stays as round as it was.

    Args:
        frame: (h, w) uint8.
        region: (h, w) bool.
        size: side of the square in pixels.

    Returns:
        (2, size, size) uint8: frame, and region as 0 or 255.

    """
    scale = size / max(frame.shape)
    width, height = max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))
    top, left = (size - height) // 2, (size - width) // 2
    square = np.zeros((2, size, size), dtype=np.uint8)
    inside = (slice(top, top + height), slice(left, left + width))
    shrink = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    square[0][inside] = cv2.resize(frame, (width, height), interpolation=shrink)
    mask = region.astype(np.uint8) * 255
    square[1][inside] = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    return square

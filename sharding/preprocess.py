"""From a recording to the frames that are stored: the one preprocessing of shards, labelled sets and embeddings."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from sharding.marks import remove_marks
from sharding.profiles import Profile
from sharding.recording import NUM_WITNESSES, FrameChoice, Reason, Recording, Rejected
from sharding.region import Region, find_regions
from sharding.text import frames_have_text, groups_have_text, has_text

Pixels = Literal["certified", "public", "as_is"]
SHORT_SIDE = 256  # pixels of a stored frame; smaller frames keep their size
_LOW, _HIGH = 0.02, 0.98  # shares of the pixels below black and white (US-JEPA section 4.3)
_EQUAL = 0.5  # grey levels of mean difference below which a frame repeats the one before
_Box = tuple[slice, slice]


@dataclass(frozen=True)
class Clip:
    """The frames of one region of a recording, ready to be stored.

    Attributes:
        frames: (S, h, w) uint8, zero outside the region, cropped to its bounding box.
        region: (h, w) bool.
        frame_ids: (S,) index of each frame in the source.
        percentiles: grey levels (low, high) at 2 and 98 % inside the region, over at most 16 frames of the clip.
        mm_per_pixel: (x, y) after resizing, None where unknown.
        certificate: what vouches for the region.
        num_dropped: frames that repeated the one before.
        num_inpainted: frames in which coloured marks were painted over.
        num_refused: frames with more than 5 % coloured marks.

    """

    frames: np.ndarray
    region: np.ndarray
    frame_ids: np.ndarray
    percentiles: tuple[int, int]
    mm_per_pixel: tuple[float, float] | None
    certificate: str
    num_dropped: int = 0
    num_inpainted: int = 0
    num_refused: int = 0


def cut_clips(
    recording: Recording, choice: FrameChoice, pixels: Pixels = "certified", profiles: tuple[Profile, ...] = ()
) -> list[Clip]:
    """Cut a recording into one clip per region.

    Args:
        recording: the frames of `choice.decoded`.
        choice: which of them are stored.
        pixels: `certified` keeps what has a certificate and shows no text. `public`: the user vouches for the pixels
            (a published set); what has no certificate is kept, whole if no sector is found. `as_is`: whole frames,
            nothing is searched.
        profiles: device profiles that a site has signed.

    Raises:
        Rejected: no region is certified, text is in it, or it is coloured.

    """
    stored = np.isin(recording.frame_ids, choice.stored(int(recording.frame_ids[-1]) + 1))
    if pixels == "as_is":
        whole = Region(np.ones(recording.frames.shape[1:], dtype=bool), "as_is")
        return [cut_region(_chosen(recording.frames, stored), recording.frame_ids[stored], whole)]
    return [_screen(recording, region, stored, pixels) for region in find_regions(recording, pixels, profiles)]


def _screen(recording: Recording, region: Region, stored: np.ndarray, pixels: Pixels) -> Clip:
    """Remove coloured marks, cut, and look for text: at the source's resolution, and in every frame to be stored."""
    box = bounding_box(region.mask)
    frames, ids, inside = recording.frames[:, *box], recording.frame_ids, region.mask[box]
    num_inpainted = num_refused = 0
    if recording.colour is not None:
        cleaned = remove_marks(frames, recording.colour[:, *box], inside)
        num_refused = int((~cleaned.kept & stored).sum())
        frames, ids, stored = cleaned.frames, ids[cleaned.kept], stored[cleaned.kept]
        num_inpainted = cleaned.num_inpainted
        if not stored.any():
            raise Rejected(Reason.COLOUR_OVERLAY)
    chosen = _chosen(frames, stored)
    cropped = Region(inside, region.certificate, region.mm_per_pixel)
    clip = cut_region(chosen, ids[stored], cropped, num_inpainted, num_refused)
    if pixels == "certified" and shows_text(chosen, inside, clip):
        raise Rejected(Reason.TEXT_IN_REGION)
    return clip


def shows_text(frames: np.ndarray, region: np.ndarray, clip: Clip) -> bool:
    """Whether letters are seen at the source's resolution, or in any frame as it is stored."""
    is_shrunk = clip.region.shape != region.shape
    seen = has_text(frames, region) or (is_shrunk and groups_have_text(frames, region))
    return seen or frames_have_text(clip.frames, clip.region)


def _chosen(frames: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Most often all frames, which need no copy."""
    return frames if stored.all() else frames[stored]


def cut_region(
    frames: np.ndarray, frame_ids: np.ndarray, region: Region, num_inpainted: int = 0, num_refused: int = 0
) -> Clip:
    """Cut frames (S, H, W) uint8 to a region, make them smaller, and leave out those that repeat the one before."""
    box = bounding_box(region.mask)
    mask = region.mask[box].astype(np.uint8)
    scale = min(1.0, SHORT_SIDE / min(mask.shape))
    size = (round(mask.shape[1] * scale), round(mask.shape[0] * scale))
    small_mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    # What lies outside is black before the frame shrinks, so that no letter beside the sector bleeds into it.
    small = [_shrink(frame[box] * mask, size) * small_mask for frame in frames]
    kept = _changing(small, max(1, int(small_mask.sum())))
    spacing = region.mm_per_pixel
    return Clip(
        frames=np.stack([small[place] for place in kept]),
        region=small_mask.astype(bool),
        frame_ids=frame_ids[kept],
        percentiles=_percentiles(small[:: -(-len(small) // NUM_WITNESSES)], small_mask),
        mm_per_pixel=None if spacing is None else (spacing[0] / scale, spacing[1] / scale),
        certificate=region.certificate,
        num_dropped=len(small) - len(kept),
        num_inpainted=num_inpainted,
        num_refused=num_refused,
    )


def bounding_box(mask: np.ndarray) -> _Box:
    """Rows and columns of the smallest box around a mask (h, w) bool that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _shrink(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Mean over areas, by a whole number first: OpenCV is several times faster at that."""
    by = min(frame.shape[1] // size[0], frame.shape[0] // size[1])
    if by > 1:
        rows, columns = frame.shape[0] // by, frame.shape[1] // by
        frame = cv2.resize(frame[: rows * by, : columns * by], (columns, rows), interpolation=cv2.INTER_AREA)
    shrunk: np.ndarray = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return shrunk


def _changing(frames: list[np.ndarray], num_pixels: int) -> list[int]:
    """Places of the frames that differ from the last one kept."""
    kept = [0]
    for place in range(1, len(frames)):
        if cv2.norm(frames[kept[-1]], frames[place], cv2.NORM_L1) >= _EQUAL * num_pixels:
            kept.append(place)
    return kept


def _percentiles(frames: list[np.ndarray], mask: np.ndarray) -> tuple[int, int]:
    counts = sum(cv2.calcHist([frame], [0], mask, [256], [0, 256]).ravel() for frame in frames)
    below = np.cumsum(counts) / np.sum(counts)
    low, high = np.searchsorted(below, (_LOW, _HIGH))
    return int(low), int(high)


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
    # Down to half, two pixels in each direction cover what is taken together; areas would take ten times as long.
    shrink = cv2.INTER_LINEAR if scale >= 0.5 else cv2.INTER_AREA  # noqa: PLR2004
    square[0][inside] = cv2.resize(frame, (width, height), interpolation=shrink)
    mask = region.astype(np.uint8) * 255
    square[1][inside] = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    return square

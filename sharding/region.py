"""Where the ultrasound is: the part of the frame that may be kept.

A region is certified by one of two witnesses, or refused (design: fail closed):
`tag`: a region that the scanner declared and that lies inside the image, cut down to the solid sector in it
(the declared box itself often holds text); `motion`: in a cine without such a tag, the one solid area that
moves. A still without a tag has no witness: its banner can look like its sector.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from sharding.recording import Box, Reason, Recording, Rejected

_DARK = 12  # grey level that black borders stay below after JPEG
_MIN_MOTION = 2.5  # grey levels of standard deviation over time
_MIN_AREA, _MAX_AREA = 0.05, 0.98  # share of the frame
_MIN_SOLIDITY = 0.75  # area over area of the convex hull; a sector is convex but for its curved top
_MOTION_FRAMES = 16
_LIT_SHARE = 0.3  # of the frames in which a pixel of the sector is lit
_SOLID_DENSITY = 0.6  # share of lit pixels around one of tissue; text stays below
_MIN_CINE_FRAMES = 8


@dataclass(frozen=True)
class Region:
    """One sector of a recording.

    Attributes:
        mask: (H, W) bool, true inside.
        certificate: `tag`, `motion`, or `public` when the user vouches for the pixels.
        mm_per_pixel: (x, y), None where unknown.

    """

    mask: np.ndarray
    certificate: str
    mm_per_pixel: tuple[float, float] | None = None


def find_regions(recording: Recording, public: bool = False) -> list[Region]:
    """Find the sectors of a recording, one per declared 2-D region.

    Args:
        recording: frames (T, H, W) with what the source declares.
        public: the user vouches that the pixels identify nobody (a published set): what has no certificate
            is kept, whole if no sector is found.

    Raises:
        Rejected: `no_cone`, `no_motion`, `uncertified_still`.

    """
    if recording.regions is not None:
        return _regions_from_tags(recording)
    if len(recording.frames) >= _MIN_CINE_FRAMES:
        mask = _moving_sector(recording.frames)
        reason = Reason.NO_MOTION
    else:
        mask, reason = None, Reason.UNCERTIFIED_STILL
    if mask is not None:
        return [Region(mask, "motion")]
    if not public:
        raise Rejected(reason)
    brightest = recording.frames.max(axis=0)
    sector = _solid_sector(brightest > _DARK)
    return [Region(np.ones_like(brightest, dtype=bool) if sector is None else sector, "public")]


def _regions_from_tags(recording: Recording) -> list[Region]:
    assert recording.regions is not None
    brightest = recording.frames.max(axis=0)
    found = []
    for box, spacing in zip(recording.regions, recording.mm_per_pixel, strict=True):
        inside = _box_mask(brightest.shape, box)
        for other in recording.excluded:
            inside &= ~_box_mask(brightest.shape, other)
        mask = _solid_sector((brightest > _DARK) & inside)
        if mask is not None and (mask & inside).any():
            found.append(Region(mask & inside, "tag", spacing))
    if not found:
        raise Rejected(Reason.NO_CONE)
    return found


def _box_mask(shape: tuple[int, int], box: Box) -> np.ndarray:
    x0, y0, x1, y1 = box
    mask = np.zeros(shape, dtype=bool)
    mask[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1] = True
    return mask


def _moving_sector(frames: np.ndarray) -> np.ndarray | None:
    chosen = frames[np.linspace(0, len(frames) - 1, _MOTION_FRAMES).round().astype(int)].astype(np.float32)
    bright = (chosen > _DARK).mean(axis=0) > _LIT_SHARE
    return _solid_sector(bright & (chosen.std(axis=0) > _MIN_MOTION))


def _solid_sector(lit: np.ndarray) -> np.ndarray | None:
    """Largest solid area of a (H, W) bool map, as its convex hull shrunk a little; None where there is none.

    Text has a stroke every few pixels, tissue is lit throughout: the local density of lit pixels tells them
    apart, and an opening wider than a stroke cuts what hangs on to the sector.
    """
    height, width = lit.shape
    reach = max(3, round(min(height, width) / 40)) | 1
    density = cv2.blur(lit.astype(np.float32), (reach, reach))
    solid = (density > _SOLID_DENSITY).astype(np.uint8)
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    opened = cv2.morphologyEx(solid, cv2.MORPH_OPEN, brush)
    joined = cv2.morphologyEx(opened, cv2.MORPH_CLOSE, brush)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(joined)
    if count == 1:  # background alone
        return None
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    area = int(stats[largest, cv2.CC_STAT_AREA])
    hull = _convex_hull((labels == largest).astype(np.uint8))
    if not _MIN_AREA <= hull.mean() <= _MAX_AREA or area < _MIN_SOLIDITY * hull.sum():
        return None
    shrink = max(1, round(height / 200))
    kept: np.ndarray = cv2.erode(hull, np.ones((2 * shrink + 1, 2 * shrink + 1), np.uint8)).astype(bool)
    return kept


def _convex_hull(mask: np.ndarray) -> np.ndarray:
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    hull = np.zeros_like(mask)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.concatenate(contours)), 1)
    return hull

"""Where the ultrasound is: the part of the frame that may be kept.

A region is certified by a witness, or refused (fail closed):
`tag`: a region that the scanner declared and that lies inside the image, cut down to the solid sector in it (the
declared box itself often holds text); `motion`: in a cine without such a tag, the one solid area that moves, in
both halves of the clip; `profile`: a device profile that the site has signed, cut down to the solid sector
in it. A still with none of these has no witness: its banner can look like its sector.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from sharding.profiles import Profile, find_profile
from sharding.recording import NUM_WITNESSES, Box, Reason, Recording, Rejected

_DARK = 12  # grey level that black borders stay below after JPEG
_MIN_MOTION = 2.5  # grey levels of standard deviation over time
_MIN_AREA, _MAX_AREA = 0.05, 0.98  # share of the frame
_MIN_SOLIDITY = 0.75  # area over area of the convex hull; a sector is convex but for its curved top
_MIN_AGREEMENT = 0.6  # share of the moving pixels of a sector that move in each half of the clip
_LIT_SHARE = 0.3  # of the frames in which a pixel of the sector is lit
_SOLID_DENSITY = 0.5  # share of lit pixels around one of tissue; text stays below
_MIN_CINE_FRAMES = 8
_WORK_SIDE = 240  # pixels, short side of the pictures that are searched
_TOP_ROWS = 0.04  # share of the rows that hold banners, never a moving sector


@dataclass(frozen=True)
class Region:
    """One sector of a recording.

    Attributes:
        mask: (H, W) bool, true inside.
        certificate: `tag`, `motion`, `profile`, or `public`, `as_is` when the user vouches for the pixels.
        mm_per_pixel: (x, y), None where unknown.

    """

    mask: np.ndarray
    certificate: str
    mm_per_pixel: tuple[float, float] | None = None


def find_regions(recording: Recording, pixels: str, profiles: tuple[Profile, ...] = ()) -> list[Region]:
    """Find the sectors of a recording, one per declared 2-D region.

    Args:
        recording: frames (T, H, W) with what the source declares.
        pixels: `certified`, or `public`: the user vouches that the pixels identify nobody, so what has no certificate
            is kept, whole if no sector is found.
        profiles: device profiles that a site has signed.

    Raises:
        Rejected: `no_cone`, `no_motion`, `uncertified_still`.

    """
    shape = recording.frames.shape[1:]
    if pixels == "public" and recording.mask is not None:
        return [Region(recording.mask, "public")]
    if recording.regions is not None:
        return _regions_from_tags(recording)
    profile = find_profile(profiles, recording.device, shape)
    if profile is not None:
        return [_region_in(recording, profile.mask(), "profile", None)]
    is_cine = len(recording.frames) >= _MIN_CINE_FRAMES
    mask = _moving_sector(recording.frames) if is_cine else None
    if mask is not None:
        return [Region(mask, "motion")]
    if pixels != "public":
        raise Rejected(Reason.NO_MOTION if is_cine else Reason.UNCERTIFIED_STILL)
    sector = _solid_sector(_small(recording.frames).max(axis=0) > _DARK, shape)
    return [Region(np.ones(shape, dtype=bool) if sector is None else sector, "public")]


def _regions_from_tags(recording: Recording) -> list[Region]:
    assert recording.regions is not None
    found = []
    for box, spacing in zip(recording.regions, recording.mm_per_pixel, strict=True):
        inside = _box_mask(recording.frames.shape[1:], box)
        for other in recording.excluded:
            inside &= ~_box_mask(inside.shape, other)
        try:
            found.append(_region_in(recording, inside, "tag", spacing))
        except Rejected:
            continue  # a box without a sector in it; another may have one
    if not found:
        raise Rejected(Reason.NO_CONE)
    return found


def _region_in(
    recording: Recording, inside: np.ndarray, certificate: str, spacing: tuple[float, float] | None
) -> Region:
    """The solid sector inside a mask (H, W) bool that somebody vouches for."""
    small = _small(recording.frames)
    brightest = small.max(axis=0)
    allowed = cv2.resize(inside.astype(np.uint8), brightest.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    mask = _solid_sector((brightest > _DARK) & allowed, inside.shape)
    if mask is None or not (mask & inside).any():
        raise Rejected(Reason.NO_CONE)
    return Region(mask & inside, certificate, spacing)


def _box_mask(shape: tuple[int, ...], box: Box) -> np.ndarray:
    x0, y0, x1, y1 = box
    mask = np.zeros(shape, dtype=bool)
    mask[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1] = True
    return mask


def _small(frames: np.ndarray) -> np.ndarray:
    """At most 16 frames, shrunk by a whole number to a short side of at least 240."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(len(frames), NUM_WITNESSES)).round().astype(int)]
    by = max(1, min(frames.shape[1:]) // _WORK_SIDE)
    size = (frames.shape[2] // by, frames.shape[1] // by)
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in chosen])


def _moving_sector(frames: np.ndarray) -> np.ndarray | None:
    small, shape = _small(frames), frames.shape[1:]
    moving = _moving(small)
    found = _solid_sector(moving, shape)
    if found is None or found[: round(_TOP_ROWS * shape[0])].any():
        return None
    inside = cv2.resize(found.astype(np.uint8), moving.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    half, expected = len(small) // 2, _MIN_AGREEMENT * (moving & inside).sum()
    agree = all((_moving(part) & inside).sum() >= expected for part in (small[:half], small[half:]))
    return found if agree else None


def _moving(frames: np.ndarray) -> np.ndarray:
    """(h, w) bool, lit in many frames and changing."""
    levels = frames.astype(np.float32)
    lit = (frames > _DARK).mean(axis=0) > _LIT_SHARE
    moving: np.ndarray = lit & (levels.std(axis=0) > _MIN_MOTION)
    return moving


def _solid_sector(lit: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Largest solid area of a (h, w) bool map, as its convex hull shrunk a little, in a given shape; None without one.

    Text has a stroke every few pixels, tissue is lit throughout: the local density of lit pixels tells them apart, and
    an opening wider than a stroke cuts what hangs on to the sector.
    """
    reach = max(3, round(min(lit.shape) / 40)) | 1
    density = cv2.blur(lit.astype(np.float32), (reach, reach))
    solid = (density > _SOLID_DENSITY).astype(np.uint8)
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    opened = cv2.morphologyEx(solid, cv2.MORPH_OPEN, brush)
    core = _largest(cv2.morphologyEx(opened, cv2.MORPH_CLOSE, brush))
    if core is None:
        return None
    corners = cv2.bitwise_and(cv2.dilate(core, brush), solid)  # the opening has rounded them
    sector = cv2.morphologyEx(core | corners, cv2.MORPH_CLOSE, brush)
    hull = _convex_hull(sector)
    if not _MIN_AREA <= hull.mean() <= _MAX_AREA or core.sum() < _MIN_SOLIDITY * hull.sum():
        return None
    # A curved array's sector is hollow at the top: the hull spans it, and letters may stand there.
    kept = hull & cv2.dilate(sector, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    whole = cv2.resize(kept, shape[::-1], interpolation=cv2.INTER_NEAREST)
    shrink = max(1, round(shape[0] / 200))
    inner: np.ndarray = cv2.erode(
        cv2.copyMakeBorder(whole, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0),
        np.ones((2 * shrink + 1, 2 * shrink + 1), np.uint8),
    )[1:-1, 1:-1]
    return inner.astype(bool)


def _largest(mask: np.ndarray) -> np.ndarray | None:
    """Largest connected area of a (h, w) uint8 map of 0 and 1; None where it is empty."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    if count == 1:  # background alone
        return None
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    area: np.ndarray = (labels == largest).astype(np.uint8)
    return area


def _convex_hull(mask: np.ndarray) -> np.ndarray:
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    hull = np.zeros_like(mask)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.concatenate(contours)), 1)
    return hull

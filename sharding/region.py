"""Where the ultrasound is: the part of the frame that may be kept.

A region is certified by a witness, or refused (fail closed):
`tag`: a region that the scanner declared and that lies inside the image, cut down to the sector in it (the declared
box itself often holds text); `motion`: in a cine without such a tag, a solid area that moves in both halves of the clip
and neither scrolls nor is written over from left to right, as M-mode, spectra and ECG are; `profile`: a device profile
that the site has signed, cut down to the sector in it. A still with none of these has no witness: its banner can look
like its sector.
"""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from sharding.profiles import Profile, find_profile
from sharding.recording import NUM_WITNESSES, Box, Reason, Recording, Rejected
from sharding.sector import find_sectors

_DARK = 12  # grey level that black borders stay below after JPEG
_DIM = 4  # grey levels above black that a faded far field has on average, and the surroundings of text do not
_MIN_MOTION, _DIM_MOTION = 2.5, 0.6  # grey levels of standard deviation over time
_MIN_AGREEMENT = 0.6  # share of the moving pixels of a sector that move in each half of the clip
_LIT_SHARE = 0.3  # of the frames in which a pixel of the sector is lit
_MIN_CINE_FRAMES = 8  # that differ
_STILL = 0.05  # grey levels of mean difference, over a frame, up to which it repeats the one before
_SAME_COLUMN = 0.5  # likewise over a column: a trace has not been written there
_WORK_SIDE = 240  # pixels, short side of the pictures that are searched
_TOP_ROWS = 0.04  # share of the rows that hold banners, never a moving sector
_SAME = 0.5  # correlation of the speckle of a trace with itself, moved back, and how much less it is in place
_NEARER = 0.2
_NUM_TRACED = 9  # frames in which a trace is looked for
_LAGS = 1, 2, 4  # frames between the two of a pair: a slow trace has hardly moved after one
_SWEPT = 0.4  # share of the columns that a trace changes from one frame to the next
_MARGIN = 0.005  # of the rows, eroded from every sector


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
    allowed = _allowed(recording)
    if pixels == "public" and recording.mask is not None:
        return [_some(recording.mask & allowed, "public")]
    try:
        return _certified(recording, allowed, profiles)
    except Rejected:
        if pixels != "public":
            raise
    sectors = _bright_sectors(_small(recording.frames), _at_work_size(recording, allowed))
    sector = _whole(sectors[0], allowed.shape) & allowed if sectors else allowed
    return [_some(sector if sector.any() else allowed, "public")]


def _allowed(recording: Recording) -> np.ndarray:
    """(H, W) bool, false in what the source declares for something else than tissue."""
    allowed = np.ones(recording.frames.shape[1:], dtype=bool)
    for box in recording.excluded:
        allowed &= ~_box_mask(allowed.shape, box)
    return allowed


def _some(mask: np.ndarray, certificate: str, spacing: tuple[float, float] | None = None) -> Region:
    """A region that is not empty."""
    if not mask.any():
        raise Rejected(Reason.NO_CONE)
    return Region(mask, certificate, spacing)


def _certified(recording: Recording, allowed: np.ndarray, profiles: tuple[Profile, ...]) -> list[Region]:
    """Regions that the scanner, a profile or motion vouches for, inside what is allowed (H, W) bool."""
    if recording.regions is not None:
        return _regions_from_tags(recording, allowed)
    profile = find_profile(profiles, recording.device, allowed.shape)
    if profile is not None:
        return [_region_in(recording, profile.mask() & allowed, "profile", None)]
    small = _small(recording.frames)
    if len(small) < _MIN_CINE_FRAMES:
        raise Rejected(Reason.UNCERTIFIED_STILL)
    is_cine = _num_distinct(small) >= _MIN_CINE_FRAMES
    sectors = _moving_sectors(small, _at_work_size(recording, allowed)) if is_cine else []
    masks = [_whole(sector, allowed.shape) & allowed for sector in sectors]
    masks = [mask for mask in masks if mask.any() and not mask[: round(_TOP_ROWS * len(mask))].any()]
    if not masks:
        raise Rejected(Reason.NO_MOTION)
    return [Region(mask, "motion") for mask in masks]


def _regions_from_tags(recording: Recording, allowed: np.ndarray) -> list[Region]:
    assert recording.regions is not None
    found = []
    for box, spacing in zip(recording.regions, recording.mm_per_pixel, strict=True):
        inside = _box_mask(allowed.shape, box) & allowed
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
    """The sector inside a mask (H, W) bool that somebody vouches for."""
    sectors = _bright_sectors(_small(recording.frames), _at_work_size(recording, inside))
    mask = _whole(sectors[0], inside.shape) & inside if sectors else np.zeros_like(inside)
    return _some(mask, certificate, spacing)


def _box_mask(shape: tuple[int, ...], box: Box) -> np.ndarray:
    x0, y0, x1, y1 = box
    mask = np.zeros(shape, dtype=bool)
    mask[max(y0, 0) : max(y1 + 1, 0), max(x0, 0) : max(x1 + 1, 0)] = True
    return mask


def _small(frames: np.ndarray) -> np.ndarray:
    """At most 16 frames, shrunk by a whole number to a short side of at least 240."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(len(frames), NUM_WITNESSES)).round().astype(int)]
    size = _work_size(frames)
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in chosen])


def _work_size(frames: np.ndarray) -> tuple[int, int]:
    """Columns and rows of the pictures that are searched."""
    by = max(1, min(frames.shape[1:]) // _WORK_SIDE)
    return frames.shape[2] // by, frames.shape[1] // by


def _at_work_size(recording: Recording, mask: np.ndarray) -> np.ndarray:
    """(h, w) bool of a mask (H, W) bool."""
    size = _work_size(recording.frames)
    small: np.ndarray = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    return small


def _num_distinct(frames: np.ndarray) -> int:
    """Frames that differ from the one before by more than noise."""
    least = _STILL * frames[0].size
    return 1 + sum(bool(cv2.norm(*pair, cv2.NORM_L1) > least) for pair in pairwise(frames))


def _moving_sectors(frames: np.ndarray, allowed: np.ndarray) -> list[np.ndarray]:
    """(h, w) bool each, of (T, h, w) frames."""
    moving, faint = _moving(frames) & allowed, _deviation(frames) > _DIM_MOTION
    faint &= (frames.mean(axis=0) > _DIM) & allowed
    halves = [_moving(part) for part in (frames[: len(frames) // 2], frames[len(frames) // 2 :])]
    return [
        sector & allowed
        for sector in find_sectors(moving, faint)
        if all((half & sector).sum() >= _MIN_AGREEMENT * (moving & sector).sum() for half in halves)
        and not _is_trace(frames, sector)
    ]


def _bright_sectors(frames: np.ndarray, allowed: np.ndarray) -> list[np.ndarray]:
    brightest = frames.max(axis=0)
    return [sector & allowed for sector in find_sectors((brightest > _DARK) & allowed, (brightest > _DIM) & allowed)]


def _moving(frames: np.ndarray) -> np.ndarray:
    """(h, w) bool, lit in many frames and changing."""
    lit = (frames > _DARK).mean(axis=0) > _LIT_SHARE
    moving: np.ndarray = lit & (_deviation(frames) > _MIN_MOTION)
    return moving


def _deviation(frames: np.ndarray) -> np.ndarray:
    """(h, w) float32, standard deviation over time."""
    total, squares = (np.zeros(frames.shape[1:], np.float32) for _ in range(2))
    for frame in frames:
        cv2.accumulate(frame, total)
        cv2.accumulateSquare(frame, squares)
    mean = total / len(frames)
    return np.sqrt(np.maximum(squares / len(frames) - mean * mean, 0))


def _is_trace(frames: np.ndarray, sector: np.ndarray) -> bool:
    """Whether an area scrolls, or changes in few columns at a time: M-mode or a spectrum, no picture."""
    rows, columns = np.flatnonzero(sector.any(axis=1)), np.flatnonzero(sector.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    panes = frames[:_NUM_TRACED, *box].astype(np.float32)[:, ::2]  # rows of a trace are alike in this
    speckle = np.stack([_speckle(pane) for pane in panes])
    spectra = np.fft.rfft(speckle, cv2.getOptimalDFTSize(2 * speckle.shape[2]), axis=2)
    return any(_scrolls(speckle, spectra, lag) or _sweeps(panes, lag) for lag in _LAGS)


def _speckle(pane: np.ndarray) -> np.ndarray:
    """(h, w) float32, the fine pattern along the rows: layers stand still while it scrolls, as do marks drawn on it."""
    fine = cv2.blur(pane, (3, 1)) - cv2.blur(pane, (15, 1))  # half a pixel must not matter
    usual = 2 * float(np.median(np.abs(fine)))
    return np.asarray(fine.clip(-usual, usual))


def _scrolls(speckle: np.ndarray, spectra: np.ndarray, lag: int) -> bool:
    """Whether most frames are the one `lag` before, displaced to the left, or all to the right, and by the same.

    Args:
        speckle: (T, h, w) float32.
        spectra: of its rows, padded to at least 2 w.
        lag: in frames.

    """
    pairs = list(zip(speckle, speckle[lag:], spectra, spectra[lag:]))  # noqa: B905 - the last have no partner
    to_the_left, to_the_right = zip(*(_displacements(*pair) for pair in pairs), strict=True)
    return _is_steady(np.array(to_the_left)) or _is_steady(np.array(to_the_right))


def _is_steady(displacements: np.ndarray) -> bool:
    """Whether most pairs (n, 3) of `_displacements` have moved, and all by the same."""
    shift, moved, still = displacements.T
    steady = (shift > 0) & (np.abs(shift - np.median(shift)) <= 1)
    return bool((steady & (moved > _SAME) & (moved > still + _NEARER)).mean() > 0.5)  # noqa: PLR2004 - most


_Displacement = tuple[int, float, float]


def _displacements(
    first: np.ndarray, second: np.ndarray, spectrum: np.ndarray, other: np.ndarray
) -> tuple[_Displacement, _Displacement]:
    """To the left and to the right: columns moved by, correlation of the pictures (h, w) then, and in place."""
    columns = first.shape[1]
    likeness = np.fft.irfft((spectrum * other.conj()).sum(axis=0))
    reach = columns * 3 // 4
    overlap = columns - np.arange(reach)
    still = _correlation(first, second)
    left = int((likeness[:reach] / overlap).argmax())
    right = int((np.roll(likeness[::-1], 1)[:reach] / overlap).argmax())
    return (
        (left, _correlation(first[:, left:], second[:, : columns - left]), still),
        (right, _correlation(first[:, : columns - right], second[:, right:]), still),
    )


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float((first * second).mean() / (first.std() * second.std() + 1e-6))


def _sweeps(panes: np.ndarray, lag: int) -> bool:
    """Whether most frames differ from the one `lag` before in few columns."""
    changed = np.abs(panes[lag:] - panes[:-lag]).mean(axis=1) > _SAME_COLUMN
    some = changed.any(axis=1) & (changed.mean(axis=1) < _SWEPT)
    return bool(some.mean() > 0.5)  # noqa: PLR2004 - most


def _whole(sector: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The sector at the size of the frames, a little smaller."""
    whole = cv2.resize(sector.astype(np.float32), shape[::-1], interpolation=cv2.INTER_LINEAR) > 0.5  # noqa: PLR2004
    margin = max(1, round(_MARGIN * shape[0]))
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1))
    kept: np.ndarray = cv2.erode(whole.astype(np.uint8), brush).astype(bool)
    return kept

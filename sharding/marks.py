"""Coloured marks over grey tissue: calipers, labels, Doppler boxes. Few are painted over, many refuse the frame."""

from typing import NamedTuple

import cv2
import numpy as np

from sharding.recording import Reason, Rejected

MAX_SHARE = 0.05  # of the region's pixels; US-JEPA section 4.3
_COLOURED = 40  # largest minus smallest of red, green and blue; JPEG noise on grey stays below
_CAST = 0.5  # of the region's pixels, over all frames
_INK = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))  # reaches the soft edge of a mark
_RADIUS = 3  # pixels from which inpainting takes its values


class Cleaned(NamedTuple):
    """Frames without marks.

    Attributes:
        frames: (K, h, w) uint8.
        kept: (T,) bool, which of the frames given these are.
        num_inpainted: frames in which something was painted over.

    """

    frames: np.ndarray
    kept: np.ndarray
    num_inpainted: int


def remove_marks(frames: np.ndarray, colour: np.ndarray, region: np.ndarray) -> Cleaned:
    """Paint over coloured marks inside the region; leave out frames that have more than 5 % of them.

    Args:
        frames: (T, h, w) uint8, grey.
        colour: (T, h, w) uint8, see Recording.
        region: (h, w) bool.

    Raises:
        Rejected: `colour_cast`, `colour_overlay`.

    """
    inside = region.astype(np.uint8)
    marks = [cv2.threshold(plane, _COLOURED, 1, cv2.THRESH_BINARY)[1] & inside for plane in colour]
    shares = np.array([cv2.countNonZero(mark) for mark in marks]) / max(1, int(inside.sum()))
    if shares.mean() > _CAST:
        raise Rejected(Reason.COLOUR_CAST)
    kept = shares <= MAX_SHARE
    if not kept.any():
        raise Rejected(Reason.COLOUR_OVERLAY)
    cleaned = [
        cv2.inpaint(frame, cv2.dilate(mark, _INK), _RADIUS, cv2.INPAINT_TELEA) if share else frame
        for frame, mark, share, keep in zip(frames, marks, shares, kept, strict=True)
        if keep
    ]
    return Cleaned(np.stack(cleaned), kept, int((shares[kept] > 0).sum()))

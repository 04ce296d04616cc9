"""Degraded frames for probes that were fitted on clean ones.

Blur, contrast and speckle are those of US-JEPA (arXiv 2602.19322, section 5.4 and appendix F) with its strengths; gain,
shadow and attenuation are losses and gains in decibels on a log-compressed picture of 60 dB, where they are sums.
Beams are taken to run down the picture. Dimensions: n samples, S side in pixels.
"""

import hashlib
from collections.abc import Callable
from typing import Literal, get_args

import cv2
import numpy as np

from sharding.recording import InputError

Kind = Literal["blur", "contrast", "speckle", "gain", "shadow", "attenuation"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SEVERITIES = (1, 2, 3)

_CONTRAST = (0.7, 0.5, 0.3)  # share of the contrast that is left, by severity
_SPECKLE_SD = 0.35  # per step of severity, relative to the brightness
_SPECKLE_GRAIN = 0.5  # sd in pixels of the kernel that correlates speckle, per step of severity: ours
_LEVELS_PER_DB = 255 / 60
_GAIN_DB, _ATTENUATION_DB, _SHADOW_DB = 6.0, 10.0, 30.0  # the first two per step of severity
_SHADOW_WIDTH = 0.1  # of the region's width, per step of severity
_SHADOW_TOP = 0.5  # a shadow starts in this upper share of the region
_SHADOW_EDGE = 0.15  # half-width of its soft edge, of its width


def degrade(squares: np.ndarray, kind: Kind, severity: int, keys: np.ndarray, seed: int = 0) -> np.ndarray:
    """Degrade frames inside their regions; regions, and pixels outside them, stay as they are.

    What is drawn (speckle, the sign of the gain, the place of a shadow) depends on the sample's key, the kind and the
    seed alone, so neither the order nor the batch matters, and severities differ in strength only. A frame without a
    region counts as a region of its own, as in the pooling of features.

    - blur: Gaussian of sd `severity` and 4 severity + 1 pixels side, over the pixels inside the region.
    - contrast: med + a (I - med), med the median inside the region, a of 0.7, 0.5, 0.3.
    - speckle: I (1 + e), e normal of sd 0.35 severity, correlated by a Gaussian of sd severity / 2 pixels and brought
      back to its sd thereafter. The paper states neither kernel nor rescaling; without the latter the correlation
      would take away what the severity adds.
    - gain: 6 severity dB more, or less, by the sample's draw.
    - shadow: 30 dB less below some depth, in 10 severity % of the region's width.
    - attenuation: a loss in proportion to depth, 10 severity dB at the region's bottom.

    Args:
        squares: (n, 2, S, S) uint8, frame and region (0 or 255).
        kind: one of KINDS.
        severity: one of SEVERITIES.
        keys: (n,) text that names each sample.
        seed: of the draws.

    Returns:
        (n, 2, S, S) uint8, a copy.

    Raises:
        InputError: an unknown kind or severity, squares of another shape or type, keys of another length.

    """
    _check(squares, kind, severity, keys)
    change, degraded = _CHANGES[kind], squares.copy()
    for row, key in enumerate(keys):
        frame, inside = squares[row, 0], squares[row, 1] > 0
        if not inside.any():
            inside = np.ones_like(inside)
        changed = change(frame.astype(np.float32), inside, severity, _draws(str(key), kind, seed))
        degraded[row, 0][inside] = np.rint(changed[inside]).clip(0, 255)
    return degraded


def relative_drop(clean: float, degraded: float) -> float:
    """Share of a clean score that is lost, (clean - degraded) / clean; negative where degraded frames score higher.

    Raises:
        InputError: the clean score is not above 0.

    """
    if not clean > 0:
        raise InputError(f"robustness: the clean score is {clean}; a drop relative to it needs one above 0")
    return 1 - degraded / clean


def _blur(frame: np.ndarray, inside: np.ndarray, severity: int, _: np.random.Generator) -> np.ndarray:
    weight = inside.astype(np.float32)
    blurred, weights = (_gaussian(picture, severity, 4 * severity + 1) for picture in (frame * weight, weight))
    return np.asarray(blurred / np.where(inside, weights, 1))


def _contrast(frame: np.ndarray, inside: np.ndarray, severity: int, _: np.random.Generator) -> np.ndarray:
    median = np.median(frame[inside])
    return np.asarray(median + _CONTRAST[severity - 1] * (frame - median))


def _speckle(frame: np.ndarray, _: np.ndarray, severity: int, draws: np.random.Generator) -> np.ndarray:
    sd = _SPECKLE_GRAIN * severity
    noise = _gaussian(draws.standard_normal(frame.shape, np.float32), sd, 2 * int(np.ceil(4 * sd)) + 1)
    return np.asarray(frame * (1 + _SPECKLE_SD * severity * noise / noise.std()))


def _gain(frame: np.ndarray, _: np.ndarray, severity: int, draws: np.random.Generator) -> np.ndarray:
    sign = 1 if draws.random() < 0.5 else -1  # noqa: PLR2004 - either way as often
    return np.asarray(frame + sign * _GAIN_DB * severity * _LEVELS_PER_DB)


def _shadow(frame: np.ndarray, inside: np.ndarray, severity: int, draws: np.random.Generator) -> np.ndarray:
    centre, top = draws.random(), _SHADOW_TOP * draws.random()
    width = _SHADOW_WIDTH * severity
    from_centre = np.abs(_share_of_extent(inside, axis=1) - centre) / width
    across = ((0.5 + _SHADOW_EDGE - from_centre) / (2 * _SHADOW_EDGE)).clip(0, 1)
    below = _share_of_extent(inside, axis=0) >= top
    return np.asarray(frame - _SHADOW_DB * _LEVELS_PER_DB * np.outer(below, across))


def _attenuation(frame: np.ndarray, inside: np.ndarray, severity: int, _: np.random.Generator) -> np.ndarray:
    depth = _share_of_extent(inside, axis=0)[:, None]
    return np.asarray(frame - _ATTENUATION_DB * severity * _LEVELS_PER_DB * depth)


_Change = Callable[[np.ndarray, np.ndarray, int, np.random.Generator], np.ndarray]
_CHANGES: dict[Kind, _Change] = {
    "blur": _blur,
    "contrast": _contrast,
    "speckle": _speckle,
    "gain": _gain,
    "shadow": _shadow,
    "attenuation": _attenuation,
}


def _share_of_extent(inside: np.ndarray, axis: int) -> np.ndarray:
    """(S,) place along an axis: 0 at the first pixel of the region, 1 at its last one, beyond them outside."""
    places = np.flatnonzero(inside.any(axis=1 - axis))
    return np.asarray((np.arange(inside.shape[axis]) - places[0]) / max(1, places[-1] - places[0]))


def _gaussian(picture: np.ndarray, sd: float, side: int) -> np.ndarray:
    return np.asarray(cv2.GaussianBlur(picture, (side, side), sd, borderType=cv2.BORDER_CONSTANT))


def _draws(key: str, kind: Kind, seed: int) -> np.random.Generator:
    """The same for every severity, so that a more severe frame differs in strength only."""
    digest = hashlib.sha256(f"{seed} {kind} {key}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))


def _check(squares: np.ndarray, kind: str, severity: int, keys: np.ndarray) -> None:
    if kind not in KINDS:
        raise InputError(f"robustness: kind {kind}: is none of {', '.join(KINDS)}")
    if severity not in SEVERITIES:
        raise InputError(f"robustness: severity is {severity}; one of 1, 2, 3 is needed")
    if squares.ndim != 4 or squares.shape[1] != 2 or squares.dtype != np.uint8:  # noqa: PLR2004 - (n, 2, S, S)
        raise InputError(
            f"robustness: squares are {squares.dtype} of shape {squares.shape}; uint8 (n, 2, S, S) is needed"
        )
    if keys.shape != (len(squares),):
        raise InputError(f"robustness: keys have shape {keys.shape}; ({len(squares)},) is needed")

"""Clips for the trial of the text detector: with seeds and fonts that the training never saw, clean or with text."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.bench import text_drawing as drawing
from pipeline.bench import text_pictures as pictures

FAINT, CLEAR = (0.35, 0.6), (0.6, 1.0)  # contrast: text minus mean around it, as a share of the grey range
CAP_HEIGHTS = (8, 11), (11, 16), (16, 24), (24, 40)  # pixels
_SPANS = 40, 80  # dB between black and white
_LEAST_DETAIL = 0.7  # of the pixels: below that the smallest text cannot be read
_TRIES, _LEAST_CHARACTERS = 60, 3


@dataclass(frozen=True)
class Clip:
    """Frames (T, H, W) uint8 with their region (H, W) bool."""

    frames: np.ndarray
    region: np.ndarray
    name: str = ""


def generated_clip(rng: np.random.Generator) -> Clip:
    """Clean, of the project's generator."""
    return Clip(*pictures.synthetic_frames(rng))


def speckle_clip(rng: np.random.Generator, marks: bool = False) -> Clip:
    """Clean, of procedural speckle in a rectangle or a fan, with or without calipers, rulers and the like."""
    shape = [(240, 320), (400, 520), (600, 800)][int(rng.choice(3, p=[0.4, 0.4, 0.2]))]
    frames = pictures.speckle_frames(rng, shape, int(rng.choice([1, 8])), _SPANS)
    if marks:
        drawing.draw_marks(frames, rng)
    region = np.ones(shape, bool) if drawing.chance(rng, 0.4) else _fan(shape, rng)
    return Clip(pictures.degrade(frames, rng, _LEAST_DETAIL), region)


def _fan(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    height, width = shape
    inside = np.zeros(shape, np.uint8)
    apex = width // 2, -int(rng.uniform(0, 0.3) * height)
    angle = rng.uniform(25, 45)
    cv2.ellipse(inside, apex, [int(rng.uniform(0.8, 1.2) * height)] * 2, 90, -angle, angle, 1, -1)
    cv2.circle(inside, apex, int(rng.uniform(0.05, 0.4) * height), 0, -1)
    return inside.astype(bool)


def with_text(
    clip: Clip,
    rng: np.random.Generator,
    contrast: tuple[float, float],
    cap_heights: tuple[float, float],
    seen: bool = False,
) -> Clip | None:
    """The clip with opaque text of three or more characters somewhere in its region; None where none fits."""
    for _ in range(_TRIES):
        text = drawing.random_text(rng)
        if len(text.replace(" ", "")) < _LEAST_CHARACTERS:
            continue
        drawn = plant(clip, text, rng, contrast, cap_heights, seen=seen)
        if drawn is not None:
            return Clip(pictures.degrade(drawn.frames, rng, _LEAST_DETAIL), clip.region, clip.name)
    return None


def plant(
    clip: Clip,
    text: str,
    rng: np.random.Generator,
    contrast: tuple[float, float],
    cap_heights: tuple[float, float],
    *,
    seen: bool = False,
    turned: bool = False,
) -> Clip | None:
    """The clip with a text in all frames, at one place of its region; None where it does not fit at that place.

    Args:
        clip: what is drawn on.
        text: what is drawn.
        rng: source of chance.
        contrast: text minus mean around it, as a share of the grey range: from, to.
        cap_heights: of capital letters in pixels: from, to.
        seen: in a font of the training.
        turned: by 90 degrees.

    """
    fonts, share = drawing.fonts(seen), rng.uniform(*contrast)
    cap_height = math.exp(rng.uniform(*np.log(cap_heights)))
    coverage = drawing.write(text, fonts[int(rng.integers(len(fonts)))], cap_height, rng).coverage
    coverage = np.rot90(coverage) if turned else coverage
    place = _place(clip.region, coverage.shape, rng)
    if place is None:
        return None
    level = clip.frames[:, *place].mean() + 255 * share
    if level >= 255 * (1 + contrast[0] / 8):  # tissue bright as it is leaves no room for more contrast
        return None
    frames = clip.frames.copy()
    drawing.blend(frames[:, *place], coverage, min(level, 255), 1)
    return Clip(frames, clip.region, clip.name)


def _place(region: np.ndarray, size: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, slice] | None:
    room = [most - have for most, have in zip(region.shape, size, strict=True)]
    if min(room) < 0:
        return None
    top, left = (int(rng.integers(0, free + 1)) for free in room)
    place = slice(top, top + size[0]), slice(left, left + size[1])
    return place if region[place].all() else None

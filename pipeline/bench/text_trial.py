"""Trial of the text detector on clips that the training never saw: other seeds, other fonts, other real frames."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline.bench import text_drawing as drawing
from pipeline.bench import text_pictures as pictures
from sharding.text import text_score

FAINT, CLEAR = (0.35, 0.6), (0.6, 1.0)  # contrast: text minus mean around it, as a share of the grey range
CAP_HEIGHTS = (8, 11), (11, 16), (16, 24), (24, 40)  # pixels
_ALARMS = {"generator": 0.01, "speckle": 0.02, "speckle with marks": 0.05, "real": 0.01}  # share of clean clips
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


def real_clips(paths: list[Path]) -> list[Clip]:
    """Real frames without text, the whole picture as region."""
    clips = []
    for path in paths:
        frames = pictures.real_frames(path)
        clips.append(Clip(frames, np.ones(frames.shape[1:], bool), path.stem))
    return clips


def with_text(
    clip: Clip,
    rng: np.random.Generator,
    contrast: tuple[float, float],
    cap_heights: tuple[float, float],
    seen: bool = False,
) -> Clip | None:
    """The clip with opaque text of three or more characters somewhere in its region; None where none fits."""
    fonts, share = drawing.fonts(seen), rng.uniform(*contrast)
    cap_height = math.exp(rng.uniform(*np.log(cap_heights)))
    for _ in range(_TRIES):
        text = drawing.random_text(rng)
        if len(text.replace(" ", "")) < _LEAST_CHARACTERS:
            continue
        coverage = drawing.write(text, fonts[int(rng.integers(len(fonts)))], cap_height, rng).coverage
        place = _place(clip.region, coverage.shape, rng)
        if place is None:
            continue
        level = clip.frames[:, *place].mean() + 255 * share
        if level < 255 * (1 + contrast[0] / 8):  # tissue bright as it is leaves no room for more contrast
            frames = clip.frames.copy()
            drawing.blend(frames[:, *place], coverage, min(level, 255), 1)
            return Clip(pictures.degrade(frames, rng, _LEAST_DETAIL), clip.region, clip.name)
    return None


def _place(region: np.ndarray, size: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, slice] | None:
    room = [most - have for most, have in zip(region.shape, size, strict=True)]
    if min(room) < 0:
        return None
    top, left = (int(rng.integers(0, free + 1)) for free in room)
    place = slice(top, top + size[0]), slice(left, left + size[1])
    return place if region[place].all() else None


def clean_sets(seed: int, size: int, real: list[Path]) -> dict[str, list[Clip]]:
    """Clips without text by kind."""
    rng = np.random.default_rng((seed, 2))
    return {
        "generator": [generated_clip(rng) for _ in range(size)],
        "speckle": [speckle_clip(rng) for _ in range(size)],
        "speckle with marks": [speckle_clip(rng, marks=True) for _ in range(size)],
        "real": real_clips(real),
    }


def calibrate(seed: int, size: int, real: list[Path]) -> float:
    """Score that few clean clips of each kind reach; calipers may raise more alarms than tissue."""
    sets = clean_sets(seed, size, real)
    highest = [
        np.quantile([text_score(clip.frames, clip.region) for clip in clips], 1 - _ALARMS[kind])
        for kind, clips in sets.items()
        if clips
    ]
    return round(float(max(highest)) + 0.005, 2)


def report(seed: int, size: int, real: list[Path], threshold: float) -> Iterator[str]:
    """Lines of figures: false alarms by kind, recall by kind, contrast, size and length, milliseconds."""
    rng = np.random.default_rng((seed, 3))
    for kind, clips in clean_sets(seed, size, real).items():
        if not clips:
            continue
        scores = np.array([text_score(clip.frames, clip.region) for clip in clips])
        alarms = [clip.name for clip, score in zip(clips, scores, strict=True) if clip.name and score >= threshold]
        yield f"{kind}: {(scores >= threshold).sum()} false alarms in {len(clips)} clips {' '.join(alarms)}"
        for name, contrast in (("clear", CLEAR), ("faint", FAINT)):
            yield f"{kind}: {name} text found in " + _recall(clips, rng, contrast, threshold)
    yield from _speed()


def _recall(clips: list[Clip], rng: np.random.Generator, contrast: tuple[float, float], threshold: float) -> str:
    found: dict[str, list[bool]] = {}
    for caps in CAP_HEIGHTS:
        for clip in clips:
            drawn = with_text(clip, rng, contrast, caps)
            if drawn is None:
                continue
            verdict = text_score(drawn.frames, drawn.region) >= threshold
            for group in (f"{caps[0]}-{caps[1]} px", "cines" if len(clip.frames) > 1 else "stills", "all"):
                found.setdefault(group, []).append(verdict)
    return ", ".join(f"{group} {np.mean(hits):.3f} of {len(hits)}" for group, hits in found.items())


def _speed() -> Iterator[str]:
    rng = np.random.default_rng(0)
    for height, width in ((240, 320), (600, 800)):
        for num_frames in (1, 32):
            frames = rng.integers(0, 200, (num_frames, height, width), dtype=np.uint8)
            times = []
            for _ in range(12):
                started = time.perf_counter()
                text_score(frames, np.ones((height, width), bool))
                times.append(time.perf_counter() - started)
            taken = f"{1000 * np.median(times):.1f} ms (best {1000 * min(times):.1f})"
            yield f"{width}x{height}, {num_frames} frames: {taken}"

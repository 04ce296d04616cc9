"""Crops with marks and text on them, and which cells of them hold text: what the text detector learns from."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from torch.utils.data import IterableDataset

from pipeline.bench import text_drawing as drawing
from pipeline.bench import text_pictures as pictures
from sharding.text import CELL

IGNORED = 255
_CROP = 192, 256
_TALLEST, _SMALLEST = 24.0, 6.0  # pixels of cap height that one scale must read
_FAINTEST = 0.2  # of the grey range: fainter text is neither asked for nor forbidden
_BRIGHT = 120  # grey level on which dark text can be read
_GLYPH, _CORE = 0.3, 0.45  # share of a pixel, and of a cell, that counts
_WAYS = {"plate": 0.15, "outline": 0.2, "see-through": 0.25, "plain": 0.4}

Background = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Samples(IterableDataset):  # type: ignore[type-arg]
    """Endless crops (3, 192, 256) uint8 with targets (24, 32) uint8: 0 none, 1 text, 255 not judged."""

    pools: tuple[list[Background], ...]
    seed: int

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Draw samples one after the other."""
        cv2.setNumThreads(1)
        rng = np.random.default_rng((self.seed, 1))
        while True:
            pool = self.pools[int(rng.integers(len(self.pools)))]
            yield draw_sample(pool[int(rng.integers(len(pool)))], rng)


def draw_sample(background: Background, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A crop of a background with marks and text on it, and the target of its cells."""
    tiles, region = _crop(*background, rng)
    if drawing.chance(rng, 0.4):
        tiles[:] = tiles[0]
    if drawing.chance(rng, 0.5):
        drawing.draw_marks(tiles, rng)
    if drawing.chance(rng, 0.3):
        region &= _random_region(rng)
    target = np.zeros([side // CELL for side in _CROP], np.uint8)
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.35, 0.35, 0.2, 0.1]))):
        _add_text(tiles, region, target, rng)
    return pictures.degrade(tiles, rng) * region, target


def _crop(tiles: np.ndarray, region: np.ndarray | None, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    factor = float(np.exp(rng.uniform(-0.6, 0.5)))
    inside = np.ones(tiles.shape[1:], np.uint8) if region is None else region.astype(np.uint8)
    layers = [
        cv2.resize(layer, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
        for layer in (*tiles, inside)
    ]
    grown = np.pad(
        np.stack(layers), ((0, 0), *((0, max(0, c - s)) for c, s in zip(_CROP, layers[0].shape, strict=True)))
    )
    top, left = (int(rng.integers(0, s - c + 1)) for c, s in zip(_CROP, grown.shape[1:], strict=True))
    cut = grown[:, top : top + _CROP[0], left : left + _CROP[1]]
    cut = cut[:, :, :: int(rng.choice([-1, 1]))]
    curve = 255 * (np.arange(256) / 255) ** rng.uniform(0.6, 1.6) * rng.uniform(0.7, 1.5)
    return np.clip(curve, 0, 255).astype(np.uint8)[cut[:3]], cut[3] > 0


def _random_region(rng: np.random.Generator) -> np.ndarray:
    """A sector whose border crosses the crop."""
    inside = np.zeros(_CROP, np.uint8)
    if drawing.chance(rng, 0.5):
        corners = rng.integers((0, 0), _CROP[::-1], (int(rng.integers(4, 8)), 2)).astype(np.int32)
        cv2.fillConvexPoly(inside, cv2.convexHull(corners), 1)
    else:
        apex = int(rng.integers(-50, _CROP[1] + 50)), int(rng.integers(-150, 30))
        cv2.ellipse(inside, apex, [int(rng.integers(150, 400))] * 2, 90, -45, 45, 1, -1)
        cv2.circle(inside, apex, int(rng.integers(10, 120)), 0, -1)
    return inside.astype(bool)


def _add_text(tiles: np.ndarray, region: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> None:
    fonts = drawing.fonts(seen=True)
    tall = drawing.chance(rng, 0.1)
    cap_height = float(np.exp(rng.uniform(*np.log((_TALLEST, 48) if tall else (_SMALLEST, _TALLEST)))))
    written = drawing.write(drawing.random_text(rng), fonts[int(rng.integers(len(fonts)))], cap_height, rng)
    rows, columns = (min(have, most) for have, most in zip(written.coverage.shape, _CROP, strict=True))
    coverage = written.coverage[:rows, :columns]
    top, left = (int(rng.integers(0, most - have + 1)) for have, most in zip((rows, columns), _CROP, strict=True))
    place = slice(top, top + rows), slice(left, left + columns)
    contrast = _paint(tiles[:, *place], coverage, cap_height, rng)
    judged = not tall and contrast >= _FAINTEST and written.num_characters > 1
    glyphs = np.zeros(_CROP, np.uint8)
    glyphs[place] = (coverage > _GLYPH) & region[place]
    _mark_cells(target, glyphs, cap_height, judged)


def _paint(view: np.ndarray, coverage: np.ndarray, cap_height: float, rng: np.random.Generator) -> float:
    """Paint the glyphs in one of the ways of scanners; returns the contrast to what is around them."""
    shown = ([0, 1, 2], [0, 2], [2])[int(rng.choice(3, p=[0.85, 0.1, 0.05]))]  # always, since the middle, for a while
    painted, way, opacity = view[shown], str(rng.choice(list(_WAYS), p=list(_WAYS.values()))), 1.0
    around = float(painted[0].mean())
    sign = -1 if around > _BRIGHT and shown[1:] and drawing.chance(rng, 0.25) else 1
    level = around + sign * 255 * (0.22 + 0.78 * rng.random() ** 1.6)  # the faint is harder: more of it
    if way == "plate":
        around = float(rng.choice([0, 30, 90, 160, 220, 255]))
        drawing.blend(painted, np.ones_like(coverage), around, 1)
        level = around + (1 if around < _BRIGHT else -1) * 255 * rng.uniform(0.3, 1)
    elif way == "outline" and sign > 0:
        drawing.blend(painted, _surround(coverage, rng), float(rng.integers(0, 40)), rng.uniform(0.5, 1))
    elif way == "see-through":
        level, opacity = 255.0 * (sign > 0), rng.uniform(0.3, 1)
    level = min(max(level, 0.0), 255.0)
    drawing.blend(painted, coverage, level, opacity)
    view[shown] = painted
    return float(abs(level - around) * opacity / 255 * min(1.0, 0.6 + cap_height / 40))


def _surround(coverage: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Outline or drop shadow."""
    if drawing.chance(rng, 0.4):
        return np.roll(coverage, (1, 1), axis=(0, 1))
    wide: np.ndarray = cv2.dilate(coverage, np.ones([int(rng.choice([3, 5]))] * 2, np.uint8))
    return wide


def _mark_cells(target: np.ndarray, glyphs: np.ndarray, cap_height: float, judged: bool) -> None:
    across, down = max(3, round(0.9 * cap_height)), max(3, round(0.35 * cap_height))
    word = cv2.dilate(glyphs, np.ones((down, across), np.uint8)).astype(np.float32)
    share = cv2.resize(word, target.shape[::-1], interpolation=cv2.INTER_AREA)
    near = cv2.dilate((share > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    core = share > _CORE
    target[near & ~core & (target == 0)] = IGNORED
    target[core] = 1 if judged else IGNORED

"""Letters and digits burned into the pixels of a region: a clip that holds some is refused.

A small convolutional network looks at three pictures of a clip at once: its middle frame, its temporal minimum
(static text survives there while speckle goes dark) and its temporal maximum (text that is shown for a while only).
It says for every cell of 8 x 8 pixels how much that looks like part of a written word; a word is a run of such cells.
Upright and slanted words only: it is nearly blind for text turned by 90 degrees and for single letters.
`pipeline/bench/train_text.py` makes the weights, the threshold, and the figures of both.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import cv2
import numpy as np

CELL = 8  # pixels per side; the network's stride
WEIGHTS = Path(__file__).with_suffix(".onnx")
CALIBRATION = Path(__file__).with_name("text.json")
_LOOKS = 8  # frames of a cine that are looked at
_SCALES = (1, 2)  # letters too tall for the network are read at half size
_RUN = (3, 1)  # cells (width, height): the least that is a word
_LEAST = 4 * CELL  # pixels per side that the network is given at least


def text_score(frames: np.ndarray, region: np.ndarray) -> float:
    """Largest text evidence of a clip.

    Args:
        frames: (T, H, W) uint8, grey, at the source's resolution; T = 1 is a still.
        region: (H, W) bool; only text whose pixels lie inside counts.

    Returns:
        0 (none) to 1; 0 for an empty region.

    """
    return max((float(runs.max()) for _, runs, _ in _evidence(frames, region)), default=0.0)


def has_text(frames: np.ndarray, region: np.ndarray) -> bool:
    """Whether the clip is to be refused: the score reaches the calibrated threshold."""
    return text_score(frames, region) >= threshold()


def find_text(frames: np.ndarray, region: np.ndarray) -> np.ndarray:
    """(H, W) bool, the cells of suspected text inside the region; any exactly where `has_text` says so."""
    found = np.zeros(region.shape, dtype=bool)
    for side, runs, box in _evidence(frames, region):
        words = cv2.dilate((runs >= threshold()).astype(np.uint8), np.ones(_RUN[::-1], np.uint8)).astype(bool)
        inside = found[box]
        inside |= words.repeat(side, axis=0).repeat(side, axis=1)[: inside.shape[0], : inside.shape[1]]
    found &= region
    return found


@cache
def threshold() -> float:
    """Score from which a clip holds text."""
    return float(json.loads(CALIBRATION.read_text())["threshold"])


def looks(frames: np.ndarray) -> np.ndarray:
    """(3, H, W) uint8, what the network sees of (T, H, W): middle, minimum and maximum over time."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(len(frames), _LOOKS)).round().astype(int)]
    seen: np.ndarray = np.stack([frames[len(frames) // 2], chosen.min(axis=0), chosen.max(axis=0)])
    return seen


def evidence(tiles: np.ndarray, scale: int = 1) -> np.ndarray:
    """(H / 8, W / 8) float32, 0..1 per cell, of (3, H, W) uint8 whose sides are multiples of 8."""
    network = _network(scale)
    network.setInput(tiles[None].astype(np.float32))
    cells: np.ndarray = np.asarray(network.forward())[0, 0]
    return cells


def _evidence(frames: np.ndarray, region: np.ndarray) -> Iterator[tuple[int, np.ndarray, tuple[slice, slice]]]:
    """Yield per scale: pixels of a cell's side, mean evidence of the run around each cell, where in the frame."""
    if not region.any():
        return
    box = _bounding_box(region)
    tiles = looks(frames[:, *box]) * region[box]
    for scale in _SCALES:
        tiles = tiles if scale == 1 else _halved(tiles)
        cells = evidence(_padded(tiles), scale)
        cells = cells * _touched(region[box], cells.shape, CELL * scale)
        yield CELL * scale, cv2.blur(cells, _RUN, borderType=cv2.BORDER_CONSTANT), box


def _bounding_box(region: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _touched(region: np.ndarray, shape: tuple[int, ...], side: int) -> np.ndarray:
    """(H / side, W / side) bool, cells with a pixel of the region."""
    padded = np.zeros((shape[0] * side, shape[1] * side), np.uint8)
    padded[: region.shape[0], : region.shape[1]] = region
    touched: np.ndarray = cv2.resize(padded * np.uint8(255), shape[::-1], interpolation=cv2.INTER_AREA) > 0
    return touched


def _halved(tiles: np.ndarray) -> np.ndarray:
    size = -(-tiles.shape[2] // 2), -(-tiles.shape[1] // 2)
    return np.stack([cv2.resize(tile, size, interpolation=cv2.INTER_AREA) for tile in tiles])


def _padded(tiles: np.ndarray) -> np.ndarray:
    """Black to the right and below, as outside the region."""
    height, width = (max(_LEAST, size + -size % CELL) for size in tiles.shape[1:])
    padded = np.zeros((len(tiles), height, width), np.uint8)
    padded[:, : tiles.shape[1], : tiles.shape[2]] = tiles
    return padded


@cache
def _network(scale: int) -> cv2.dnn.Net:
    """One per scale: a change of the input's size costs it new buffers."""
    assert scale in _SCALES
    return cv2.dnn.readNetFromONNX(str(WEIGHTS), engine=cv2.dnn.ENGINE_CLASSIC)

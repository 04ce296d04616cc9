"""Letters and digits burned into the pixels of a region: a clip that holds some is refused.

A small convolutional network looks three times. At the source's resolution it looks at the whole clip, as three
pictures at once: middle frame, minimum over time (text that is always shown survives there while speckle goes dark) and
maximum. Of a source that is stored smaller it looks at the maximum of every few frames: a small word that is shown for
a moment stands out there. Then it looks at every frame alone, as it is stored. `verify` repeats this last look, with a
limit a little higher, since JPEG changes scores slightly.

It says for every cell of 8 x 8 pixels how much that looks like part of a written word; a word is a run of such cells.
`pipeline/bench/train_text.py` makes the weights; `pipeline/bench/text_limits.py` the limits, and the measured shares of
words that are found, which text.json keeps beside them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

CELL = 8  # pixels per side; the network's stride
WEIGHTS = Path(__file__).with_suffix(".onnx")
FRAME_WEIGHTS = Path(__file__).with_name("text_frame.onnx")  # the same for three equal pictures, given once: faster
CALIBRATION = Path(__file__).with_name("text.json")
_SCALES = (1, 2)  # letters too tall for the network are read at half size
_RUN = (3, 1)  # cells (width, height): the least that is a word
_LEAST = 4 * CELL  # pixels per side that the network is given at least
_GROUP = 8  # frames whose maximum is looked at
_REACH = 5  # cells around the middle of a run that decide about it: the network's field of view, and half the run
_AROUND = (9, 3)  # pixels (width, height) whose mean a stroke is brighter than; the middle of a long bright line is not
_STROKE = 32  # grey levels by which it is, before a frame is stored
_STORED_STROKE = 40  # in a frame that was stored: JPEG changes a pixel by less than the difference
_CELL_INK, _RUN_INK = 255 * 4 / 64, 255 * 20 / 192  # share of 255 that strokes cover at least


@dataclass(frozen=True)
class Limits:
    """Scores from which a clip is refused.

    Attributes:
        clip: of `text_score`.
        frame: of `frame_score` before a frame is stored, and of `group_score`: the same question to the same network.
        stored: of `frame_score`, for a frame that is read from a shard.

    """

    clip: float
    frame: float
    stored: float


@dataclass(frozen=True)
class Figure:
    """How often something was found that was drawn, or taken for text that was none.

    Attributes:
        what: in words.
        found: of `number`.
        number: of tries.

    """

    what: str
    found: int
    number: int


@cache
def limits() -> Limits:
    """The calibrated limits."""
    return Limits(**json.loads(CALIBRATION.read_text())["limits"])


def figures() -> list[Figure]:
    """What was measured with these limits."""
    return [Figure(**figure) for figure in json.loads(CALIBRATION.read_text())["figures"]]


def has_text(frames: np.ndarray, region: np.ndarray) -> bool:
    """Whether a clip (T, H, W) uint8 at the source's resolution shows text in its region (H, W) bool."""
    return text_score(frames, region) >= limits().clip


def groups_have_text(frames: np.ndarray, region: np.ndarray) -> bool:
    """Whether a clip as for `has_text` shows text for a moment, be it too small to be read as it is stored."""
    return group_score(frames, region) >= limits().frame


def frames_have_text(frames: np.ndarray, region: np.ndarray) -> bool:
    """Whether any of the frames (S, h, w) uint8 that are to be stored shows text in the region (h, w) bool."""
    return any(frame_score(frame, region) >= limits().frame for frame in frames)


def stored_has_text(frame: np.ndarray, region: np.ndarray) -> bool:
    """Whether a frame (h, w) uint8 that was stored shows text in its region (h, w) bool."""
    return frame_score(frame, region, is_stored=True) >= limits().stored


def text_score(frames: np.ndarray, region: np.ndarray) -> float:
    """Largest text evidence of a clip as a whole.

    Args:
        frames: (T, H, W) uint8, grey; T = 1 is a still.
        region: (H, W) bool; only text whose pixels lie inside counts.

    Returns:
        0 (none) to 1; 0 for an empty region.

    """
    return max((float(runs.max()) for _, runs, _ in _evidence(frames, region)), default=0.0)


def group_score(frames: np.ndarray, region: np.ndarray) -> float:
    """Largest text evidence of the maxima of every few frames of a clip, see `text_score`; 0 for a still."""
    if len(frames) == 1 or not region.any():
        return 0.0
    box = _bounding_box(region)
    groups = (frames[first : first + _GROUP, *box] for first in range(0, len(frames), _GROUP))
    return max(frame_score(group.max(axis=0), region[box]) for group in groups)


def frame_score(frame: np.ndarray, region: np.ndarray, is_stored: bool = False) -> float:
    """Largest text evidence of one frame alone.

    Only runs of cells with strokes are judged: pixels clearly brighter than what is around them. Most frames have few.

    Args:
        frame: (h, w) uint8.
        region: (h, w) bool; only text whose pixels lie inside counts.
        is_stored: it was read from a shard; then strokes must be a little clearer, so that none is found in there that
            was none before.

    Returns:
        0 (none) to 1.

    """
    score, tiles = 0.0, (frame * region)[None]
    for scale in _SCALES:
        tiles = tiles if scale == 1 else _halved(tiles)
        seen = _padded(tiles)
        runs = _runs_of_strokes(seen[0], _STORED_STROKE if is_stored else _STROKE)
        if runs.any():
            score = max(score, float(_evidence_at(seen, runs, scale)[runs].max()))
    return score


def find_text(frames: np.ndarray, region: np.ndarray) -> np.ndarray:
    """(H, W) bool, the cells of suspected text inside the region; any exactly where `text_score` reaches its limit."""
    found = np.zeros(region.shape, dtype=bool)
    for side, runs, box in _evidence(frames, region):
        words = cv2.dilate((runs >= limits().clip).astype(np.uint8), np.ones(_RUN[::-1], np.uint8)).astype(bool)
        inside = found[box]
        inside |= words.repeat(side, axis=0).repeat(side, axis=1)[: inside.shape[0], : inside.shape[1]]
    found &= region
    return found


def looks(frames: np.ndarray) -> np.ndarray:
    """(3, H, W) uint8, what the network sees of (T, H, W): middle, minimum and maximum over time."""
    seen: np.ndarray = np.stack([frames[len(frames) // 2], frames.min(axis=0), frames.max(axis=0)])
    return seen


def evidence(tiles: np.ndarray, scale: int = 1) -> np.ndarray:
    """(H / 8, W / 8) float32, 0..1 per cell, of (3, H, W) or (1, H, W) uint8 whose sides are multiples of 8."""
    network = _network(scale, len(tiles))
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


def _runs_of_strokes(frame: np.ndarray, least_contrast: int) -> np.ndarray:
    """(H / 8, W / 8) bool, the middle cells of runs in which every cell has strokes."""
    bright = cv2.subtract(frame, cv2.blur(frame, _AROUND))
    strokes = cv2.threshold(bright, least_contrast, 255, cv2.THRESH_BINARY)[1]
    share = cv2.resize(strokes, (frame.shape[1] // CELL, frame.shape[0] // CELL), interpolation=cv2.INTER_AREA)
    least = cv2.erode(share, np.ones(_RUN[::-1], np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    whole = cv2.blur(share, _RUN, borderType=cv2.BORDER_CONSTANT)
    return np.asarray((least >= _CELL_INK) & (whole >= _RUN_INK))


def _evidence_at(seen: np.ndarray, runs: np.ndarray, scale: int) -> np.ndarray:
    """(H / 8, W / 8) float32, mean evidence of the run around each cell of (1, H, W); right where `runs` is true."""
    around = [
        slice(max(0, place.start - _REACH), min(size, place.stop + _REACH))
        for place, size in zip(_bounding_box(runs), runs.shape, strict=True)
    ]
    pixels = _padded(seen[:, *(slice(place.start * CELL, place.stop * CELL) for place in around)])
    cells = np.zeros(runs.shape, np.float32)
    view = cells[*around]
    view[:] = evidence(pixels, scale)[: view.shape[0], : view.shape[1]]
    return np.asarray(cv2.blur(cells, _RUN, borderType=cv2.BORDER_CONSTANT))


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
def _network(scale: int, num_pictures: int) -> cv2.dnn.Net:
    """One per scale: a change of the input's size costs it new buffers."""
    assert scale in _SCALES
    weights = {1: FRAME_WEIGHTS, 3: WEIGHTS}[num_pictures]
    return cv2.dnn.readNetFromONNX(str(weights), engine=cv2.dnn.ENGINE_CLASSIC)

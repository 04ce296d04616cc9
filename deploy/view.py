"""What the page shows of an upload: the frame with its region, and what the encoder sees in it.

Dimensions: S pixels a side, N patches, D width.
"""

import base64

import cv2
import numpy as np

_OUTLINE = (200, 220, 60)  # blue, green, red
_NUM_COLOURS = 3
_LOW, _HIGH = 2, 98  # percentiles that become black and full colour


def outlined(square: np.ndarray) -> str:
    """Frame of a square (2, S, S) uint8 with a line around its region, as the URI of a PNG."""
    picture = cv2.cvtColor(np.ascontiguousarray(square[0]), cv2.COLOR_GRAY2BGR)
    borders, _ = cv2.findContours(np.ascontiguousarray(square[1]), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return _uri(cv2.drawContours(picture, borders, -1, _OUTLINE, 1, cv2.LINE_8))


def principal_map(square: np.ndarray, patches: np.ndarray) -> str:
    """The three principal components of a frame's patches as red, green and blue, as the URI of a PNG.

    Patches that look alike to the encoder have like colours. Those outside the region are left out and black.

    Args:
        square: (2, S, S) uint8, frame and region.
        patches: (N, D) float32, row by row.

    """
    grid, side = round(len(patches) ** 0.5), square.shape[-1]
    inside = cv2.resize(square[1], (grid, grid), interpolation=cv2.INTER_AREA).ravel() > 0
    picture = np.zeros((grid * grid, _NUM_COLOURS), np.uint8)
    picture[inside] = _colours(patches[inside])
    return _uri(cv2.resize(picture.reshape(grid, grid, _NUM_COLOURS), (side, side), interpolation=cv2.INTER_NEAREST))


def _colours(patches: np.ndarray) -> np.ndarray:
    """(n, 3) uint8; the same patches give the same colours, though a component has no sign."""
    colours = np.zeros((len(patches), _NUM_COLOURS), np.uint8)
    centred = patches - patches.mean(axis=0)
    _, _, components = np.linalg.svd(centred, full_matrices=False)
    components = components[:_NUM_COLOURS]
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1, keepdims=True), axis=1)
    scores = centred @ (components * np.sign(largest)).T
    low, high = np.percentile(scores, (_LOW, _HIGH), axis=0)
    scaled = (scores - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
    colours[:, _NUM_COLOURS - scores.shape[1] :] = (scaled.clip(0, 1) * 255).round()[:, ::-1]  # OpenCV wants blue first
    return colours


def _uri(picture: np.ndarray) -> str:
    done, data = cv2.imencode(".png", picture)
    assert done
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()

"""The shape of a sector in a map of lit or moving pixels: a solid area, and the straight and round edges that bound it.

All maps are (h, w) bool at work size, see region.py. Text has a stroke every few pixels, tissue is lit throughout: the
local density of lit pixels tells them apart, and an opening wider than a stroke cuts what hangs on to the sector. What
still hangs on lies beyond an edge: a scanner draws a sector between two lines and two arcs, or in a rectangle.
"""

from dataclasses import dataclass

import cv2
import numpy as np

_MIN_AREA, _MAX_AREA = 0.05, 0.98  # share of the frame
_MIN_SOLIDITY = 0.75  # area over area of the convex hull; a sector is convex but for its curved top
_SOLID_DENSITY = 0.5  # share of lit pixels around one of tissue; text stays below
_MAX_GROWTH = 3.0  # area of the dim sector over that of its bright part
_MAX_CUT = 0.1  # share of a dim sector that lies beyond its edges; more, and it is no sector
_SIDE_SUPPORT, _END_SUPPORT = 0.5, 0.6  # share of the border points that lie on an edge
_TOLERANCE = 1.5  # pixels between a border point and its edge
_MIN_POINTS = 12
_NUM_TRIES = 24  # points that are tried as ends of a line
_Line = tuple[float, float]  # x = first + second * y


@dataclass(frozen=True)
class _Edges:
    """The edges that were found; None where the border is nothing simple."""

    left: _Line | None
    right: _Line | None


def find_sectors(bright: np.ndarray, dim: np.ndarray) -> list[np.ndarray]:
    """Solid areas of a map, each grown into the dim area around it and bounded by its edges; largest first.

    Args:
        bright: (h, w) bool, certainly tissue where dense.
        dim: (h, w) bool, tissue if it hangs together with bright.

    """
    sectors = [sector for sector in _components(_solid(bright)) if _is_sector(sector)]
    if not sectors:
        return []
    areas = _components(_solid(dim))
    found = [_grown(sector, areas, sectors) for sector in sectors]
    return sorted(found, key=lambda sector: -int(sector.sum()))


def _solid(lit: np.ndarray) -> np.ndarray:
    reach = max(3, round(min(lit.shape) / 40)) | 1
    density = cv2.blur(lit.astype(np.float32), (reach, reach))
    solid = (density > _SOLID_DENSITY).astype(np.uint8)
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    opened = cv2.morphologyEx(solid, cv2.MORPH_OPEN, brush)
    closed = cv2.morphologyEx(opened, cv2.MORPH_CLOSE, brush)
    band = cv2.blur(lit.astype(np.float32), (3 * reach, 3)) == 0  # black: a trace begins below it, which is no sector
    return np.asarray(closed & (opened | ~band))


def _components(solid: np.ndarray) -> list[np.ndarray]:
    """(h, w) bool per area that is large enough, holes filled: a cyst is as black as the border."""
    contours, _ = cv2.findContours(solid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    large = [contour for contour in contours if cv2.contourArea(contour) >= _MIN_AREA / 2 * solid.size]
    return [cv2.drawContours(np.zeros_like(solid), [contour], -1, 1, cv2.FILLED) > 0 for contour in large]


def _is_sector(area: np.ndarray) -> bool:
    hull = _hull(area)
    return bool(_MIN_AREA <= hull.mean() <= _MAX_AREA and area.sum() >= _MIN_SOLIDITY * hull.sum())


def _grown(sector: np.ndarray, areas: list[np.ndarray], sectors: list[np.ndarray]) -> np.ndarray:
    """The sector with its dim corners, where these hang together with no other sector."""
    for area in areas:
        num_held = sum(bool((other & area).sum() > other.sum() / 2) for other in sectors)
        whole = area | sector
        holds = (sector & area).sum() > 0.9 * sector.sum() and num_held == 1
        if holds and _is_sector(whole) and whole.sum() <= _MAX_GROWTH * sector.sum():
            bounded = _bounded(whole)
            if (whole & ~bounded).sum() <= _MAX_CUT * whole.sum():
                return bounded
    return _bounded(sector)


def _bounded(area: np.ndarray) -> np.ndarray:
    """Convex hull, cut at the edges on which most of the border lies."""
    kept = cv2.dilate(_hull(area).astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    y, x = np.mgrid[: area.shape[0], : area.shape[1]].astype(np.float32)
    edges = _side_edges(area)
    if edges.left is not None:
        kept &= x >= edges.left[0] + edges.left[1] * y - _TOLERANCE / 2
    if edges.right is not None:
        kept &= x <= edges.right[0] + edges.right[1] * y + _TOLERANCE / 2
    radius = _radius(edges, x, y)
    for top in (True, False):
        kept &= _within_end(area & kept, edges, radius, top)
    return kept


def _side_edges(area: np.ndarray) -> _Edges:
    rows = np.flatnonzero(area.any(axis=1))
    left = area[rows].argmax(axis=1)
    right = area.shape[1] - 1 - area[rows, ::-1].argmax(axis=1)
    inner = left > 1, right < area.shape[1] - 2  # at the border of the frame the sector is cut, which is no edge of it
    return _Edges(_line(rows[inner[0]], left[inner[0]]), _line(rows[inner[1]], right[inner[1]]))


def _line(rows: np.ndarray, columns: np.ndarray) -> _Line | None:
    """The line on which most border points lie."""
    if len(rows) < _MIN_POINTS:
        return None
    tried = np.linspace(0, len(rows) - 1, _NUM_TRIES).round().astype(int)
    first, second = (tried[i] for i in np.triu_indices(_NUM_TRIES, k=6))
    steep = (columns[second] - columns[first]) / np.maximum(rows[second] - rows[first], 1)
    offset = columns[first] - steep * rows[first]
    support = (np.abs(offset[:, None] + steep[:, None] * rows - columns) <= _TOLERANCE).sum(axis=1)
    best = int(support.argmax())
    return (float(offset[best]), float(steep[best])) if support[best] >= _SIDE_SUPPORT * len(rows) else None


def _radius(edges: _Edges, x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
    """Distance (h, w) from the point where the sides meet; None when they do not meet above."""
    if edges.left is None or edges.right is None or edges.right[1] - edges.left[1] < 0.1:  # noqa: PLR2004 - parallel
        return None
    apex_y = (edges.left[0] - edges.right[0]) / (edges.right[1] - edges.left[1])
    return np.hypot(x - edges.left[0] - edges.left[1] * apex_y, y - apex_y)


def _within_end(area: np.ndarray, edges: _Edges, radius: np.ndarray | None, top: bool) -> np.ndarray:
    """(h, w) bool, true on the inner side of the arc or row at which the sector begins or ends."""
    height = area.shape[0]
    columns = np.flatnonzero(area.any(axis=0))
    rows = area[:, columns].argmax(axis=0) if top else height - 1 - area[::-1, columns].argmax(axis=0)
    off = _off_sides(columns, rows, edges)
    chosen = off & (rows > 1) & (rows < height - 2)  # as for the sides
    sign = -1 if top else 1
    levels = [np.broadcast_to(np.arange(height, dtype=np.float32)[:, None], area.shape)]
    levels += [radius] if radius is not None else []
    ends = [(_mode(level[rows[chosen], columns[chosen]]), level) for level in levels]
    (end, support), level = max(ends, key=lambda found: found[0][1])
    if support < max(_MIN_POINTS, _END_SUPPORT * off.sum()):
        return _below(columns, rows, area.shape) if top else np.ones_like(area)
    return np.asarray(sign * level <= sign * end + _TOLERANCE / 2)


def _below(columns: np.ndarray, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(h, w) bool, not far above the border: a hull spans the hollow of a curved array, where letters may stand."""
    highest = np.full(shape[1], shape[0], dtype=np.int32)
    highest[columns] = rows
    return np.asarray(np.arange(shape[0])[:, None] >= highest - max(3, shape[0] // 40))


def _off_sides(columns: np.ndarray, rows: np.ndarray, edges: _Edges) -> np.ndarray:
    off = np.ones(len(columns), dtype=bool)
    for line in (edges.left, edges.right):
        if line is not None:
            off &= np.abs(line[0] + line[1] * rows - columns) > 2 * _TOLERANCE
    return off


def _mode(levels: np.ndarray) -> tuple[float, float]:
    """The level near which most of the levels lie, and how many do."""
    if not len(levels):
        return 0.0, 0.0
    tried = np.quantile(levels, np.linspace(0, 1, _NUM_TRIES))
    support = (np.abs(tried[:, None] - levels) <= _TOLERANCE).sum(axis=1)
    return float(tried[support.argmax()]), float(support.max())


def _hull(area: np.ndarray) -> np.ndarray:
    contours, _ = cv2.findContours(area.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    hull = np.zeros(area.shape, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.concatenate(contours)), 1)
    return hull.astype(bool)

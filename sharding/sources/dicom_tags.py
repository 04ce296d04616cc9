"""What an ultrasound header says about its frames: regions, spacing, times (DICOM PS3.3 C.8.5.5, C.7.6.5)."""

from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset

from sharding.recording import Box

_TWO_D, _TISSUE, _COLOUR_FLOW, _CENTIMETRE = 1, 1, 2, 3
_AREA = (0.05, 0.98)  # share of the frame
_MM_RANGE = (0.01, 10.0)  # plausible size of a pixel
_MAX_ASPECT = 1.25  # of a pixel
_MS_RANGE = (1.0, 1000.0)  # between frames
_LOCATION = ("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1")
_FRAME_TIME_VECTOR = 0x00181065

Spacing = tuple[float, float] | None


def tissue_regions(dataset: Dataset) -> tuple[tuple[Box, ...] | None, tuple[Spacing, ...]]:
    """Boxes of the 2-D tissue regions with the spacing of each; None when one is invalid.

    Somebody who resampled the pixels and left the tag made all of it untrue, so one wrong box condemns the others.
    """
    regions = _regions(dataset)
    tissue = [region for region in regions if _is_tissue(region)]
    boxes = [box for region in tissue if (box := _box(region)) is not None]
    is_whole = len(boxes) == len(tissue) and all(_box(region) is not None for region in regions)
    if not boxes or not is_whole or not all(_is_valid(box, dataset) for box in boxes):
        return None, ()
    return tuple(boxes), tuple(_mm_per_pixel(region) for region in tissue)


def other_regions(dataset: Dataset) -> tuple[Box, ...]:
    """Boxes declared for anything else, as they are."""
    boxes = (_box(region) for region in _regions(dataset) if not _is_tissue(region))
    return tuple(box for box in boxes if box is not None)


def _regions(dataset: Dataset) -> list[Dataset]:
    value = dataset.get("SequenceOfUltrasoundRegions") or []
    return [region for region in value if isinstance(region, Dataset)]


def _is_tissue(region: Dataset) -> bool:
    kinds = {_TISSUE, _COLOUR_FLOW}
    return bool(region.get("RegionSpatialFormat") == _TWO_D and region.get("RegionDataType") in kinds)


def _box(region: Dataset) -> Box | None:
    values = [region.get(name) for name in _LOCATION]
    if not all(isinstance(value, int) for value in values):
        return None
    x0, y0, x1, y1 = (int(value) for value in values)
    return x0, y0, x1, y1


def _is_valid(box: Box, dataset: Dataset) -> bool:
    x0, y0, x1, y1 = box
    is_inside = 0 <= x0 < x1 < dataset.Columns and 0 <= y0 < y1 < dataset.Rows
    share = (x1 - x0 + 1) * (y1 - y0 + 1) / (dataset.Columns * dataset.Rows)
    return bool(is_inside and _AREA[0] <= share <= _AREA[1])


def _mm_per_pixel(region: Dataset) -> Spacing:
    if {region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection")} != {_CENTIMETRE}:
        return None
    deltas = [region.get("PhysicalDeltaX"), region.get("PhysicalDeltaY")]
    if not all(isinstance(delta, int | float) for delta in deltas):
        return None
    x, y = (abs(float(delta)) * 10 for delta in deltas)
    low, high = _MM_RANGE
    is_plausible = low <= x <= high and low <= y <= high and max(x, y) <= _MAX_ASPECT * min(x, y)
    return (x, y) if is_plausible else None


def frame_times_ms(dataset: Dataset, frame_ids: np.ndarray, num_frames: int) -> np.ndarray | None:
    """(T,) milliseconds since the first frame, None where the header does not say.

    FrameIncrementPointer names the authority; else FrameTime, FrameTimeVector, CineRate, RecommendedDisplayFrameRate.
    """
    pointed = dataset.get("FrameIncrementPointer") or []
    pointers = [int(tag) for tag in (pointed if isinstance(pointed, Sequence) else [pointed])]
    rates = (_number(dataset, "CineRate"), _number(dataset, "RecommendedDisplayFrameRate"))
    steady = [_steady_times(1000 / rate, frame_ids) for rate in rates if rate]
    step, vector = _number(dataset, "FrameTime"), _vector_times(dataset, num_frames)
    times = [_steady_times(step, frame_ids), None if vector is None else vector[frame_ids]]
    if _FRAME_TIME_VECTOR in pointers:
        times.reverse()
    return next((found for found in [*times, *steady] if found is not None), None)


def _steady_times(step_ms: float | None, frame_ids: np.ndarray) -> np.ndarray | None:
    return frame_ids * step_ms if step_ms is not None and _is_plausible(step_ms) else None


def _number(dataset: Dataset, name: str) -> float | None:
    value = dataset.get(name)
    return float(value) if isinstance(value, int | float) else None


def _is_plausible(step_ms: float) -> bool:
    return _MS_RANGE[0] <= step_ms <= _MS_RANGE[1]


def _vector_times(dataset: Dataset, num_frames: int) -> np.ndarray | None:
    vector = dataset.get("FrameTimeVector")
    if vector is None or isinstance(vector, int | float | str) or len(vector) < num_frames or num_frames < 2:  # noqa: PLR2004
        return None
    steps = np.asarray(vector, dtype=np.float64)[:num_frames]
    steps[0] = 0
    is_sound = (steps >= 0).all() and _is_plausible(float(steps[1:].mean()))
    return np.cumsum(steps) if is_sound else None

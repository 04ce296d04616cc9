"""Pictures of frames for one encoder on one set: what its patches have in common, nearest neighbours, worst errors.

Dimensions: n samples, B frames of a picture, S pixels a side, N patches, D width, C classes.
"""

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Plot

from eval.datasets import LabelledSet
from eval.encoders import FrozenEncoder
from eval.probe_figures import png
from sharding.report import grid_png

NUM_FRAMES = 6
_NUM_QUERIES, _NUM_NEIGHBOURS = 4, 5
_TILE = 150  # pixels a side of a frame on the page
_BACKGROUND_RGB = (0.0, 0.0, 0.0)


def patches_png(encoder: FrozenEncoder, dataset: LabelledSet) -> bytes:
    """Frames above the first three principal components of their patch features as colours; black outside."""
    chosen = _spread(dataset, NUM_FRAMES)
    squares = torch.from_numpy(dataset.squares[chosen])
    device = encoder.get_buffer("mean").device
    with torch.no_grad():
        patches = encoder((squares[:, :1].float() / 255).to(device)).patches.cpu().numpy()
    if patches.shape[1] == 1:
        return b""  # one patch has no map
    side = round(patches.shape[1] ** 0.5)
    inside = torch.nn.functional.adaptive_max_pool2d(squares[:, 1:].float(), side).flatten(1).numpy() > 0
    colours = _components(patches, inside).reshape(len(chosen), side, side, 3)
    frames = [_tile(cv2.cvtColor(square[0], cv2.COLOR_GRAY2BGR)) for square in dataset.squares[chosen]]
    maps = [_tile((255 * one[..., ::-1]).astype(np.uint8)) for one in colours]
    return grid_png(frames + maps, len(frames))


def neighbours_png(features: np.ndarray, dataset: LabelledSet) -> bytes:
    """Some frames, each before the frames of other patients whose features are nearest by cosine."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    plot = Plot(figsize=(7, 1.35 * _NUM_QUERIES), layout="constrained")
    panels = plot.subplots(_NUM_QUERIES, 1 + _NUM_NEIGHBOURS, squeeze=False)
    for line in panels:
        for axes in line:
            axes.set_axis_off()
    for line, query in zip(panels, _spread(dataset, _NUM_QUERIES), strict=False):
        _show(line[0], dataset, query, f"{_name(dataset, query)}", "black")
        for axes, other in zip(line[1:], _nearest(unit, dataset.groups, query), strict=False):
            same = dataset.labels[other] == dataset.labels[query]
            _show(axes, dataset, other, _name(dataset, other), "tab:green" if same else "tab:red")
    return png(plot)


def errors_png(dataset: LabelledSet, reported: np.ndarray, probabilities: np.ndarray) -> bytes:
    """The frames whose label the probe gave the least probability, at most one of a patient; none: empty.

    Args:
        dataset: the set.
        reported: (m,) numbers of the samples that were predicted.
        probabilities: (m, C).

    """
    of_label = probabilities[np.arange(len(reported)), dataset.labels[reported]]
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != dataset.labels[reported])
    order = wrong[np.lexsort((dataset.keys[reported[wrong]], of_label[wrong]))]
    first = np.sort(np.unique(dataset.groups[reported[order]], return_index=True)[1])
    worst = order[first][: 2 * NUM_FRAMES]
    if not len(worst):
        return b""
    plot = Plot(figsize=(7, 1.5 * -(-len(worst) // NUM_FRAMES)), layout="constrained")
    panels = plot.subplots(-(-len(worst) // NUM_FRAMES), NUM_FRAMES, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, row in zip(panels, worst, strict=False):
        said = int(probabilities[row].argmax())
        title = f"{_name(dataset, reported[row])}\nnot {_short(dataset.classes[said])} {probabilities[row, said]:.2f}"
        _show(axes, dataset, int(reported[row]), title, "black")
    return png(plot)


def _spread(dataset: LabelledSet, number: int) -> np.ndarray:
    """Numbers of samples of different patients, the classes in turn; the same whatever the order of the set."""
    order = np.argsort(dataset.keys)
    first = order[np.sort(np.unique(dataset.groups[order], return_index=True)[1])]
    rank = np.zeros(len(first), dtype=np.int64)
    for label in np.unique(dataset.labels[first]):
        same = dataset.labels[first] == label
        rank[same] = np.arange(same.sum())
    return first[np.lexsort((dataset.labels[first], rank))][:number]


def _nearest(unit: np.ndarray, groups: np.ndarray, query: int) -> np.ndarray:
    others = np.flatnonzero(groups != groups[query])
    order = others[np.argsort(-(unit[others] @ unit[query]), kind="stable")]
    first = np.sort(np.unique(groups[order], return_index=True)[1])  # one of a patient
    nearest: np.ndarray = order[first][:_NUM_NEIGHBOURS]
    return nearest


def _components(patches: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(B, N, 3) in 0..1: principal components of the patches inside, two deviations either way."""
    inside = np.where(inside.any(axis=1, keepdims=True), inside, True)
    some = patches[inside].astype(np.float64)
    centred = patches - some.mean(axis=0)
    directions = np.linalg.svd(some - some.mean(axis=0), full_matrices=False)[2][:3]
    directions *= np.sign(directions.sum(axis=1, keepdims=True))  # else the sign is the library's choice
    parts = np.zeros((*patches.shape[:2], 3))
    parts[..., : len(directions)] = centred @ directions.T
    deviation = np.maximum(parts[inside].std(axis=0), np.finfo(np.float32).tiny)
    return np.where(inside[..., None], np.clip(0.5 + parts / (4 * deviation), 0, 1), _BACKGROUND_RGB)


def _tile(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, (_TILE, _TILE), interpolation=cv2.INTER_NEAREST)


def _show(axes: Axes, dataset: LabelledSet, sample: int, title: str, colour: str) -> None:
    small = cv2.resize(dataset.squares[sample, 0], (_TILE, _TILE), interpolation=cv2.INTER_AREA)
    axes.imshow(small, cmap="gray", vmin=0, vmax=255)
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=7)
    for side in axes.spines.values():
        side.set(color=colour, linewidth=3)


def _name(dataset: LabelledSet, sample: int) -> str:
    return _short(dataset.classes[int(dataset.labels[sample])])


def _short(name: str, letters: int = 14) -> str:
    return name if len(name) <= letters else name[: letters - 1] + "…"

"""A linear head on patch tokens that names the class of every pixel: what an encoder knows about where.

The head is fitted to the share of each class among the pixels of a patch, which is the cross-entropy of the patch's
logits averaged over its pixels; at the end the logits are enlarged bilinearly to the pixels of the mask.
Dimensions: n samples, N patches (a square grid), D channels, S pixels a side, C classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from eval.descent import DescentConfig, content_order, descend, device
from eval.metrics import Interval, group_weights, indices_of_groups, interval_of
from eval.partition import NOT_REPORTED, Partition, ProbeConfig, folds_by_group, partitions, split_by_group
from eval.weighted import weighted_confusion
from sharding.recording import InputError

SEGMENTATION = DescentConfig(batch=16, epochs=60, patience=10, seeds=(0,))
_CHUNK = 64  # samples that are predicted at once


@dataclass(frozen=True)
class SegmentationResult:
    """What `segmentation_probe` returns.

    Attributes:
        predicted: (n, S, S) uint8 class of each pixel, 0 where no row is reported.
        confusion: (n, C, C) pixels of each sample, rows the true class; 0 where no row is reported.
        folds: (n,) fold in which each sample is reported, -1 where it is not.
        epochs: used by each fold.
        constant: whether every reported pixel gets one class.

    """

    predicted: np.ndarray
    confusion: np.ndarray
    folds: np.ndarray
    epochs: tuple[int, ...]
    constant: bool

    @property
    def reported(self) -> np.ndarray:
        """(n,) bool, the rows that count."""
        return np.asarray(self.folds != NOT_REPORTED)


@dataclass(frozen=True)
class OverlapScores:
    """Overlap of each class over all pixels of the scored samples; NaN for a class that is neither true nor predicted.

    Attributes:
        dice: (C,) 2 TP / (2 TP + FP + FN).
        iou: (C,) TP / (TP + FP + FN).
        dice_intervals: 95 %, by a bootstrap over groups.
        iou_intervals: likewise.

    """

    dice: np.ndarray
    iou: np.ndarray
    dice_intervals: tuple[Interval, ...]
    iou_intervals: tuple[Interval, ...]


def segmentation_probe(
    tokens: np.ndarray,
    masks: np.ndarray,
    groups: np.ndarray,
    cfg: ProbeConfig,
    splits: np.ndarray | None = None,
    descent: DescentConfig = SEGMENTATION,
) -> SegmentationResult:
    """Segment every reported sample by a linear head that did not see it.

    Args:
        tokens: (n, N, D) float16 or float32, finite; channels are standardised by the fitted rows.
        masks: (n, S, S) integers, class of each pixel in 0..C-1; S a multiple of the grid's side.
        groups: (n,) group (patient) of each sample, any sortable type.
        cfg: folds, inner_share and seed count here.
        splits: (n,) "train", "val" or "test"; without val a part of train by group stops the descent.
        descent: of the head; its first seed counts.

    Raises:
        InputError: shapes that do not fit, tokens that are not finite, classes below 0 or above 255, fewer groups
            than folds.

    """
    _check(tokens, masks)
    order = content_order(tokens, masks)
    tokens, masks, groups = tokens[order], masks[order], groups[order]
    splits = None if splits is None else splits[order]
    folds = folds_by_group(groups, len(masks), cfg, splits)
    num_classes = int(masks.max()) + 1
    predicted, epochs = np.zeros(masks.shape, dtype=np.uint8), []
    for part in partitions(folds, splits):
        inner = Partition(*split_by_group(part, groups, cfg), part.reported)
        used, predicted[part.reported] = _fit_and_predict(tokens, masks, inner, descent, num_classes)
        epochs.append(used)
    confusion = np.zeros((len(masks), num_classes, num_classes), dtype=np.int64)
    for row in np.flatnonzero(folds != NOT_REPORTED):
        cells = masks[row].astype(np.int64) * num_classes + predicted[row]
        confusion[row] = np.bincount(cells.ravel(), minlength=num_classes**2).reshape(num_classes, num_classes)
    constant = bool((confusion.sum(axis=(0, 1)) > 0).sum() == 1)
    back = np.argsort(order)
    return SegmentationResult(predicted[back], confusion[back], folds[back], tuple(epochs), constant)


def overlap_scores(
    confusion: np.ndarray, groups: np.ndarray, num_resamples: int = 2000, seed: int = 0
) -> OverlapScores:
    """Dice and IoU of the pixels of the reported samples, (m, C, C), with groups (m,) resampled.

    Raises:
        InputError: groups of another length, or fewer than 2.

    """
    group_of_each = indices_of_groups(groups, len(confusion))
    counts = np.zeros((int(group_of_each.max()) + 1, *confusion.shape[1:]))
    np.add.at(counts, group_of_each, confusion)
    dice, iou = _overlaps(weighted_confusion(counts, group_weights(len(counts), num_resamples, seed)))
    observed = _overlaps(counts.sum(axis=0, keepdims=True))
    intervals = [tuple(_interval(column) for column in values.T) for values in (dice, iou)]
    return OverlapScores(observed[0][0], observed[1][0], intervals[0], intervals[1])


def _interval(values: np.ndarray) -> Interval:
    return Interval(float("nan"), float("nan")) if np.isnan(values).all() else interval_of(values)


def _overlaps(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dice and IoU, (B, C) each."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    both = confusion.sum(axis=1) + confusion.sum(axis=2)
    dice = np.divide(2 * hits, both, out=np.full(both.shape, np.nan), where=both > 0)
    return dice, dice / (2 - dice)


def _fit_and_predict(
    tokens: np.ndarray, masks: np.ndarray, part: Partition, descent: DescentConfig, num_classes: int
) -> tuple[int, np.ndarray]:
    """Epochs used and classes (m, S, S) of the reported rows."""
    grid, place = round(tokens.shape[1] ** 0.5), device()
    fitted = tokens[part.train].astype(np.float32)
    mean, spread = fitted.mean(axis=(0, 1)), fitted.std(axis=(0, 1))
    spread[spread <= np.finfo(np.float32).eps * np.abs(mean)] = 1  # a constant channel says nothing
    shift, scale, data = (torch.from_numpy(values) for values in (mean, spread, tokens))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(descent.seeds[0])
        head = nn.Linear(tokens.shape[2], num_classes).to(place)

    def logits(rows: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = head(((data[rows].float() - shift) / scale).to(place)).transpose(1, 2)
        return result  # (b, C, N)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        shares = _class_shares(torch.from_numpy(masks[rows.numpy()].astype(np.int64)), grid, num_classes)
        return functional.cross_entropy(logits(rows), shares.to(place))

    val = part.train if part.val is None else part.val
    used = descend(head, loss, part.train, val, descent, descent.seeds[0])
    parts = []
    with torch.no_grad():
        for rows in torch.split(torch.from_numpy(part.reported), _CHUNK):
            coarse = torch.unflatten(logits(rows), 2, (grid, grid))
            fine = functional.interpolate(coarse, masks.shape[1:], mode="bilinear", align_corners=False)
            parts.append(fine.argmax(dim=1).to(torch.uint8).cpu())
    return used, torch.cat(parts).numpy()


def _class_shares(masks: torch.Tensor, grid: int, num_classes: int) -> torch.Tensor:
    """(b, C, N) share of each class among the pixels of a patch."""
    one_hot = functional.one_hot(masks, num_classes).permute(0, 3, 1, 2).float()
    return functional.avg_pool2d(one_hot, masks.shape[1] // grid).flatten(2)


def _check(tokens: np.ndarray, masks: np.ndarray) -> None:
    shapes = f"segmentation probe: tokens {tokens.shape}, masks {masks.shape}"
    if tokens.ndim != 3 or masks.ndim != 3 or len(tokens) != len(masks) or masks.shape[1] != masks.shape[2]:  # noqa: PLR2004
        raise InputError(f"{shapes}; (n, N, D) and (n, S, S) are needed")
    grid = round(tokens.shape[1] ** 0.5)
    if grid**2 != tokens.shape[1] or masks.shape[1] % grid:
        raise InputError(f"{shapes}; N a square number and S a multiple of its root are needed")
    if not np.isfinite(tokens).all():
        raise InputError(f"{shapes}; {int((~np.isfinite(tokens)).sum())} values of the tokens are not finite")
    if not np.issubdtype(masks.dtype, np.integer) or masks.min() < 0 or not 0 < masks.max() <= np.iinfo(np.uint8).max:
        raise InputError(f"{shapes} of {masks.dtype}; integer classes from 0, at least two, at most 256, are needed")

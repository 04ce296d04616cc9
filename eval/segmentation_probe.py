"""A linear head on frozen patch tokens, its logits enlarged to the masks; Dice and IoU per class.

Folds keep groups (patients) whole and depend on groups and config alone, so every encoder is compared on the same
ones; or splits do it. Dimensions: n samples, N = g x g patches, D features, S side of the masks, C classes, G groups.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.model_selection import GroupKFold
from torch import nn
from torch.nn import functional

from eval.bootstrap import Interval, group_weights, interval_of
from eval.partition import NOT_REPORTED, check_splits, partitions
from eval.weighted import check_class_indices
from sharding.recording import InputError

_PER_FORWARD = 32  # samples whose enlarged logits are held at once outside of training


@dataclass(frozen=True)
class SegmentationConfig:
    """What changes the numbers of a segmentation probe.

    Attributes:
        folds: number of folds.
        epochs: passes over the train folds.
        batch: samples per step.
        learning_rate: of AdamW at the start; it falls to 0 as a cosine.
        weight_decay: of AdamW.
        seed: of the folds and of the order of the samples.

    """

    folds: int = 5
    epochs: int = 20
    batch: int = 16
    learning_rate: float = 1e-2
    weight_decay: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds <= 1 or min(self.epochs, self.batch) <= 0:
            raise InputError(
                f"segmentation probe: {self.folds} folds, {self.epochs} epochs, batches of {self.batch}; at least 2 "
                "folds, 1 epoch and batches of 1 are needed"
            )


@dataclass(frozen=True)
class SegmentationResult:
    """What `segmentation_probe` returns.

    Attributes:
        predictions: (n, S, S) uint8 class ids in the order of the input, each by the head that did not see it; 0
            where it is not reported.
        folds: (n,) fold in which each sample is reported, -1 where it is not.

    """

    predictions: np.ndarray
    folds: np.ndarray

    @property
    def reported(self) -> np.ndarray:
        """(n,) bool, the rows that count."""
        return np.asarray(self.folds != NOT_REPORTED)


@dataclass(frozen=True)
class SegmentationScores:
    """Scores over the pixels of all samples, (C,) each, with 95 % intervals over groups.

    Attributes:
        dice: 2 TP / (2 TP + FP + FN), the F1 of pixels.
        iou: TP / (TP + FP + FN).
        dice_intervals, iou_intervals: of each class, over resampled groups.
        foreground: mean Dice of the classes but 0, in the same resamples.

    """

    dice: np.ndarray
    iou: np.ndarray
    dice_intervals: tuple[Interval, ...]
    iou_intervals: tuple[Interval, ...]
    foreground: float
    foreground_interval: Interval


def segmentation_probe(
    tokens: np.ndarray,
    masks: np.ndarray,
    groups: np.ndarray,
    cfg: SegmentationConfig,
    splits: np.ndarray | None = None,
) -> SegmentationResult:
    """Predict every reported mask by a linear head fitted on train rows by cross-entropy of pixels.

    Tokens are standardised with the statistics of the train rows. The logits of the g x g patches are enlarged
    bilinearly to S x S before the loss. The head starts at 0 and its loss is convex, so nothing is drawn but the
    order of the samples. Settings are fixed: nothing is chosen, so val serves nothing.

    Args:
        tokens: (n, N, D) float16 or float32, finite; patches row by row.
        masks: (n, S, S) integers in 0..C-1, C at most 256.
        groups: (n,) group (patient) of each sample, any sortable type.
        cfg: the probe.
        splits: (n,) "train", "val" or "test", of which test is reported; None: cross-validation by group.

    Raises:
        InputError: shapes that do not fit, N that is no square, class ids with gaps, fewer groups than folds,
            tokens that are not finite, splits that cannot be used.

    """
    num_classes = _check(tokens, masks, groups)
    folds = _folds(groups, cfg, splits)
    predictions = np.zeros(masks.shape, dtype=np.uint8)
    for part in partitions(folds, splits):
        head = _fit(tokens, masks, part.train, num_classes, cfg)
        predictions[part.reported] = head.predict(tokens, part.reported, masks.shape[-1])
    return SegmentationResult(predictions, folds)


def segmentation_scores(
    masks: np.ndarray, predictions: np.ndarray, groups: np.ndarray, num_resamples: int = 2000, seed: int = 0
) -> SegmentationScores:
    """Dice and IoU of each class, with 95 % percentile intervals of a bootstrap over groups.

    A resample in which a class neither is nor is predicted is left out of the intervals of that class.

    Args:
        masks: (n, S, S) integers in 0..C-1, every class present.
        predictions: (n, S, S) integers in 0..C-1.
        groups: (n,) group (patient) of each sample, any sortable type; at least 2.
        num_resamples: B.
        seed: of the resampling; the same draws as for the scores of classes.

    Raises:
        InputError: shapes that differ, class ids with gaps or beyond those of the masks, one group.

    """
    names, group_of_each = np.unique(groups, return_inverse=True)
    if masks.shape != predictions.shape or len(names) <= 1 or len(group_of_each) != len(masks):
        raise InputError(
            f"segmentation scores: masks have shape {masks.shape}, predictions {predictions.shape}, with "
            f"{len(names)} groups of {len(group_of_each)} samples; equal shapes and 2 groups are needed"
        )
    num_classes = _num_classes(masks)
    if predictions.max() >= num_classes:
        raise InputError(f"segmentation scores: class {predictions.max()} is predicted, but no mask holds it")
    counts = np.zeros((len(names), num_classes, num_classes))
    for row, group in enumerate(group_of_each):
        cells = masks[row].astype(np.int64) * num_classes + predictions[row]
        counts[group] += np.bincount(cells.ravel(), minlength=num_classes**2).reshape(num_classes, -1)
    dice, iou = _overlaps(counts.sum(axis=0)[None])
    resampled = _overlaps(np.tensordot(group_weights(len(names), num_resamples, seed), counts, 1))
    of_dice, of_iou = (tuple(interval_of(of_class) for of_class in values.T) for values in resampled)
    foreground = interval_of(resampled[0][:, 1:].mean(axis=1))
    return SegmentationScores(dice[0], iou[0], of_dice, of_iou, float(dice[0, 1:].mean()), foreground)


def _folds(groups: np.ndarray, cfg: SegmentationConfig, splits: np.ndarray | None) -> np.ndarray:
    """(n,) fold in which each sample is reported."""
    if splits is not None:
        check_splits(splits, len(groups))
        return np.where(splits == "test", 0, NOT_REPORTED)
    num_groups = len(np.unique(groups))
    if num_groups < cfg.folds:
        raise InputError(f"segmentation probe: {num_groups} groups for {cfg.folds} folds; each fold needs one")
    folds = np.empty(len(groups), dtype=np.int64)
    splitter = GroupKFold(cfg.folds, shuffle=True, random_state=cfg.seed)
    for fold, (_, reported) in enumerate(splitter.split(groups, groups=groups)):
        folds[reported] = fold
    return folds


@dataclass(frozen=True)
class _Head:
    linear: nn.Linear
    mean: torch.Tensor
    sd: torch.Tensor
    device: torch.device

    def logits(self, tokens: np.ndarray, rows: np.ndarray, side: int) -> torch.Tensor:
        """(B, C, S, S)."""
        batch = (torch.from_numpy(tokens[rows]).to(self.device).float() - self.mean) / self.sd
        grid = math.isqrt(tokens.shape[1])
        small = self.linear(batch).transpose(1, 2).unflatten(2, (grid, grid))
        # bilinear as two products: the gradient of interpolate on a GPU adds up in no fixed order
        up = functional.interpolate(torch.eye(grid, device=self.device)[None], size=side, mode="linear")[0]
        enlarged: torch.Tensor = up.T @ small @ up
        return enlarged

    @torch.no_grad()
    def predict(self, tokens: np.ndarray, rows: np.ndarray, side: int) -> np.ndarray:
        """(m, S, S) class ids."""
        parts = np.split(rows, range(_PER_FORWARD, len(rows), _PER_FORWARD))
        return np.concatenate([self.logits(tokens, part, side).argmax(dim=1).cpu().numpy() for part in parts])


def _fit(tokens: np.ndarray, masks: np.ndarray, train: np.ndarray, num_classes: int, cfg: SegmentationConfig) -> _Head:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    linear = nn.Linear(tokens.shape[2], num_classes).to(device)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    mean, sd = _mean_and_sd(tokens, train)
    head = _Head(linear, mean.to(device), sd.to(device), device)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=cfg.learning_rate, weight_decay=cfg.weight_decay)
    num_steps = cfg.epochs * -(-len(train) // cfg.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    draws = np.random.default_rng(cfg.seed)
    for _ in range(cfg.epochs):
        order = draws.permutation(train)
        for rows in np.split(order, range(cfg.batch, len(order), cfg.batch)):
            target = torch.from_numpy(masks[rows].astype(np.int64)).to(device)
            loss = functional.cross_entropy(head.logits(tokens, rows, masks.shape[-1]), target)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return head


def _mean_and_sd(tokens: np.ndarray, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """(D,) float32 each, in pieces: all tokens in float64 would be four times what they take; 1 where sd is 0."""
    first = tokens[rows[0]].mean(axis=0, dtype=np.float64)  # sums about it lose no digits to a large mean
    total, squared = np.zeros(tokens.shape[2]), np.zeros(tokens.shape[2])
    for row in rows:
        deviations = tokens[row].astype(np.float64) - first
        total += deviations.sum(axis=0)
        squared += (deviations**2).sum(axis=0)
    count = len(rows) * tokens.shape[1]
    variance = (squared / count - (total / count) ** 2).clip(min=0)
    sd = np.where(variance > 0, np.sqrt(variance), 1)
    return torch.from_numpy(first + total / count).float(), torch.from_numpy(sd).float()


def _overlaps(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dice and IoU, (B, C) each, of (B, C, C) counts, rows the mask's class; NaN where a class is in neither."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    both = confusion.sum(axis=1) + confusion.sum(axis=2)  # 2 TP + FP + FN
    some = both > 0
    dice = np.where(some, 2 * hits / np.where(some, both, 1), np.nan)
    return dice, np.where(some, hits / np.where(some, both - hits, 1), np.nan)


def _num_classes(masks: np.ndarray) -> int:
    check_class_indices(masks, "segmentation probe")
    present = np.unique(masks).tolist()
    if present != list(range(len(present))) or not 1 < len(present) <= 256:  # noqa: PLR2004 - ids fit uint8
        raise InputError(
            f"segmentation probe: the masks hold the class ids {present[:10]}; 0..C-1, each of them, C of 2 to 256, "
            "are needed"
        )
    return len(present)


def _check(tokens: np.ndarray, masks: np.ndarray, groups: np.ndarray) -> int:
    """The number of classes."""
    fits = tokens.ndim == masks.ndim == 3 and len(tokens) == len(masks) and groups.shape == masks.shape[:1]  # noqa: PLR2004
    if not fits or masks.shape[1] != masks.shape[2] or math.isqrt(tokens.shape[1]) ** 2 != tokens.shape[1]:
        raise InputError(
            f"segmentation probe: tokens have shape {tokens.shape}, masks {masks.shape}, groups {groups.shape}; "
            "(n, N, D) with a square number N, (n, S, S) and (n,) are needed"
        )
    num_bad = sum(int((~np.isfinite(sample)).sum()) for sample in tokens)
    if num_bad:
        raise InputError(f"segmentation probe: {num_bad} of {tokens.size} values of tokens are not finite")
    return _num_classes(masks)

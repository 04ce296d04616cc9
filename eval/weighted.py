"""The formulas of the scores, each under B weightings of G groups at once: what a bootstrap needs, and with the
single weight 1 the score itself, so an interval is always one of the number it stands next to.

Dimensions: n samples, C classes, G groups, B weightings (resamples).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sharding.recording import InputError

BINARY = 2
CHUNK_VALUES = 1 << 19  # values per temporary array of a ranking: 4 MB each
CALIBRATION_BINS = 15

Area = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # as weighted_auroc


def check_class_indices(labels: np.ndarray, where: str) -> None:
    """Raise InputError, naming `where`, unless labels are integers and none is negative."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{where}: labels are {labels.dtype}; integers 0..C-1 are needed")
    if labels.size and labels.min() < 0:
        raise InputError(f"{where}: the lowest label is {labels.min()}; integers 0..C-1 are needed")


def confusion_of_groups(
    labels: np.ndarray, probabilities: np.ndarray, group_of_each: np.ndarray, num_groups: int
) -> np.ndarray:
    """(G, C, C) counts of each group, rows the label; the most probable class is predicted, the first of equals."""
    num_classes = probabilities.shape[1]
    cells = (group_of_each * num_classes + labels) * num_classes + probabilities.argmax(axis=1)
    counts = np.bincount(cells, minlength=num_groups * num_classes**2)
    return np.asarray(counts.reshape(num_groups, num_classes, num_classes))


def weighted_confusion(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B, C, C) of counts (G, C, C) and weights (B, G), in one matrix product."""
    return np.asarray((weights @ counts.reshape(len(counts), -1)).reshape(-1, *counts.shape[1:]))


def accuracy_of(confusion: np.ndarray) -> np.ndarray:
    """(B,) share of the samples that are on the diagonal."""
    return np.asarray(np.trace(confusion, axis1=1, axis2=2) / confusion.sum(axis=(1, 2)))


def balanced_accuracy_of(confusion: np.ndarray) -> np.ndarray:
    """(B,) mean recall of the C classes; NaN where a class has no weight."""
    total = confusion.sum(axis=2)
    recall = np.full(total.shape, np.nan)
    np.divide(np.diagonal(confusion, axis1=1, axis2=2), total, out=recall, where=total > 0)
    return np.asarray(recall.mean(axis=1))


def macro_f1_of(confusion: np.ndarray) -> np.ndarray:
    """(B,) mean over the C classes of 2 TP / (2 TP + FP + FN), 0 for a class that is neither there nor predicted."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    total = confusion.sum(axis=1) + confusion.sum(axis=2)
    return np.asarray((2 * hits / np.where(total > 0, total, 1)).mean(axis=1))


def macro_f1(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Macro F1 of labels (n,) that need not hold every class of probabilities (n, C): what chooses a setting."""
    counts = confusion_of_groups(labels, probabilities, np.zeros(len(labels), dtype=np.int64), 1)
    return float(macro_f1_of(counts)[0])


def weighted_auroc(
    positive: np.ndarray, ranking: np.ndarray, group_of_each: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Area under the ROC curve of one ranking under B weightings of its groups.

    It is the weighted share of (positive, negative) pairs that are ranked rightly, ties counting half
    (Hanley and McNeil 1982): scikit-learn's `roc_auc_score` with `sample_weight`.

    Args:
        positive: (n,) bool.
        ranking: (n,) finite, higher means more likely positive.
        group_of_each: (n,) column of `weights` for each sample.
        weights: (B, G), not negative.

    Returns:
        (B,), NaN where the positives or the negatives have no weight.

    """
    return _in_chunks(_auroc_of, positive, ranking, group_of_each, weights)


def weighted_average_precision(
    positive: np.ndarray, ranking: np.ndarray, group_of_each: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Mean over the positives of the precision at their threshold: scikit-learn's `average_precision_score`.

    Arguments and result are those of `weighted_auroc`.
    """
    return _in_chunks(_average_precision_of, positive, ranking, group_of_each, weights)


@dataclass(frozen=True)
class _Ranks:
    """Row numbers, highest first, and for each positive how many rank above it or not below it."""

    positives: np.ndarray
    negatives: np.ndarray
    positives_not_below: np.ndarray
    negatives_not_below: np.ndarray
    negatives_above: np.ndarray

    @classmethod
    def of(cls, positive: np.ndarray, ranking: np.ndarray) -> "_Ranks":
        positives, negatives = (np.flatnonzero(part) for part in (positive, ~positive))
        positives = positives[np.argsort(-ranking[positives])]
        negatives = negatives[np.argsort(-ranking[negatives])]
        down, others = -ranking[positives], -ranking[negatives]
        return cls(
            positives,
            negatives,
            np.searchsorted(down, down, side="right"),
            np.searchsorted(others, down, side="right"),
            np.searchsorted(others, down, side="left"),
        )


def _in_chunks(
    area: Callable[[_Ranks, np.ndarray, np.ndarray], np.ndarray],
    positive: np.ndarray,
    ranking: np.ndarray,
    group_of_each: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """(B,) areas. With the weightings last, rows are picked and added up in whole stretches of memory."""
    ranks = _Ranks.of(positive, ranking)
    of_positives, of_negatives = group_of_each[ranks.positives], group_of_each[ranks.negatives]
    width, areas = max(1, CHUNK_VALUES // len(ranking)), np.empty(len(weights))
    for start in range(0, len(weights), width):
        part = np.ascontiguousarray(weights[start : start + width].T)
        areas[start : start + width] = area(ranks, part.take(of_positives, axis=0), part.take(of_negatives, axis=0))
    return areas


def _auroc_of(ranks: _Ranks, positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """(b,) from the weights of positives (P, b) and negatives (N, b), highest rank first."""
    misses = _sums_of_first(negatives)
    above = misses.take(ranks.negatives_not_below, axis=0)
    above += misses.take(ranks.negatives_above, axis=0)
    pairs = positives.sum(axis=0) * misses[-1]
    won = pairs - np.einsum("pb,pb->b", positives, above) / 2
    return np.asarray(np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))


def _average_precision_of(ranks: _Ranks, positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """(b,) likewise."""
    hits, misses = _sums_of_first(positives), _sums_of_first(negatives)
    caught = hits.take(ranks.positives_not_below, axis=0)
    taken = caught + misses.take(ranks.negatives_not_below, axis=0)
    precision = np.divide(caught, taken, out=np.zeros_like(caught), where=taken > 0)
    total = np.einsum("pb,pb->b", positives, precision)
    both = (hits[-1] > 0) & (misses[-1] > 0)
    return np.asarray(np.divide(total, hits[-1], out=np.full(len(both), np.nan), where=both))


def _sums_of_first(values: np.ndarray) -> np.ndarray:
    """(k + 1, b): sums of the first 0..k rows of (k, b)."""
    sums = np.zeros((len(values) + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=sums[1:])
    return sums


def mean_area(
    area: Area, labels: np.ndarray, probabilities: np.ndarray, group_of_each: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """(B,) of class 1 for two classes, else the mean of one versus rest; NaN where a class has no weight."""
    num_classes = probabilities.shape[1]
    classes = [1] if num_classes == BINARY else range(num_classes)
    return np.asarray(
        np.mean([area(labels == c, probabilities[:, c], group_of_each, weights) for c in classes], axis=0)
    )


def calibration_gaps(
    labels: np.ndarray, probabilities: np.ndarray, group_of_each: np.ndarray, num_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence minus correctness summed per group and bin of confidence (G, bins), and samples per group (G,).

    The confidence is the probability of the predicted class; the bins are equally wide, upper ends included.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    upper = np.ceil(confidence * CALIBRATION_BINS - 1e-9)  # 0.6, however it was rounded, ends the ninth of 15 bins
    bins = np.clip(upper.astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    cells = group_of_each * CALIBRATION_BINS + bins
    gaps = np.bincount(cells, weights=confidence - correct, minlength=num_groups * CALIBRATION_BINS)
    return gaps.reshape(num_groups, -1), np.bincount(group_of_each, minlength=num_groups)


def calibration_error_of(gaps: np.ndarray, sizes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B,) expected calibration error: the mean over samples of their bin's |mean confidence - accuracy|.

    Guo et al. 2017, arXiv 1706.04599, equation 3, with 15 bins.
    """
    return np.asarray(np.abs(weights @ gaps).sum(axis=1) / (weights @ sizes))

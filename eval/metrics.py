"""Scores of a probe and their 95 % intervals by a bootstrap over groups (patients).

Point scores and resampled scores come from the same formulas, so an interval is always one of the number it
stands next to. Dimensions: n samples, C classes, G groups, B resamples.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sharding.recording import InputError

Metric = Literal["macro_f1", "auroc"]  # what is compared in pairs
BINARY = 2
CHUNK_VALUES = 1 << 20  # values per temporary array in weighted_auroc: 8 MB each


@dataclass(frozen=True)
class Interval:
    """A 95 % percentile interval, ends included."""

    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """Point scores in 0..1; see `scores`."""

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    auroc: float


@dataclass(frozen=True)
class Resampled:
    """Scores of one encoder in every resample, (B,) each; auroc is NaN where a class has no sample."""

    accuracy: np.ndarray
    macro_f1: np.ndarray
    auroc: np.ndarray


@dataclass(frozen=True)
class Intervals:
    """The intervals of one encoder."""

    accuracy: Interval
    macro_f1: Interval
    auroc: Interval


@dataclass(frozen=True)
class PairedDifference:
    """Macro F1 of one encoder minus that of another.

    Attributes:
        observed: difference of the point scores, the number to print.
        mean: mean difference over the resamples.
        interval: 95 % interval of the difference.
        excludes_zero: whether the interval lies on one side of 0.
        p_value: two-sided, of no difference: twice the smaller share of resamples on one side of 0, ends included.

    """

    observed: float
    mean: float
    interval: Interval
    excludes_zero: bool
    p_value: float


@dataclass(frozen=True)
class Bootstrap:
    """Point scores, the same scores in B resamples and their intervals, by name of the encoder.

    `auroc_left_out` resamples had no sample of some class; the AUROC intervals are over the others.
    """

    observed: dict[str, Scores]
    resampled: dict[str, Resampled]
    intervals: dict[str, Intervals]
    auroc_left_out: int

    def paired_difference(self, first: str, second: str, metric: Metric = "macro_f1") -> PairedDifference:
        """A score of `first` minus that of `second`, both in the same resamples. KeyError for an unknown name."""
        values = [getattr(self.resampled[name], metric) for name in (first, second)]
        difference = values[0] - values[1]
        difference = difference[~np.isnan(difference)]  # resamples without some class have no auroc
        observed = getattr(self.observed[first], metric) - getattr(self.observed[second], metric)
        interval = _interval(difference)
        excludes_zero = interval.low > 0 or interval.high < 0
        sides = min((difference <= 0).sum(), (difference >= 0).sum())
        p_value = min(1.0, 2 * float(sides + 1) / (len(difference) + 1))  # + 1: no p-value of 0 from B resamples
        return PairedDifference(observed, float(difference.mean()), interval, excludes_zero, p_value)


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values of one family (n,), corrected by Holm's step-down procedure (Holm 1979), in their order."""
    order = np.argsort(p_values)
    steps = p_values[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected


def scores(labels: np.ndarray, probabilities: np.ndarray) -> Scores:
    """Score probabilities against labels; the predicted class is the most probable, the first of equals.

    Balanced accuracy is the mean recall of the C classes. Macro F1 is the mean over all C classes of
    2 TP / (2 TP + FP + FN). AUROC is that of class 1 for two classes, else the mean of one versus rest.

    Args:
        labels: (n,) integers in 0..C-1, every class present.
        probabilities: (n, C), finite.

    Raises:
        InputError: shapes that do not fit, probabilities that are not finite, labels that are not integers
            or not exactly the classes 0..C-1.

    """
    _check(labels, probabilities, "scores")
    everyone, weights = np.zeros(len(labels), dtype=np.int64), np.ones((1, 1))
    confusion = _confusion(labels, probabilities, everyone, weights)
    recall = np.diagonal(confusion[0]) / confusion[0].sum(axis=1)
    return Scores(
        accuracy=float(_accuracy(confusion)[0]),
        balanced_accuracy=float(recall.mean()),
        macro_f1=float(_macro_f1(confusion)[0]),
        auroc=float(_auroc(labels, probabilities, everyone, weights)[0]),
    )


def bootstrap(
    labels: np.ndarray,
    probabilities_by_name: dict[str, np.ndarray],
    groups: np.ndarray,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Bootstrap:
    """Resample groups with replacement, the same resamples for every encoder, and give 95 % intervals.

    The probabilities stay as they are: an interval covers the chance in which groups were scored, not that
    of training the encoder or the probe. A resample in which some class has no sample has no AUROC and is
    left out of the AUROC intervals; it stays in the others, where the F1 of that class is 0.

    Args:
        labels: (n,) integers in 0..C-1, every class present.
        probabilities_by_name: name of the encoder to (n, C), finite.
        groups: (n,) group (patient) of each sample, any sortable type.
        num_resamples: B.
        seed: of the resampling.

    Raises:
        InputError: what `scores` raises; no encoder; fewer than 2 groups; groups of another length; no
            resample that holds every class.

    """
    if not probabilities_by_name:
        raise InputError("bootstrap: no encoder; the probabilities of at least one are needed")
    observed = {name: scores(labels, values) for name, values in probabilities_by_name.items()}
    group_of_each = _group_of_each(groups, len(labels))
    weights = group_weights(int(group_of_each.max()) + 1, num_resamples, seed)
    resampled = {
        name: _resampled(labels, values, group_of_each, weights) for name, values in probabilities_by_name.items()
    }
    left_out = int(np.isnan(next(iter(resampled.values())).auroc).sum())
    if left_out == num_resamples:
        raise InputError(
            f"bootstrap: none of {num_resamples} resamples of {weights.shape[1]} groups holds every class; "
            "more resamples, or more groups per class, are needed"
        )
    intervals = {name: _intervals(values) for name, values in resampled.items()}
    return Bootstrap(observed, resampled, intervals, left_out)


def group_weights(num_groups: int, num_resamples: int, seed: int) -> np.ndarray:
    """How often each group occurs in each resample: (B, G) float64 counts, every row with the sum G."""
    drawn = np.random.default_rng(seed).integers(num_groups, size=(num_resamples, num_groups))
    cells = drawn + num_groups * np.arange(num_resamples)[:, None]
    counts = np.bincount(cells.ravel(), minlength=num_resamples * num_groups)
    return counts.reshape(num_resamples, num_groups).astype(np.float64)


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
    order = np.argsort(ranking)
    is_positive, group_in_order = positive[order], group_of_each[order]
    tie_starts = np.flatnonzero(np.diff(ranking[order], prepend=-np.inf))
    areas = np.full(len(weights), np.nan)
    chunk = max(1, CHUNK_VALUES // len(order))
    for start in range(0, len(weights), chunk):
        weight = weights[start : start + chunk, group_in_order]
        positives = np.add.reduceat(weight * is_positive, tie_starts, axis=1)
        negatives = np.add.reduceat(weight * ~is_positive, tie_starts, axis=1)
        negatives_below = np.cumsum(negatives, axis=1) - negatives / 2
        won = np.einsum("bt,bt->b", positives, negatives_below)
        pairs = positives.sum(axis=1) * negatives.sum(axis=1)
        np.divide(won, pairs, out=areas[start : start + chunk], where=pairs > 0)
    return areas


def check_class_indices(labels: np.ndarray, where: str) -> None:
    """Raise InputError, naming `where`, unless labels are integers and none is negative."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{where}: labels are {labels.dtype}; integers 0..C-1 are needed")
    if labels.size and labels.min() < 0:
        raise InputError(f"{where}: the lowest label is {labels.min()}; integers 0..C-1 are needed")


def _auroc(labels: np.ndarray, probabilities: np.ndarray, group_of_each: np.ndarray, weights: np.ndarray) -> np.ndarray:
    num_classes = probabilities.shape[1]
    classes = [1] if num_classes == BINARY else range(num_classes)
    areas = [weighted_auroc(labels == c, probabilities[:, c], group_of_each, weights) for c in classes]
    return np.asarray(np.mean(areas, axis=0))


def _confusion(
    labels: np.ndarray, probabilities: np.ndarray, group_of_each: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """(B, C, C) weighted counts, rows the label: counts per group times weights in one matmul."""
    num_groups, num_classes = weights.shape[1], probabilities.shape[1]
    cells = (group_of_each * num_classes + labels) * num_classes + probabilities.argmax(axis=1)
    counts = np.bincount(cells, minlength=num_groups * num_classes**2).reshape(num_groups, -1)
    return np.asarray((weights @ counts).reshape(-1, num_classes, num_classes))


def _accuracy(confusion: np.ndarray) -> np.ndarray:
    return np.asarray(np.trace(confusion, axis1=1, axis2=2) / confusion.sum(axis=(1, 2)))


def _macro_f1(confusion: np.ndarray) -> np.ndarray:
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    total = confusion.sum(axis=1) + confusion.sum(axis=2)
    return np.asarray((2 * hits / np.where(total > 0, total, 1)).mean(axis=1))


def _resampled(
    labels: np.ndarray, probabilities: np.ndarray, group_of_each: np.ndarray, weights: np.ndarray
) -> Resampled:
    confusion = _confusion(labels, probabilities, group_of_each, weights)
    auroc = _auroc(labels, probabilities, group_of_each, weights)
    return Resampled(_accuracy(confusion), _macro_f1(confusion), auroc)


def _interval(values: np.ndarray) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


def _intervals(resampled: Resampled) -> Intervals:
    auroc = resampled.auroc[~np.isnan(resampled.auroc)]
    return Intervals(_interval(resampled.accuracy), _interval(resampled.macro_f1), _interval(auroc))


def _group_of_each(groups: np.ndarray, num_labels: int) -> np.ndarray:
    if groups.shape != (num_labels,):
        raise InputError(f"bootstrap: groups have shape {groups.shape}; ({num_labels},) is needed")
    names, group_of_each = np.unique(groups, return_inverse=True)
    if len(names) <= 1:
        raise InputError(f"bootstrap: {len(names)} group; an interval over groups needs at least 2")
    return np.asarray(group_of_each)


def _check(labels: np.ndarray, probabilities: np.ndarray, where: str) -> None:
    if labels.ndim != 1 or probabilities.shape[:-1] != labels.shape or probabilities.shape[-1] <= 1:
        raise InputError(
            f"{where}: labels have shape {labels.shape}, probabilities {probabilities.shape}; "
            "(n,) and (n, C) with C of at least 2 are needed"
        )
    num_bad = int((~np.isfinite(probabilities)).sum())
    if num_bad:
        raise InputError(f"{where}: {num_bad} of {probabilities.size} probabilities are not finite")
    check_class_indices(labels, where)
    classes = np.unique(labels).tolist()
    if classes != list(range(probabilities.shape[1])):
        raise InputError(
            f"{where}: the labels are of the classes {classes}, the probabilities have "
            f"{probabilities.shape[1]} columns; each class needs a column and a sample"
        )

"""Intervals of scores by a bootstrap over groups (patients), and what tells two encoders apart.

Point scores and resampled scores come from the same formulas, so an interval is always one of the number it stands
next to. Dimensions: n samples, C classes, G groups, B resamples.
"""

from dataclasses import dataclass, fields

import numpy as np

from eval.metrics import (
    Resampled,
    ScoreName,
    Scores,
    check_scored,
    resampled_score,
    resampled_scores,
    scores,
)
from sharding.recording import InputError

_DRAWN_AT_ONCE = 256  # resamples, so that what is drawn fits a cache


@dataclass(frozen=True)
class Interval:
    """A 95 % percentile interval, ends included."""

    low: float
    high: float


@dataclass(frozen=True)
class Intervals:
    """The intervals of one encoder."""

    accuracy: Interval
    balanced_accuracy: Interval
    macro_f1: Interval
    auroc: Interval
    average_precision: Interval
    calibration_error: Interval


@dataclass(frozen=True)
class PairedDifference:
    """A score of one encoder minus that of another.

    Attributes:
        observed: difference of the point scores, the number to print.
        mean: mean difference over the resamples.
        interval: 95 % interval of the difference.
        excludes_zero: whether the interval lies on one side of 0.
        p_value: two-sided: twice the smaller share of resamples on one side of 0, 0 counted on both, and one
            resample added to each (Davison and Hinkley 1997, 4.2.3 and 5.4), so it is never 0; at most 1.

    """

    observed: float
    mean: float
    interval: Interval
    excludes_zero: bool
    p_value: float


@dataclass(frozen=True)
class Bootstrap:
    """Point scores, the same scores in B resamples and their intervals, by name of the encoder.

    `auroc_left_out` resamples had no sample of some class; the intervals of what is NaN there are over the others.
    """

    observed: dict[str, Scores]
    resampled: dict[str, Resampled]
    intervals: dict[str, Intervals]
    auroc_left_out: int

    def paired_difference(self, first: str, second: str, metric: ScoreName = "macro_f1") -> PairedDifference:
        """A score of `first` minus that of `second`, both in the same resamples. KeyError for an unknown name."""
        values = [getattr(self.resampled[name], metric) for name in (first, second)]
        observed = getattr(self.observed[first], metric) - getattr(self.observed[second], metric)
        return _paired(observed, values[0] - values[1])


def bootstrap(
    labels: np.ndarray,
    probabilities_by_name: dict[str, np.ndarray],
    groups: np.ndarray,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Bootstrap:
    """Resample groups with replacement, the same resamples for every encoder, and give 95 % intervals.

    The probabilities stay as they are: an interval covers the chance in which groups were scored, not that
    of training the encoder or the probe. A resample in which some class has no sample has no AUROC, average
    precision and balanced accuracy and is left out of their intervals; it stays in the others, where the F1 of
    that class is 0.

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
    group_of_each = indices_of_groups(groups, len(labels))
    weights = group_weights(int(group_of_each.max()) + 1, num_resamples, seed)
    resampled = {
        name: resampled_scores(labels, values, group_of_each, weights) for name, values in probabilities_by_name.items()
    }
    left_out = int(np.isnan(next(iter(resampled.values())).auroc).sum())
    if left_out == num_resamples:
        raise _no_resample(weights)
    intervals = {
        name: Intervals(**{field.name: interval_of(getattr(values, field.name)) for field in fields(Intervals)})
        for name, values in resampled.items()
    }
    return Bootstrap(observed, resampled, intervals, left_out)


def paired_bootstrap(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    groups: np.ndarray,
    metric: ScoreName = "macro_f1",
    num_resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """One score of one encoder minus that of another, in more resamples than `bootstrap` can afford.

    Args:
        labels: (n,) integers in 0..C-1, every class present.
        first: (n, C) probabilities, finite.
        second: (n, C), likewise.
        groups: (n,) group (patient) of each sample, any sortable type.
        metric: a field of Scores.
        num_resamples: B.
        seed: of the resampling; that of `bootstrap` with the same B gives the same resamples.

    Raises:
        InputError: what `bootstrap` raises.

    """
    everyone, once = np.zeros(len(labels), dtype=np.int64), np.ones((1, 1))
    for probabilities in (first, second):
        check_scored(labels, probabilities, "paired bootstrap")
    group_of_each = indices_of_groups(groups, len(labels))
    weights = group_weights(int(group_of_each.max()) + 1, num_resamples, seed)
    observed = [resampled_score(metric, labels, values, everyone, once)[0] for values in (first, second)]
    resampled = [resampled_score(metric, labels, values, group_of_each, weights) for values in (first, second)]
    difference = resampled[0] - resampled[1]
    if np.isnan(difference).all():
        raise _no_resample(weights)
    return _paired(float(observed[0] - observed[1]), difference)


def group_weights(num_groups: int, num_resamples: int, seed: int) -> np.ndarray:
    """How often each group occurs in each resample: (B, G) float64 counts, every row with the sum G."""
    generator, weights = np.random.default_rng(seed), np.empty((num_resamples, num_groups))
    for start in range(0, num_resamples, _DRAWN_AT_ONCE):
        part = weights[start : start + _DRAWN_AT_ONCE]
        cells = generator.integers(num_groups, size=part.shape) + num_groups * np.arange(len(part))[:, None]
        part[:] = np.bincount(cells.ravel(), minlength=part.size).reshape(part.shape)
    return weights


def indices_of_groups(groups: np.ndarray, num_labels: int) -> np.ndarray:
    """(n,) number 0..G-1 of each sample's group.

    Raises:
        InputError: groups of another length, or fewer than 2.

    """
    if groups.shape != (num_labels,):
        raise InputError(f"bootstrap: groups have shape {groups.shape}; ({num_labels},) is needed")
    names, group_of_each = np.unique(groups, return_inverse=True)
    if len(names) <= 1:
        raise InputError(f"bootstrap: {len(names)} group; an interval over groups needs at least 2")
    return np.asarray(group_of_each)


def interval_of(values: np.ndarray) -> Interval:
    """The middle 95 % of resampled values (B,), those that are NaN left out."""
    low, high = np.percentile(values[~np.isnan(values)], [2.5, 97.5])
    return Interval(float(low), float(high))


def _paired(observed: float, difference: np.ndarray) -> PairedDifference:
    difference = difference[~np.isnan(difference)]  # resamples without some class have no auroc
    interval = interval_of(difference)
    smaller_side = min((difference <= 0).sum(), (difference >= 0).sum())
    p_value = min(1.0, 2 * (int(smaller_side) + 1) / (len(difference) + 1))
    excludes_zero = interval.low > 0 or interval.high < 0
    return PairedDifference(observed, float(difference.mean()), interval, excludes_zero, p_value)


def _no_resample(weights: np.ndarray) -> InputError:
    return InputError(
        f"bootstrap: none of {len(weights)} resamples of {weights.shape[1]} groups holds every class; "
        "more resamples, or more groups per class, are needed"
    )

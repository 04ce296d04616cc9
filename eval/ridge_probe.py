"""Linear regression of a measured quantity from frozen features, with its strength chosen by group.

One singular value decomposition per fit serves all strengths. Dimensions: n samples, D features, S strengths,
B resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.preprocessing import StandardScaler

from eval.metrics import Interval, group_weights, indices_of_groups, interval_of
from eval.partition import NOT_REPORTED, Partition, ProbeConfig, folds_by_group, partitions, split_by_group
from eval.probe import check_features
from sharding.recording import InputError

ALPHAS = tuple(float(alpha) for alpha in np.logspace(6, -2, 17))


@dataclass(frozen=True)
class RidgeResult:
    """What `ridge_probe` returns.

    Attributes:
        predictions: (n,) float64 in the unit of the targets, NaN where no row is reported.
        folds: (n,) fold in which each sample is reported, -1 where it is not.
        alphas: chosen L2 strength of each fold (scikit-learn's alpha).

    """

    predictions: np.ndarray
    folds: np.ndarray
    alphas: tuple[float, ...]

    @property
    def reported(self) -> np.ndarray:
        """(n,) bool, the rows that count."""
        return np.asarray(self.folds != NOT_REPORTED)


@dataclass(frozen=True)
class RegressionScores:
    """Point scores with 95 % intervals by a bootstrap over groups.

    Attributes:
        r2: share of the variance that is explained; 0 is what the mean of the scored targets would have.
        mae: mean absolute error in the unit of the targets.

    """

    r2: float
    mae: float
    r2_interval: Interval
    mae_interval: Interval


def ridge_probe(
    features: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    cfg: ProbeConfig,
    splits: np.ndarray | None = None,
    alphas: Sequence[float] = ALPHAS,
) -> RidgeResult:
    """Predict every reported target by ridge regression on standardised features, the intercept free.

    The strength has the lowest squared error on val, or on a part of the train rows by group with a fit on all of
    them afterwards; the strongest of equals.

    Args:
        features: (n, D), finite.
        targets: (n,) finite.
        groups: (n,) group (patient) of each sample, any sortable type.
        cfg: folds, inner_share and seed count here.
        splits: (n,) "train", "val" or "test"; None: cross-validation by group.
        alphas: positive, descending.

    Raises:
        InputError: shapes that do not fit, values that are not finite, fewer groups than folds, strengths that
            are not positive and descending.

    """
    check_features(features, targets)
    if not np.isfinite(targets).all():
        raise InputError(f"ridge probe: {int((~np.isfinite(targets)).sum())} targets are not finite; all must be")
    if not alphas or sorted(alphas, reverse=True) != list(alphas) or min(alphas) <= 0:
        raise InputError(f"ridge probe: alphas are {tuple(alphas)}; positive descending ones are needed")
    folds = folds_by_group(groups, len(targets), cfg, splits)
    predictions, chosen = np.full(len(targets), np.nan), []
    for part in partitions(folds, splits):
        alpha, predictions[part.reported] = _fit(features.astype(np.float64), targets, groups, part, cfg, alphas)
        chosen.append(alpha)
    return RidgeResult(predictions, folds, tuple(chosen))


def regression_scores(
    targets: np.ndarray, predictions: np.ndarray, groups: np.ndarray, num_resamples: int = 2000, seed: int = 0
) -> RegressionScores:
    """R2 and mean absolute error of predictions (n,) for targets (n,), groups (n,) resampled with replacement.

    Raises:
        InputError: predictions or groups of another length, not finite, fewer than 2 groups.

    """
    if predictions.shape != targets.shape or not np.isfinite(predictions).all():
        raise InputError(
            f"regression scores: predictions {predictions.shape}, targets {targets.shape}; (n,) finite ones are needed"
        )
    group_of_each = indices_of_groups(groups, len(targets))
    centred = targets - targets.mean()  # of large targets the squares would lose digits
    error = targets - predictions
    rows = np.stack([np.ones_like(centred), centred, centred**2, error**2, np.abs(error)])
    sums = np.stack([np.bincount(group_of_each, weights=row) for row in rows], axis=1)
    weights = group_weights(len(sums), num_resamples, seed)
    (r2,), (mae,) = _regression_scores(sums.sum(axis=0, keepdims=True))
    r2_resampled, mae_resampled = _regression_scores(weights @ sums)
    return RegressionScores(float(r2), float(mae), interval_of(r2_resampled), interval_of(mae_resampled))


def _regression_scores(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R2 and mean absolute error (B,) of sums (B, 5); R2 is NaN where the targets do not vary."""
    number, total, squares, squared_error, absolute_error = sums.T
    variation = squares - total**2 / number
    r2 = np.full(len(sums), np.nan)
    np.divide(variation - squared_error, variation, out=r2, where=variation > 1e-12 * squares)
    return r2, absolute_error / number


def _fit(
    features: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    part: Partition,
    cfg: ProbeConfig,
    alphas: Sequence[float],
) -> tuple[float, np.ndarray]:
    """Chosen alpha and predictions of the reported rows."""
    train, (fitted, val) = part.train, split_by_group(part, groups, cfg)
    path = _predictions(features[fitted], targets[fitted], features[val], alphas)
    best = int(np.argmin(((path - targets[val]) ** 2).mean(axis=1)))
    (predicted,) = _predictions(features[train], targets[train], features[part.reported], [alphas[best]])
    return float(alphas[best]), predicted


def _predictions(fitted: np.ndarray, targets: np.ndarray, asked: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """(S, m) predictions of each strength."""
    scaler = StandardScaler().fit(fitted)
    left, values, right = np.linalg.svd(np.asarray(scaler.transform(fitted)), full_matrices=False)
    aligned, rotated = left.T @ (targets - targets.mean()), np.asarray(scaler.transform(asked)) @ right.T
    shrunk = np.array([values / (values**2 + alpha) for alpha in alphas])
    return np.asarray((shrunk * aligned) @ rotated.T + targets.mean())

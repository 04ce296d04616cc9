"""Ridge regression on frozen features: out-of-fold predictions, R2 and mean absolute error with intervals by group.

Folds keep groups (patients) whole and depend on groups and config alone, so every encoder is compared on the same
ones; or splits do it. Dimensions: n samples, D features, G groups, B resamples.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, PredefinedSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from eval.bootstrap import Interval, group_weights, interval_of
from eval.partition import NOT_REPORTED, Partition, check_splits, partitions
from sharding.recording import InputError


@dataclass(frozen=True)
class RidgeConfig:
    """What changes the numbers of a ridge probe.

    Attributes:
        folds: number of outer folds.
        inner_folds: that choose the strength among the train folds.
        strengths: scikit-learn's alpha over the number of fitted samples, so that it means the same at any n.
        seed: of the folds.

    """

    folds: int = 5
    inner_folds: int = 5
    strengths: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.folds, self.inner_folds) <= 1:
            raise InputError(f"ridge probe: {self.folds} folds, {self.inner_folds} inner ones; at least 2 are needed")
        if not self.strengths or min(self.strengths) <= 0:
            raise InputError(f"ridge probe: strengths are {self.strengths}; positive ones are needed")


@dataclass(frozen=True)
class RidgeResult:
    """What `ridge_probe` returns.

    Attributes:
        predictions: (n,) float64 in the order of the input, each by the probe that did not see it; NaN where it is
            not reported.
        folds: (n,) fold in which each sample is reported, -1 where it is not.
        strengths: chosen in each fold.

    """

    predictions: np.ndarray
    folds: np.ndarray
    strengths: tuple[float, ...]

    @property
    def reported(self) -> np.ndarray:
        """(n,) bool, the rows that count."""
        return np.asarray(self.folds != NOT_REPORTED)


@dataclass(frozen=True)
class RegressionScores:
    """Scores over all samples, with 95 % intervals over groups.

    Attributes:
        r2: 1 - sum (y - p)^2 / sum (y - mean y)^2; below 0 where the mean would do better.
        mae: mean absolute error, in the unit of the targets.
        r2_interval, mae_interval: over resampled groups.

    """

    r2: float
    mae: float
    r2_interval: Interval
    mae_interval: Interval


def ridge_probe(
    features: np.ndarray, targets: np.ndarray, groups: np.ndarray, cfg: RidgeConfig, splits: np.ndarray | None = None
) -> RidgeResult:
    """Predict every reported sample by ridge regression fitted on train rows.

    The strength is chosen by mean squared error: on the split val, with regressions fitted on train; where there is
    no val, by folds by group among the train rows. The regression of that strength is then fitted on all train rows.
    Each fit standardises features with the statistics of what it is fitted on.

    Args:
        features: (n, D), finite.
        targets: (n,), finite.
        groups: (n,) group (patient) of each sample, any sortable type.
        cfg: the probe.
        splits: (n,) "train", "val" or "test", of which test is reported; None: cross-validation by group.

    Raises:
        InputError: lengths that differ, values that are not finite, fewer groups than the folds need, splits that
            cannot be used.

    """
    _check(features, targets, groups)
    features, targets = features.astype(np.float64), targets.astype(np.float64)
    folds = _folds(groups, cfg, splits)
    predictions, strengths = np.full(len(targets), np.nan), []
    for part in partitions(folds, splits):
        strength = _choose(features, targets, groups, part, cfg)
        fitted = _ridge(strength * len(part.train)).fit(features[part.train], targets[part.train])
        predictions[part.reported] = fitted.predict(features[part.reported])
        strengths.append(strength)
    return RidgeResult(predictions, folds, tuple(strengths))


def regression_scores(
    targets: np.ndarray, predictions: np.ndarray, groups: np.ndarray, num_resamples: int = 2000, seed: int = 0
) -> RegressionScores:
    """R2 and mean absolute error, with 95 % percentile intervals of a bootstrap over groups.

    Predictions stay as they are. A resample whose targets are all equal has no R2 and is left out of its interval.

    Args:
        targets: (n,), not all equal.
        predictions: (n,).
        groups: (n,) group (patient) of each sample, any sortable type; at least 2.
        num_resamples: B.
        seed: of the resampling; the same draws as for the scores of classes.

    Raises:
        InputError: lengths that differ, values that are not finite, one group, targets that are all equal.

    """
    _check_scored(targets, predictions, groups)
    names, group_of_each = np.unique(groups, return_inverse=True)
    centred, errors = targets - targets.mean(), targets - predictions
    sums = np.stack(
        [
            np.bincount(group_of_each, values, len(names))
            for values in (np.ones(len(targets)), errors**2, np.abs(errors), centred, centred**2)
        ]
    )
    r2, mae = _scores(sums.sum(axis=1, keepdims=True))
    resampled_r2, resampled_mae = _scores(sums @ group_weights(len(names), num_resamples, seed).T)
    return RegressionScores(float(r2[0]), float(mae[0]), interval_of(resampled_r2), interval_of(resampled_mae))


def _scores(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R2 (NaN where targets are all equal) and MAE, (B,) each, of (5, B) sums: n, e^2, |e|, y, y^2."""
    count, squared, absolute, total, total_squared = sums
    variation = total_squared - total**2 / count
    some = variation > 1e-12 * total_squared
    return np.where(some, 1 - squared / np.where(some, variation, 1), np.nan), absolute / count


def _folds(groups: np.ndarray, cfg: RidgeConfig, splits: np.ndarray | None) -> np.ndarray:
    """(n,) fold in which each sample is reported."""
    if splits is not None:
        check_splits(splits, len(groups))
        return np.where(splits == "test", 0, NOT_REPORTED)
    _check_groups(len(np.unique(groups)), cfg.folds)
    folds = np.empty(len(groups), dtype=np.int64)
    for fold, (_, reported) in enumerate(_by_group(cfg.folds, cfg.seed).split(groups, groups=groups)):
        folds[reported] = fold
    return folds


def _choose(features: np.ndarray, targets: np.ndarray, groups: np.ndarray, part: Partition, cfg: RidgeConfig) -> float:
    """Inner fits have fewer samples than the final one and the same alpha, a factor that is negligible."""
    rows, inner = part.train, _by_group(cfg.inner_folds, cfg.seed)
    if part.val is not None:
        rows = np.concatenate([part.train, part.val])
        inner = PredefinedSplit(np.repeat([-1, 0], [len(part.train), len(part.val)]))
    else:
        _check_groups(len(np.unique(groups[rows])), cfg.inner_folds)
    alphas = [strength * len(part.train) for strength in cfg.strengths]
    search = GridSearchCV(
        _ridge(1.0), {"ridge__alpha": alphas}, scoring="neg_mean_squared_error", cv=inner, error_score="raise",
        refit=False,
    )  # fmt: skip
    search.fit(features[rows], targets[rows], groups=None if part.val is not None else groups[rows])
    return cfg.strengths[int(search.best_index_)]


def _ridge(alpha: float) -> Pipeline:
    return make_pipeline(StandardScaler(), Ridge(alpha=alpha))


def _by_group(num_folds: int, seed: int) -> GroupKFold:
    return GroupKFold(num_folds, shuffle=True, random_state=seed)


def _check(features: np.ndarray, targets: np.ndarray, groups: np.ndarray) -> None:
    if features.ndim != 2 or not features.shape[:1] == targets.shape == groups.shape:  # noqa: PLR2004 - (n, D)
        raise InputError(
            f"ridge probe: features have shape {features.shape}, targets {targets.shape}, groups {groups.shape}; "
            "(n, D), (n,) and (n,) are needed"
        )
    for what, values in (("features", features), ("targets", targets)):
        num_bad = int((~np.isfinite(values)).sum())
        if num_bad:
            raise InputError(f"ridge probe: {num_bad} of {values.size} {what} are not finite")


def _check_groups(num_groups: int, num_folds: int) -> None:
    if num_groups < num_folds:
        raise InputError(f"ridge probe: {num_groups} groups for {num_folds} folds; more groups or fewer folds needed")


def _check_scored(targets: np.ndarray, predictions: np.ndarray, groups: np.ndarray) -> None:
    if targets.ndim != 1 or not targets.shape == predictions.shape == groups.shape:
        raise InputError(
            f"regression scores: targets have shape {targets.shape}, predictions {predictions.shape}, groups "
            f"{groups.shape}; (n,) is needed for all"
        )
    if not np.isfinite([targets, predictions]).all():
        raise InputError("regression scores: targets or predictions are not finite")
    for what, values in (("group", groups), ("target", targets)):
        if len(np.unique(values)) <= 1:
            raise InputError(f"regression scores: one {what} only; at least 2 different ones are needed")

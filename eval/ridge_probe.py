"""Ridge regression on frozen features: out-of-fold predictions, R2 and mean absolute error with intervals by group.

Folds keep groups (patients) whole and depend on groups and config alone, so every encoder is compared on the same
ones. Dimensions: n samples, D features, G groups, B resamples.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eval.metrics import Interval, group_weights
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
        predictions: (n,) float64 in the order of the input, each by the probe that did not see it.
        folds: (n,) fold of each sample.
        strengths: chosen in each fold.

    """

    predictions: np.ndarray
    folds: np.ndarray
    strengths: tuple[float, ...]


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


def ridge_probe(features: np.ndarray, targets: np.ndarray, groups: np.ndarray, cfg: RidgeConfig) -> RidgeResult:
    """Predict every sample by ridge regression fitted on the other folds.

    Per fold, folds by group among the train folds choose the strength by mean squared error, and the regression is
    fitted again on all train folds. Each fit standardises features with the statistics of what it is fitted on.

    Args:
        features: (n, D), finite.
        targets: (n,), finite.
        groups: (n,) group (patient) of each sample, any sortable type.
        cfg: the probe.

    Raises:
        InputError: lengths that differ, values that are not finite, fewer groups than the folds need.

    """
    _check(features, targets, groups, cfg)
    features, targets = features.astype(np.float64), targets.astype(np.float64)
    predictions, folds, strengths = np.empty(len(targets)), np.empty(len(targets), dtype=np.int64), []
    for fold, (train, reported) in enumerate(_by_group(cfg.folds, cfg.seed).split(features, groups=groups)):
        search = _search(len(train), cfg).fit(features[train], targets[train], groups=groups[train])
        predictions[reported], folds[reported] = search.predict(features[reported]), fold
        strengths.append(cfg.strengths[search.best_index_])
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
    resampled_r2 = resampled_r2[~np.isnan(resampled_r2)]
    return RegressionScores(float(r2[0]), float(mae[0]), _interval(resampled_r2), _interval(resampled_mae))


def _scores(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R2 (NaN where targets are all equal) and MAE, (B,) each, of (5, B) sums: n, e^2, |e|, y, y^2."""
    count, squared, absolute, total, total_squared = sums
    variation = total_squared - total**2 / count
    some = variation > 1e-12 * total_squared
    return np.where(some, 1 - squared / np.where(some, variation, 1), np.nan), absolute / count


def _search(num_train: int, cfg: RidgeConfig) -> GridSearchCV:
    """Inner fits have (k - 1) / k of the samples; their alpha is that of the final fit, a factor that is negligible."""
    alphas = [strength * num_train for strength in cfg.strengths]
    return GridSearchCV(
        make_pipeline(StandardScaler(), Ridge()),
        {"ridge__alpha": alphas},
        scoring="neg_mean_squared_error",
        cv=_by_group(cfg.inner_folds, cfg.seed),
        error_score="raise",
    )


def _by_group(num_folds: int, seed: int) -> GroupKFold:
    return GroupKFold(num_folds, shuffle=True, random_state=seed)


def _interval(values: np.ndarray) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


def _check(features: np.ndarray, targets: np.ndarray, groups: np.ndarray, cfg: RidgeConfig) -> None:
    if features.ndim != 2 or not features.shape[:1] == targets.shape == groups.shape:  # noqa: PLR2004 - (n, D)
        raise InputError(
            f"ridge probe: features have shape {features.shape}, targets {targets.shape}, groups {groups.shape}; "
            "(n, D), (n,) and (n,) are needed"
        )
    for what, values in (("features", features), ("targets", targets)):
        num_bad = int((~np.isfinite(values)).sum())
        if num_bad:
            raise InputError(f"ridge probe: {num_bad} of {values.size} {what} are not finite")
    # the largest fold leaves at least G - ceil(G / folds) groups
    num_groups = len(np.unique(groups))
    num_inner = num_groups - -(-num_groups // cfg.folds)
    if num_groups < cfg.folds or num_inner < cfg.inner_folds:
        raise InputError(
            f"ridge probe: {num_groups} groups for {cfg.folds} folds, with {cfg.inner_folds} inner ones; "
            "more groups or fewer folds are needed"
        )


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

"""Linear probe of frozen features: out-of-fold probabilities in which no sample helped to predict itself.

Folds keep groups (patients) whole and depend on labels, groups and config alone, so every encoder is compared
on the same ones. The reported fold serves neither the standardisation nor the choice of the strength.
Dimensions: n samples, D features, C classes.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from eval.metrics import BINARY, check_class_indices, scores
from sharding.recording import InputError

NEWTON_PARAMETERS = 1200  # up to here a Hessian is cheap, and collinear features cost L-BFGS 100 times as long


@dataclass(frozen=True)
class ProbeConfig:
    """What changes the numbers of a probe.

    Attributes:
        folds: number of outer folds.
        strengths: scikit-learn's C, the inverse of the L2 strength, ascending.
        inner_share: share of a train fold that chooses among the strengths; rounded to 1 / whole number.
        seed: of the outer and inner splits.
        tolerance: largest gradient entry of the mean loss at which a fit stops.
        max_iterations: of the solver per fit.

    """

    folds: int = 5
    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    inner_share: float = 0.2
    seed: int = 0
    tolerance: float = 1e-5
    max_iterations: int = 2000

    def __post_init__(self) -> None:
        if self.folds <= 1:
            raise InputError(f"probe: folds is {self.folds}; at least 2 are needed")
        if not 0 < self.inner_share <= 0.5:  # noqa: PLR2004 - a half is the largest share of a k-fold split
            raise InputError(f"probe: inner_share is {self.inner_share}; above 0 and at most 0.5 is needed")
        ascending = all(low < high for low, high in zip((0.0, *self.strengths), self.strengths, strict=False))
        if not self.strengths or not ascending:
            raise InputError(f"probe: strengths are {self.strengths}; positive ascending ones are needed")


@dataclass(frozen=True)
class ProbeResult:
    """What `linear_probe` returns.

    Attributes:
        probabilities: (n, C) float64 in the order of the input, each row by the probe that did not see it.
        folds: (n,) fold of each sample.
        strengths: chosen C of each fold.
        constant: whether each fold's probe gives all samples one class, as it does for collapsed features.
        num_unconverged: fits, of all in inner and outer splits, whose gradient stayed above the tolerance.

    """

    probabilities: np.ndarray
    folds: np.ndarray
    strengths: tuple[float, ...]
    constant: bool
    num_unconverged: int


def fold_of_each(labels: np.ndarray, groups: np.ndarray, cfg: ProbeConfig) -> np.ndarray:
    """(n,) fold 0..folds-1 of each sample: groups whole, classes balanced as far as groups allow.

    Args:
        labels: (n,) integers in 0..C-1.
        groups: (n,) group (patient) of each sample, any sortable type.
        cfg: folds and seed count here.

    Raises:
        InputError: lengths that differ, labels that are not integers from 0, fewer than 2 classes, a class
            in fewer groups than folds, a fold without some class.

    """
    _check_labels(labels, groups, cfg)
    splitter = StratifiedGroupKFold(cfg.folds, shuffle=True, random_state=cfg.seed)
    folds = np.empty(len(labels), dtype=np.int64)
    for fold, (_, reported) in enumerate(splitter.split(labels, labels, groups)):
        folds[reported] = fold
    for fold in range(cfg.folds):
        absent = sorted(set(labels.tolist()) - set(labels[folds == fold].tolist()))
        if absent:
            raise InputError(
                f"probe: fold {fold} of {cfg.folds} has no sample of the classes {absent}, because few large "
                "groups hold them; fewer folds or another seed are needed"
            )
    return folds


def linear_probe(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, cfg: ProbeConfig) -> ProbeResult:
    """Predict every sample by L2 logistic regression (multinomial for C > 2) trained on the other folds.

    Per fold, one grouped and stratified split of the train folds chooses C by macro F1 of its smaller part,
    the strongest regularisation of equals, and the probe is fitted again on all train folds. Each fit
    standardises features with the statistics of the samples it is fitted on.

    Args:
        features: (n, D), finite.
        labels: (n,) integers in 0..C-1.
        groups: (n,) group (patient) of each sample, any sortable type.
        cfg: the probe.

    Raises:
        InputError: what `fold_of_each` raises; features of another length or not finite; train folds that
            cannot be split with every class in both parts.

    """
    _check_features(features, labels)
    folds = fold_of_each(labels, groups, cfg)
    probabilities = np.empty((len(labels), int(labels.max()) + 1))
    strengths, num_unconverged = [], 0
    for fold in range(cfg.folds):
        train = folds != fold
        strength, probabilities[~train], unconverged = fit_and_predict(
            features[train], labels[train], groups[train], features[~train], cfg
        )
        strengths.append(strength)
        num_unconverged += unconverged
    predicted = probabilities.argmax(axis=1)
    constant = all(len(np.unique(predicted[folds == fold])) == 1 for fold in range(cfg.folds))
    return ProbeResult(probabilities, folds, tuple(strengths), constant, num_unconverged)


def fit_and_predict(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, reported: np.ndarray, cfg: ProbeConfig
) -> tuple[float, np.ndarray, int]:
    """Choose C and fit on the train folds, predict the reported one, whose labels are not even passed.

    Args:
        features: (n, D) of the train folds.
        labels: (n,) integers in 0..C-1, every class present.
        groups: (n,).
        reported: (m, D) features of the reported fold.
        cfg: the probe.

    Returns:
        the chosen C, (m, C) probabilities, the number of fits that did not converge.

    Raises:
        InputError: no inner split has every class in both parts.

    """
    features = features.astype(np.float64)
    strength, unconverged_inner = cfg.strengths[0], 0
    if len(cfg.strengths) > 1:
        inner = _inner_validation(labels, groups, cfg)
        path, unconverged_inner = _path(features[~inner], labels[~inner], features[inner], cfg.strengths, cfg)
        validation = [scores(labels[inner], probabilities).macro_f1 for probabilities in path]
        strength = cfg.strengths[int(np.argmax(validation))]
    (probabilities,), unconverged = _path(features, labels, reported.astype(np.float64), (strength,), cfg)
    return strength, probabilities, unconverged_inner + unconverged


def majority_probabilities(labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """The floor that needs no encoder: for each sample the class shares of the other folds, (n, C).

    Its accuracy and macro F1 are those of always naming the majority class. Its AUROC over all folds is
    slightly below 0.5: a fold with more of a class leaves less of it to the others; within a fold it is 0.5.

    Args:
        labels: (n,) integers in 0..C-1.
        folds: (n,) as `fold_of_each` gives them.

    """
    one_hot = np.eye(int(labels.max()) + 1)[labels]
    probabilities: np.ndarray = np.empty_like(one_hot)
    for fold in np.unique(folds):
        probabilities[folds == fold] = one_hot[folds != fold].mean(axis=0)
    return probabilities


def _inner_validation(labels: np.ndarray, groups: np.ndarray, cfg: ProbeConfig) -> np.ndarray:
    """(n,) bool, the samples that choose the strength: first split with every class in both parts."""
    fewest = _groups_per_class(labels, groups).min()
    num_splits = min(round(1 / cfg.inner_share), int(fewest))
    num_classes = len(np.unique(labels))
    if num_splits > 1:
        splitter = StratifiedGroupKFold(num_splits, shuffle=True, random_state=cfg.seed)
        for fitted, validation in splitter.split(labels, labels, groups):
            if all(len(np.unique(labels[part])) == num_classes for part in (fitted, validation)):
                chosen = np.zeros(len(labels), dtype=bool)
                chosen[validation] = True
                return chosen
    raise InputError(
        f"probe: the train folds have {len(labels)} samples, and {fewest} groups of the rarest class, but no "
        "split with every class in both parts; more groups of it, or a single strength, are needed"
    )


def _path(
    fitted: np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
    strengths: tuple[float, ...],
    cfg: ProbeConfig,
) -> tuple[list[np.ndarray], int]:
    """Probabilities (m, C) of `predicted` for each ascending strength, and the number of unconverged fits."""
    fitted, predicted = _prepare(fitted, predicted)
    num_classes = len(np.unique(labels))
    num_parameters = fitted.shape[1] * (num_classes if num_classes > BINARY else 1)
    solver = "newton-cholesky" if num_parameters <= NEWTON_PARAMETERS else "lbfgs"
    model = LogisticRegression(solver=solver, tol=cfg.tolerance, max_iter=cfg.max_iterations, warm_start=True)
    path, unconverged = [], 0
    for strength in strengths:
        unconverged += not _converges(model.set_params(C=strength), fitted, labels)
        path.append(model.predict_proba(predicted))
    return path, unconverged


def _prepare(fitted: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardise by `fitted`; with fewer samples than features, rotate into their span.

    The rotation is exact: an L2-penalised solution lies in the span of the fitted samples.
    """
    scaler = StandardScaler().fit(fitted)
    fitted, predicted = np.asarray(scaler.transform(fitted)), np.asarray(scaler.transform(predicted))
    if len(fitted) >= fitted.shape[1]:
        return fitted, predicted
    directions = np.linalg.svd(fitted, full_matrices=False)[2]
    return fitted @ directions.T, predicted @ directions.T


def _converges(model: LogisticRegression, fitted: np.ndarray, labels: np.ndarray) -> bool:
    """Fit in place; whether no entry of the gradient of the mean loss is above the tolerance."""
    with warnings.catch_warnings():
        # The gradient says it better: Newton warns of a start at the optimum, where no step can gain.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)  # a step too long, or LinAlgWarning before L-BFGS
        model.fit(fitted, labels)
    residual = model.predict_proba(fitted) - np.eye(len(model.classes_))[labels]
    residual = residual[:, -len(model.coef_) :]  # two classes share one row of coefficients
    slopes = (residual.T @ fitted + model.coef_ / model.C) / len(fitted)
    largest = max(np.abs(slopes).max(), np.abs(residual.mean(axis=0)).max())
    return bool(largest <= model.tol)


def _groups_per_class(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(C,) number of groups that hold the class."""
    return np.array([len(np.unique(groups[labels == c])) for c in range(int(labels.max()) + 1)])


def _check_labels(labels: np.ndarray, groups: np.ndarray, cfg: ProbeConfig) -> None:
    if labels.ndim != 1 or groups.shape != labels.shape:
        raise InputError(f"probe: labels have shape {labels.shape}, groups {groups.shape}; both (n,) is needed")
    check_class_indices(labels, "probe")
    num_classes = len(np.unique(labels))
    if num_classes <= 1:
        raise InputError(f"probe: {len(labels)} labels of {num_classes} class; at least 2 classes are needed")
    few = {c: int(n) for c, n in enumerate(_groups_per_class(labels, groups)) if n < cfg.folds}
    if few:
        raise InputError(
            f"probe: number of groups per class {few}; at least {cfg.folds} are needed for {cfg.folds} folds"
        )


def _check_features(features: np.ndarray, labels: np.ndarray) -> None:
    if features.ndim <= 1 or features.shape[:-1] != labels.shape:
        raise InputError(
            f"probe: features have shape {features.shape}, labels {labels.shape}; (n, D) and (n,) are needed"
        )
    if not np.isfinite(features).all():
        num_nan, num_infinite = int(np.isnan(features).sum()), int(np.isinf(features).sum())
        num_rows = int((~np.isfinite(features)).any(axis=1).sum())
        raise InputError(
            f"probe: the features hold {num_nan} NaN and {num_infinite} infinite values in {num_rows} of "
            f"{len(features)} rows; only finite ones can be probed"
        )

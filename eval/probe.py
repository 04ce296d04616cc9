"""Linear probe of frozen features: out-of-fold probabilities in which no sample helped to predict itself.

Folds keep groups (patients) whole and depend on labels, groups and config alone, so every encoder is compared
on the same ones. The reported rows serve neither the standardisation nor the choice of the strength.
Dimensions: n samples, D features, C classes.
"""

from dataclasses import dataclass

import numpy as np

from eval.logistic import Logistic, logistic_path
from eval.partition import NOT_REPORTED, Partition, ProbeConfig, fold_of_each, folds_of, inner_validation, partitions
from eval.weighted import macro_f1
from sharding.recording import InputError

__all__ = ["ProbeConfig", "ProbeResult", "fold_of_each", "linear_probe", "majority_probabilities"]


@dataclass(frozen=True)
class ProbeResult:
    """What every classifying probe returns.

    Attributes:
        probabilities: (n, C) float64 in the order of the input, each row by a probe that did not see it; NaN
            in rows that are not reported. Means over the seeds, where a probe has several.
        folds: (n,) fold in which each sample is reported, -1 where it is not.
        strengths: chosen setting of each fold (and seed): C of the fair probe, the number of epochs or of
            neighbours of the others.
        constant: whether each fold's probe gives all samples one class, as it does for collapsed features.
        num_unconverged: fits, of all in inner and outer splits, whose gradient stayed above the tolerance.
        by_seed: (seeds, n, C) probabilities of each seed, where a probe has several.
        num_fixed: fits whose setting was fixed beforehand, because too few groups were there to choose it.

    """

    probabilities: np.ndarray
    folds: np.ndarray
    strengths: tuple[float, ...]
    constant: bool
    num_unconverged: int
    by_seed: np.ndarray | None = None
    num_fixed: int = 0

    @property
    def reported(self) -> np.ndarray:
        """(n,) bool, the rows that count."""
        return np.asarray(self.folds != NOT_REPORTED)

    def macro_f1_of_seeds(self, labels: np.ndarray) -> tuple[float, float]:
        """Mean and standard deviation (of a sample) of macro F1 over the seeds, as the paper's Table 2 prints them.

        Raises:
            InputError: the probe has no seeds.

        """
        if self.by_seed is None or len(self.by_seed) <= 1:
            raise InputError("probe: this result is of one seed; a deviation needs several")
        rows = self.reported
        values = [macro_f1(labels[rows], probabilities[rows]) for probabilities in self.by_seed]
        return float(np.mean(values)), float(np.std(values, ddof=1))


def linear_probe(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, cfg: ProbeConfig, splits: np.ndarray | None = None
) -> ProbeResult:
    """Predict every reported sample by L2 logistic regression (multinomial for C > 2): the `fair` protocol.

    C is chosen by macro F1, the strongest regularisation of equals: on the split val with the probes fitted on
    train; where there is no val, on a grouped and stratified part of the train rows, and the probe is then
    fitted again on all of them. Each fit standardises features with the statistics of its own samples.

    Args:
        features: (n, D), finite.
        labels: (n,) integers in 0..C-1.
        groups: (n,) group (patient) of each sample, any sortable type.
        cfg: the probe.
        splits: (n,) "train", "val" or "test", of which test is reported; None: cross-validation by group.

    Raises:
        InputError: what `folds_of` raises; features of another length or not finite; train rows that
            cannot be split with every class in both parts.

    """
    check_features(features, labels)
    folds = folds_of(labels, groups, cfg, splits)
    probabilities = np.full((len(labels), int(labels.max()) + 1), np.nan)
    strengths, num_unconverged = [], 0
    for part in partitions(folds, splits):
        found = predict_part(features, labels, groups, part, features[part.reported], cfg)
        strengths.append(found[0])
        probabilities[part.reported] = found[1]
        num_unconverged += found[2]
    return ProbeResult(probabilities, folds, tuple(strengths), is_constant(probabilities, folds), num_unconverged)


def predict_part(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, part: Partition, asked: np.ndarray, cfg: ProbeConfig
) -> tuple[float, np.ndarray, int]:
    """The fair probe of one partition on any features (m, D); see `fit_and_predict` for what it returns."""
    fitted = features[part.train], labels[part.train]
    if part.val is None:
        return fit_and_predict(*fitted, groups[part.train], asked, cfg)
    return choose_and_predict(*fitted, features[part.val], labels[part.val], asked, cfg)


def fit_and_predict(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, reported: np.ndarray, cfg: ProbeConfig
) -> tuple[float, np.ndarray, int]:
    """Choose C on a part of the train rows, fit on all of them, predict reported ones, whose labels are not passed.

    Args:
        features: (n, D) of the train rows.
        labels: (n,) integers in 0..C-1, every class present.
        groups: (n,).
        reported: (m, D) features of the reported rows.
        cfg: the probe.

    Returns:
        the chosen C, (m, C) probabilities, the number of fits that did not converge.

    Raises:
        InputError: no inner split has every class in both parts.

    """
    strength, unconverged = cfg.strengths[0], 0
    if len(cfg.strengths) > 1:
        inner = inner_validation(labels, groups, cfg)
        path = _path(features[~inner], labels[~inner], cfg.strengths, cfg)
        strength = cfg.strengths[_best(path, features[inner], labels[inner])]
        unconverged = sum(not probe.converged for probe in path)
    # By way of the stronger ones: that is faster than a cold start.
    final = _path(features, labels, tuple(c for c in cfg.strengths if c <= strength), cfg)[-1]
    return strength, final.predict(reported), unconverged + (not final.converged)


def choose_and_predict(
    features: np.ndarray,
    labels: np.ndarray,
    val_features: np.ndarray,
    val_labels: np.ndarray,
    reported: np.ndarray,
    cfg: ProbeConfig,
) -> tuple[float, np.ndarray, int]:
    """As `fit_and_predict`, with C chosen on validation rows that no probe is fitted on."""
    path = _path(features, labels, cfg.strengths, cfg)
    best = _best(path, val_features, val_labels)
    return cfg.strengths[best], path[best].predict(reported), sum(not probe.converged for probe in path)


def majority_probabilities(labels: np.ndarray, folds: np.ndarray, splits: np.ndarray | None = None) -> np.ndarray:
    """The floor that needs no encoder: for each reported sample the class shares of its train rows, (n, C).

    Its accuracy and macro F1 are those of always naming the majority class. Its AUROC over all folds is
    slightly below 0.5: a fold with more of a class leaves less of it to the others; within a fold it is 0.5.

    Args:
        labels: (n,) integers in 0..C-1.
        folds: (n,) as a ProbeResult has them.
        splits: (n,) where the set has them; rows outside test become NaN.

    """
    one_hot = np.eye(int(labels.max()) + 1)[labels]
    probabilities: np.ndarray = np.full_like(one_hot, np.nan)
    for part in partitions(folds, splits):
        probabilities[part.reported] = one_hot[part.train].mean(axis=0)
    return probabilities


def is_constant(probabilities: np.ndarray, folds: np.ndarray) -> bool:
    """Whether in every reported fold all samples get one class."""
    predicted = probabilities.argmax(axis=1)
    return all(len(np.unique(predicted[folds == fold])) == 1 for fold in np.unique(folds[folds != NOT_REPORTED]))


def check_features(features: np.ndarray, labels: np.ndarray) -> None:
    """Raise InputError unless features are (n, ...) for labels (n,) and finite."""
    if features.ndim <= 1 or features.shape[:1] != labels.shape:
        raise InputError(
            f"probe: features have shape {features.shape}, labels {labels.shape}; (n, D) and (n,) are needed"
        )
    finite = np.isfinite(features)
    if not finite.all():
        num_nan = int(np.isnan(features).sum())
        num_rows = int((~finite).reshape(len(features), -1).any(axis=1).sum())
        raise InputError(
            f"probe: the features hold {num_nan} NaN and {int((~finite).sum()) - num_nan} infinite values in "
            f"{num_rows} of {len(features)} rows; only finite ones can be probed"
        )


def _path(features: np.ndarray, labels: np.ndarray, strengths: tuple[float, ...], cfg: ProbeConfig) -> list[Logistic]:
    return logistic_path(features, labels, strengths, cfg.tolerance, cfg.max_iterations, cfg.balanced)


def _best(path: list[Logistic], features: np.ndarray, labels: np.ndarray) -> int:
    """The first of those with the highest macro F1."""
    return int(np.argmax([macro_f1(labels, probe.predict(features)) for probe in path]))

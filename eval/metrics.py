"""Scores of a probe, and what corrects their p-values over several sets.

A point score and that of a resample (eval/bootstrap.py) come from the same formulas (eval/weighted.py).
Dimensions: n samples, C classes, G groups, B weightings of the groups.
"""

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from eval.weighted import (
    accuracy_of,
    balanced_accuracy_of,
    calibration_error_of,
    calibration_gaps,
    check_class_indices,
    confusion_of_groups,
    macro_f1_of,
    mean_area,
    weighted_auroc,
    weighted_average_precision,
    weighted_confusion,
)
from sharding.recording import InputError

Metric = Literal["macro_f1", "auroc"]  # what the tables compare in pairs
ScoreName = Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc", "average_precision", "calibration_error"]


@dataclass(frozen=True)
class Scores:
    """Point scores in 0..1, of which only the calibration error is better low; see `scores`."""

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    auroc: float
    average_precision: float
    calibration_error: float


@dataclass(frozen=True)
class Resampled:
    """Scores of one encoder in every resample, (B,) each.

    NaN where a class has no sample: balanced accuracy, auroc, average precision.
    """

    accuracy: np.ndarray
    balanced_accuracy: np.ndarray
    macro_f1: np.ndarray
    auroc: np.ndarray
    average_precision: np.ndarray
    calibration_error: np.ndarray


def scores(labels: np.ndarray, probabilities: np.ndarray) -> Scores:
    """Score probabilities against labels; the predicted class is the most probable, the first of equals.

    Balanced accuracy is the mean recall of the C classes. Macro F1 is the mean over all C classes of
    2 TP / (2 TP + FP + FN). AUROC and average precision are those of class 1 for two classes, else the mean of
    one versus rest. The calibration error is the expected one of the predicted class, in 15 equally wide bins.

    Args:
        labels: (n,) integers in 0..C-1, every class present.
        probabilities: (n, C), finite.

    Raises:
        InputError: shapes that do not fit, probabilities that are not finite, labels that are not integers
            or not exactly the classes 0..C-1.

    """
    check_scored(labels, probabilities, "scores")
    everyone, weights = np.zeros(len(labels), dtype=np.int64), np.ones((1, 1))
    found = resampled_scores(labels, probabilities, everyone, weights)
    return Scores(**{field.name: float(getattr(found, field.name)[0]) for field in fields(Scores)})


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values of one family (n,), corrected by Holm's step-down procedure (Holm 1979), in their order."""
    order = np.argsort(p_values)
    steps = p_values[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected


def resampled_scores(
    labels: np.ndarray, probabilities: np.ndarray, group_of_each: np.ndarray, weights: np.ndarray
) -> Resampled:
    """Every score under each weighting of the groups.

    Args:
        labels: (n,) integers in 0..C-1.
        probabilities: (n, C), finite.
        group_of_each: (n,) number of each sample's group.
        weights: (B, G) how often each group counts.

    """
    num_groups = weights.shape[1]
    confusion = weighted_confusion(confusion_of_groups(labels, probabilities, group_of_each, num_groups), weights)
    return Resampled(
        accuracy=accuracy_of(confusion),
        balanced_accuracy=balanced_accuracy_of(confusion),
        macro_f1=macro_f1_of(confusion),
        auroc=mean_area(weighted_auroc, labels, probabilities, group_of_each, weights),
        average_precision=mean_area(weighted_average_precision, labels, probabilities, group_of_each, weights),
        calibration_error=resampled_score("calibration_error", labels, probabilities, group_of_each, weights),
    )


def resampled_score(
    metric: ScoreName, labels: np.ndarray, probabilities: np.ndarray, group_of_each: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """One score (B,) under each weighting of the groups; see `resampled_scores`."""
    if metric in ("auroc", "average_precision"):
        area = weighted_auroc if metric == "auroc" else weighted_average_precision
        return mean_area(area, labels, probabilities, group_of_each, weights)
    num_groups = weights.shape[1]
    if metric == "calibration_error":
        return calibration_error_of(*calibration_gaps(labels, probabilities, group_of_each, num_groups), weights)
    counts = confusion_of_groups(labels, probabilities, group_of_each, num_groups)
    formula = {"accuracy": accuracy_of, "balanced_accuracy": balanced_accuracy_of, "macro_f1": macro_f1_of}[metric]
    return formula(weighted_confusion(counts, weights))


def check_scored(labels: np.ndarray, probabilities: np.ndarray, where: str) -> None:
    """Raise InputError unless probabilities (n, C) are finite and labels (n,) hold each of 0..C-1 and nothing else."""
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

"""One probe of one encoder on one set, as JSON: what the cells of a comparison hold.

Published splits are kept where the set has them (fitted on train, chosen on val, reported on test), else the set is
cross-validated by group. Dimensions: n samples, m samples that are reported, N patches, D features, C classes.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from eval.attentive_probe import ATTENTIVE, attentive_probe
from eval.bootstrap import Interval, group_weights, indices_of_groups, interval_of
from eval.cells import Json
from eval.datasets import LabelledSet
from eval.features import patches_inside
from eval.few_shot import few_shot
from eval.knn_probe import knn_probe
from eval.metrics import resampled_score, scores
from eval.paper_probe import paper_probe
from eval.partition import folds_of, partitions
from eval.probe import ProbeConfig, ProbeResult, linear_probe, majority_probabilities, predict_part
from eval.ridge_probe import RidgeConfig, regression_scores, ridge_probe
from eval.segmentation_probe import SegmentationConfig, segmentation_probe, segmentation_scores
from eval.weighted import macro_f1

Protocol = Literal["fair", "paper", "knn", "attentive"]
_HEADS = 4
_RESAMPLES = 2000

Features = Callable[[], np.ndarray]  # (n, D) float32, or tokens (n, N, D); made when they are asked for


def probe_cell(protocol: Protocol, data: LabelledSet, cfg: ProbeConfig, features: Features, tokens: Features) -> Json:
    """Probabilities of the reported samples, and what the probe chose.

    Raises:
        InputError: what the probe raises, such as a class that train or test lacks.

    """
    known = data.labels, data.groups, cfg, data.splits
    if protocol == "fair":
        return _cell(linear_probe(features(), *known), data)
    if protocol == "paper":
        return _cell(paper_probe(features(), *known), data)
    if protocol == "knn":
        return _cell(knn_probe(features(), *known), data)
    values = tokens()
    valid = patches_inside(data.squares, math.isqrt(values.shape[1]))
    num_heads = math.gcd(_HEADS, values.shape[2])
    return _cell(attentive_probe(values, *known, valid=valid, descent=ATTENTIVE, num_heads=num_heads), data)


def majority_cell_of(data: LabelledSet, cfg: ProbeConfig) -> Json:
    """The floor that needs no encoder, on the samples that a probe reports."""
    folds = folds_of(data.labels, data.groups, cfg, data.splits)
    probabilities = majority_probabilities(data.labels, folds, data.splits)
    return _cell(ProbeResult(probabilities, folds, (), constant=True, num_unconverged=0), data)


def _cell(result: ProbeResult, data: LabelledSet) -> Json:
    rows = result.reported
    some: dict[str, Any] = {}
    if result.by_seed is not None and len(result.by_seed) > 1:
        mean, deviation = result.macro_f1_of_seeds(data.labels)
        some["seeds"] = {"number": len(result.by_seed), "macro_f1": mean, "deviation": deviation}
    return some | {
        "probabilities": result.probabilities[rows].tolist(),
        "reported": None if rows.all() else np.flatnonzero(rows).tolist(),
        "strengths": list(result.strengths),
        "constant": result.constant,
        "num_unconverged": result.num_unconverged,
    }


def few_shot_cell(data: LabelledSet, cfg: ProbeConfig, features: np.ndarray) -> Json:
    """Macro F1 of the fair probe by share of the train groups in per cent: mean over the draws of these.

    The interval is that of this mean over resampled groups: it covers the chance in which groups were scored.
    `deviation` is that of the draws, each scored on all groups. `num_fixed` fits had too few groups to choose a
    strength.
    """
    found = few_shot(features, data.labels, data.groups, cfg, data.splits)
    return {f"{100 * share:g}": _few_shot_score(result, data) for share, result in found.items()}


def _few_shot_score(result: ProbeResult, data: LabelledSet) -> Json:
    assert result.by_seed is not None
    rows = result.reported
    labels, group_of_each = data.labels[rows], indices_of_groups(data.groups[rows], int(rows.sum()))
    weights = group_weights(int(group_of_each.max()) + 1, _RESAMPLES, seed=0)
    draws = [values[rows] for values in result.by_seed]
    observed = [macro_f1(labels, values) for values in draws]
    resampled = [resampled_score("macro_f1", labels, values, group_of_each, weights) for values in draws]
    spread = {"deviation": float(np.std(observed, ddof=1)), "num_fixed": result.num_fixed}
    return _score(float(np.mean(observed)), interval_of(np.mean(resampled, axis=0))) | spread


def degraded_macro_f1(data: LabelledSet, cfg: ProbeConfig, clean: np.ndarray, degraded: np.ndarray) -> list[float]:
    """Macro F1 of fair probes of clean features (n, D) on degraded ones (severities, n, D), per severity."""
    folds = folds_of(data.labels, data.groups, cfg, data.splits)
    probabilities = np.full((len(degraded), len(data.labels), len(data.classes)), np.nan)
    for part in partitions(folds, data.splits):
        asked = np.concatenate([one[part.reported] for one in degraded])
        found = predict_part(clean, data.labels, data.groups, part, asked, cfg)[1]
        probabilities[:, part.reported] = found.reshape(len(degraded), len(part.reported), -1)
    there = ~np.isnan(probabilities[0, :, 0])
    return [scores(data.labels[there], one[there]).macro_f1 for one in probabilities]


def segmentation_cell(data: LabelledSet, num_folds: int, tokens: np.ndarray) -> Json:
    """Dice of a linear head on patch tokens, the mean of all classes but the background, and each class's.

    Raises:
        InputError: train or test masks that lack a class, or too few groups.

    """
    assert data.masks is not None
    ids = np.unique(data.masks)
    masks = np.searchsorted(ids, data.masks).astype(np.uint8)  # ids without gaps, 0 is the background
    result = segmentation_probe(tokens, masks, data.groups, SegmentationConfig(num_folds), data.splits)
    rows = result.reported
    found = segmentation_scores(masks[rows], result.predictions[rows], data.groups[rows])
    of_class = zip(ids[1:].tolist(), found.dice[1:].tolist(), found.dice_intervals[1:], strict=True)
    return {
        "dice": _score(found.foreground, found.foreground_interval),
        "classes": {str(name): _score(dice, interval) for name, dice, interval in of_class},
    }


def regression_cell(data: LabelledSet, num_folds: int, features: np.ndarray) -> Json:
    """R2 and mean absolute error of ridge regression of the set's values.

    Raises:
        InputError: too few groups, or values that are all equal.

    """
    assert data.values is not None
    result = ridge_probe(features, data.values, data.groups, RidgeConfig(num_folds), data.splits)
    rows = result.reported
    found = regression_scores(data.values[rows], result.predictions[rows], data.groups[rows])
    return {"r2": _score(found.r2, found.r2_interval), "mae": _score(found.mae, found.mae_interval)}


def _score(value: float, interval: Interval) -> Json:
    return {"value": value, "low": interval.low, "high": interval.high}

"""Nearest neighbours by cosine: a probe that fits nothing.

Votes are weighted by exp(similarity / 0.07) as in Wu et al. 2018 (arXiv 1805.01978, section 3.4); the number of
neighbours is chosen inside the train rows. Dimensions: n samples, D features, C classes.
"""

from collections.abc import Sequence

import numpy as np

from eval.partition import ProbeConfig, divided, folds_of, partitions
from eval.probe import ProbeResult, check_features, is_constant
from eval.weighted import macro_f1

NEIGHBOURS = (1, 5, 10, 20, 50)
_TEMPERATURE = 0.07
_CHUNK = 1024  # rows whose similarities are held at once


def knn_probe(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    cfg: ProbeConfig,
    splits: np.ndarray | None = None,
    neighbours: Sequence[int] = NEIGHBOURS,
) -> ProbeResult:
    """Predict every reported sample by the votes of its nearest train rows.

    The number of neighbours has the highest macro F1 on val, or on a part of the train rows by group; the smallest
    of equals. The train rows vote for the reported ones, val never does.

    Args:
        features: (n, D), finite; only their direction counts, a zero vector is similar to nothing.
        labels: (n,) integers in 0..C-1.
        groups: (n,) group (patient) of each sample.
        cfg: folds, inner_share and seed count here.
        splits: (n,) "train", "val" or "test"; None: cross-validation by group.
        neighbours: numbers to choose from, ascending; one above the number of voters takes all.

    Returns:
        the chosen numbers as `strengths`.

    Raises:
        InputError: what `linear_probe` raises.

    """
    check_features(features, labels)
    folds = folds_of(labels, groups, cfg, splits)
    directions = features / np.maximum(np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True), 1e-30)
    one_hot = np.eye(int(labels.max()) + 1)[labels]
    probabilities, chosen = np.full_like(one_hot, np.nan), []
    for part in partitions(folds, splits):
        fitted, val = divided(part, labels, groups, cfg)
        votes = _votes(directions[fitted], one_hot[fitted], directions[val], neighbours)
        best = neighbours[int(np.argmax([macro_f1(labels[val], shares) for shares in votes]))]
        train = part.train
        (probabilities[part.reported],) = _votes(directions[train], one_hot[train], directions[part.reported], [best])
        chosen.append(float(best))
    return ProbeResult(probabilities, folds, tuple(chosen), is_constant(probabilities, folds), 0)


def _votes(voters: np.ndarray, one_hot: np.ndarray, asking: np.ndarray, neighbours: Sequence[int]) -> np.ndarray:
    """(numbers of neighbours, m, C) shares of the votes."""
    most = min(max(neighbours), len(voters))
    shares = np.empty((len(neighbours), len(asking), one_hot.shape[1]))
    for start in range(0, len(asking), _CHUNK):
        similarity = asking[start : start + _CHUNK] @ voters.T
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :most]
        weight = np.exp((np.take_along_axis(similarity, nearest, axis=1) - 1) / _TEMPERATURE)
        votes = np.cumsum(weight[..., None] * one_hot[nearest], axis=1)
        for place, number in enumerate(neighbours):
            counted = votes[:, min(number, most) - 1]
            shares[place, start : start + _CHUNK] = counted / counted.sum(axis=1, keepdims=True)
    return shares

"""Measures of features that use no label: in how many directions they vary, how fast that decays, how far they spread.

Dimensions: n samples, D features, k directions, at most min(n - 1, D).
"""

import numpy as np
import torch

from sharding.recording import InputError
from train.health import effective_rank

_LIDAR_RIDGE = 1e-4  # of the mean variance of a feature
_FLOOR = 1e-12  # of the largest eigenvalue: below is rounding
_ROUNDING = 1e-20  # of the mean square: the square of what float64 leaves of equal numbers, and more
_TEMPERATURE = 2.0  # t of uniformity, as published
_MOST_ROWS = 4096  # whose pairs uniformity counts: 8 million of them


def label_free(features: np.ndarray, clips: np.ndarray | None = None) -> dict[str, float]:
    """All measures of this module by name; `lidar` only with clips of which two have two samples.

    Args:
        features: (n, D), finite, n of at least 2.
        clips: (n,) clip or group of each sample, any sortable type: what LiDAR takes for classes.

    Raises:
        InputError: features of another shape or not finite, clips of another length.

    """
    features = _checked(features)
    found = {
        "rankme": rankme(features),
        "alpha_req": alpha_req(features),
        "uniformity": uniformity(features),
        "dispersion": dispersion(features),
    }
    if clips is None:
        return found
    if clips.shape != features.shape[:1]:
        raise InputError(f"label-free measures: clips have shape {clips.shape}; ({len(features)},) is needed")
    return found | ({"lidar": lidar(features, clips)} if len(_repeated(clips)) > 1 else {})


def rankme(features: np.ndarray) -> float:
    """exp(-sum p_i log p_i) with p_i = s_i / sum s, s the singular values of the centred features; 1 to k.

    Garrido et al. 2023, arXiv 2210.02885, who do not centre: there a large constant would hide all else, and
    `dispersion` says how large it is. It is the number that pretraining logs.
    """
    return effective_rank(torch.from_numpy(_checked(features)))


def lidar(features: np.ndarray, clips: np.ndarray) -> float:
    """exp(-sum p_i log p_i) with p_i = l_i / sum l, l the eigenvalues of W^-1 B; 1 to the number of clips less 1.

    B is the covariance of the clips' means, W the mean of the clips' covariances plus a ridge; all clips weigh the
    same. Thilak et al. 2024, arXiv 2312.04000, where a class is a picture and its samples are augmentations of it;
    here it is a clip and its frames. Their ridge is 1e-4, ours that times the mean variance of a feature, so that
    the scale of the features does not matter. Clips of one sample are left out; 1 where nothing varies.

    Raises:
        InputError: fewer than two clips have two samples.

    """
    features, names = _checked(features), _repeated(clips)
    if len(names) <= 1:
        raise InputError(f"LiDAR: {len(names)} clips have two samples or more; at least 2 such clips are needed")
    if _constant(features):
        return 1.0
    parts = [features[clips == name] for name in names]
    means = np.stack([part.mean(axis=0) for part in parts])
    between = np.cov(means.T, bias=True).reshape(features.shape[1], -1)
    deviations = np.concatenate([(part - part.mean(axis=0)) / np.sqrt(len(part) * len(parts)) for part in parts])
    within = deviations.T @ deviations
    variance = float(np.trace(between + within)) / len(within)
    root = np.linalg.cholesky(within + _LIDAR_RIDGE * variance * np.eye(len(within)))
    half = np.linalg.solve(root, between)
    values = np.linalg.eigvalsh(np.linalg.solve(root, half.T))
    shares = values[values > 0] / values[values > 0].sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def alpha_req(features: np.ndarray) -> float:
    """Exponent a of the decay l_j ~ j^-a of the covariance's eigenvalues, l_1 the largest.

    A line through log l_j over log j by least squares, j from 1 to k, each weighted by 1 / j so that every octave
    counts the same. Agrawal et al. 2022 (NeurIPS, "alpha-ReQ"); they and Stringer et al. 2019 (Nature 571) find good
    representations near 1: a lower value is dense noise, a higher one few directions. Eigenvalues below 1e-12 of the
    first count as that; 0 where nothing varies or k is 1.
    """
    features = _checked(features)
    values = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)[: len(features) - 1] ** 2
    if len(values) <= 1 or _constant(features):
        return 0.0
    ranks = np.arange(1, len(values) + 1)
    slope, _ = np.polyfit(np.log(ranks), np.log(values.clip(min=_FLOOR * values[0])), 1, w=1 / np.sqrt(ranks))
    return -float(slope)


def uniformity(features: np.ndarray, seed: int = 0) -> float:
    """log of the mean of exp(-2 |x - y|^2) over pairs of samples, scaled to length 1: 0 if all are one, -8 at best.

    Wang and Isola 2020, arXiv 2005.10242, t = 2; lower is more uniform. Of more than 4096 samples, that many are drawn.
    """
    directions = _directions(_checked(features))
    if len(directions) > _MOST_ROWS:
        directions = directions[np.random.default_rng(seed).permutation(len(directions))[:_MOST_ROWS]]
    pairs = np.triu_indices(len(directions), 1)
    squared = (2 - 2 * (directions @ directions.T)[pairs]).clip(min=0)
    return float(np.log(np.exp(-_TEMPERATURE * squared).mean()))


def dispersion(features: np.ndarray) -> float:
    """Mean squared angle to the mean direction in rad^2: near 0 where features are a constant plus a small signal.

    The angular dispersion by which Ranzinger et al. 2026 (arXiv 2601.17237) scale the losses of several teachers.
    A feature of length 0, or a mean of length 0, is at a right angle to all.
    """
    directions = _directions(_checked(features))
    towards = _directions(directions.mean(axis=0, keepdims=True))[0]
    across = np.linalg.norm(directions - np.outer(directions @ towards, towards), axis=1)
    return float((np.arctan2(across, directions @ towards) ** 2).mean())


def _constant(features: np.ndarray) -> bool:
    """Whether the features vary by no more than rounding."""
    return bool(features.var(axis=0).sum() <= _ROUNDING * (features**2).mean(axis=0).sum())


def _directions(features: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.where(lengths > 0, lengths, 1))


def _repeated(clips: np.ndarray) -> np.ndarray:
    """Clips with at least two samples."""
    names, counts = np.unique(clips, return_counts=True)
    return np.asarray(names[counts > 1])


def _checked(features: np.ndarray) -> np.ndarray:
    """(n, D) float64."""
    if features.ndim != 2 or len(features) <= 1:  # noqa: PLR2004 - (n, D)
        raise InputError(f"label-free measures: features have shape {features.shape}; (n, D), n above 1, is needed")
    num_bad = int((~np.isfinite(features)).sum())
    if num_bad:
        raise InputError(f"label-free measures: {num_bad} of {features.size} features are not finite")
    return features.astype(np.float64)

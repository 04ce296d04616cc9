"""The fair probe with few labels: shares of the train groups, everything else as with all of them.

Dimensions: n samples, D features, C classes.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from eval.partition import Partition, ProbeConfig, folds_of, inner_validation, partitions
from eval.probe import ProbeResult, check_features, is_constant, predict_part
from sharding.recording import InputError

SHARES = (0.01, 0.05, 0.1, 0.5, 1.0)  # of the US-JEPA paper, section 5.3
SEEDS = (0, 1, 2, 3, 4)
FIXED_STRENGTH = 1.0  # scikit-learn's default, where a class has too few groups to choose with


def few_shot(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    cfg: ProbeConfig,
    splits: np.ndarray | None = None,
    *,
    shares: Sequence[float] = SHARES,
    seeds: Sequence[int] = SEEDS,
) -> dict[float, ProbeResult]:
    """Probe with a share of the train groups of every class, drawn anew for each seed; the reported rows stay.

    C is chosen as in `linear_probe`: on val, which stays whole, or on a part of the drawn groups. Where these
    have no split with every class in both parts (one patient of a class is enough), C is `FIXED_STRENGTH`, and
    the result counts such fits in `num_fixed`.

    Args:
        features: (n, D), finite.
        labels: (n,) integers in 0..C-1.
        groups: (n,) group (patient) of each sample; drawn whole.
        cfg: the probe.
        splits: (n,) "train", "val" or "test"; None: cross-validation by group.
        shares: of the train groups, in (0, 1].
        seeds: of the draws. The draws of one seed are nested.

    Returns:
        the result of each share, with the probabilities of each seed and their mean.

    Raises:
        InputError: what `linear_probe` raises; a share outside (0, 1], no seeds.

    """
    check_features(features, labels)
    if not seeds or not all(0 < share <= 1 for share in shares):
        raise InputError(f"few shot: shares {tuple(shares)}, seeds {tuple(seeds)}; shares in (0, 1] and seeds needed")
    folds = folds_of(labels, groups, cfg, splits)
    parts = list(partitions(folds, splits))
    return {share: _of_share(features, labels, groups, cfg, (folds, parts), share, seeds) for share in shares}


def drawn_rows(labels: np.ndarray, groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(n,) bool, the samples of a share of the groups, stratified by class.

    A group counts for the rarest class it holds. Of each class the share of its groups is drawn, rounded up; and
    the first groups that it takes to have every class are always in. A larger share with the same seed holds
    the smaller one.

    Args:
        labels: (n,) integers in 0..C-1.
        groups: (n,) group (patient) of each sample, any sortable type.
        share: in (0, 1].
        seed: of the draw.

    """
    names, group_of_each = np.unique(groups, return_inverse=True)
    held = np.zeros((len(names), int(labels.max()) + 1), dtype=bool)
    held[group_of_each, labels] = True
    rarest_first = np.argsort(held.sum(axis=0), kind="stable")
    stratum = rarest_first[held[:, rarest_first].argmax(axis=1)]
    order, drawn = np.random.default_rng(seed).permutation(len(names)), np.zeros(len(names), dtype=bool)
    for label in rarest_first:
        of_class = order[stratum[order] == label]
        drawn[of_class[: int(np.ceil(share * len(of_class) - 1e-9))]] = True  # 0.1 of 30 is 3, not 4
    for label in rarest_first:
        drawn[order[held[order, label]][:1]] = True
    return np.asarray(drawn[group_of_each])


def _of_share(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    cfg: ProbeConfig,
    outer: tuple[np.ndarray, list[Partition]],
    share: float,
    seeds: Sequence[int],
) -> ProbeResult:
    folds, parts = outer
    by_seed = np.full((len(seeds), len(labels), int(labels.max()) + 1), np.nan)
    found = []
    for place, seed in enumerate(seeds):
        for part in parts:
            train = part.train[drawn_rows(labels[part.train], groups[part.train], share, seed)]
            drawn = Partition(train, part.val, part.reported)
            strength, by_seed[place, part.reported], unconverged, fixed = _fit(features, labels, groups, drawn, cfg)
            found.append((strength, unconverged, fixed))
    constant = all(is_constant(probabilities, folds) for probabilities in by_seed)
    strengths, num_unconverged, num_fixed = zip(*found, strict=True)
    mean = by_seed.mean(axis=0)
    return ProbeResult(mean, folds, strengths, constant, sum(num_unconverged), by_seed, sum(num_fixed))


def _fit(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, part: Partition, cfg: ProbeConfig
) -> tuple[float, np.ndarray, int, bool]:
    """Chosen C, probabilities, unconverged fits, whether C was fixed."""
    reported, fixed = features[part.reported], False
    if part.val is None:
        try:
            inner_validation(labels[part.train], groups[part.train], cfg)
        except InputError:  # expected of few groups, and counted
            cfg, fixed = replace(cfg, strengths=(FIXED_STRENGTH,)), True
    return *predict_part(features, labels, groups, part, reported, cfg), fixed

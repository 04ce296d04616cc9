"""Who is fitted, who chooses, who is reported: folds that keep groups (patients) whole, or published splits.

Every probe takes its rows from here, so all encoders and probes are compared on the same ones.
Dimensions: n samples, C classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from eval.weighted import check_class_indices
from sharding.recording import InputError

SPLITS = ("train", "val", "test")
NOT_REPORTED = -1  # the fold of rows that serve to fit or to choose only


@dataclass(frozen=True)
class ProbeConfig:
    """What changes the numbers of a probe.

    Attributes:
        folds: number of outer folds; of no effect where the set has splits.
        strengths: scikit-learn's C, the inverse of the L2 strength, ascending.
        inner_share: share of a train fold that chooses among the strengths; rounded to 1 / whole number.
        seed: of the outer and inner splits.
        tolerance: largest gradient entry of the mean loss at which a fit stops.
        max_iterations: of the solver per fit.
        balanced: whether every class has the same weight in the loss.

    """

    folds: int = 5
    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    inner_share: float = 0.2
    seed: int = 0
    tolerance: float = 1e-5
    max_iterations: int = 2000
    balanced: bool = False

    def __post_init__(self) -> None:
        if self.folds <= 1:
            raise InputError(f"probe: folds is {self.folds}; at least 2 are needed")
        if not 0 < self.inner_share <= 0.5:  # noqa: PLR2004 - a half is the largest share of a k-fold split
            raise InputError(f"probe: inner_share is {self.inner_share}; above 0 and at most 0.5 is needed")
        ascending = all(low < high for low, high in zip((0.0, *self.strengths), self.strengths, strict=False))
        if not self.strengths or not ascending:
            raise InputError(f"probe: strengths are {self.strengths}; positive ascending ones are needed")


@dataclass(frozen=True)
class Partition:
    """Row numbers, ascending.

    Attributes:
        train: rows to fit on.
        val: rows to choose with, given by the set's splits; None: a part of train has to serve.
        reported: rows to predict, which do neither.

    """

    train: np.ndarray
    val: np.ndarray | None
    reported: np.ndarray


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
    _check_labels(labels, groups)
    few = {c: int(n) for c, n in enumerate(_groups_per_class(labels, groups)) if n < cfg.folds}
    if few:
        raise InputError(
            f"probe: number of groups per class {few}; at least {cfg.folds} are needed for {cfg.folds} folds"
        )
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


def folds_of(labels: np.ndarray, groups: np.ndarray, cfg: ProbeConfig, splits: np.ndarray | None) -> np.ndarray:
    """(n,) fold in which each sample is reported, NOT_REPORTED for those of train and val.

    Args:
        labels: (n,) integers in 0..C-1.
        groups: (n,) group (patient) of each sample.
        cfg: the probe.
        splits: (n,) "train", "val" or "test", or None: cross-validation by group. A group in several splits is
            not refused here, because published splits have such; eval/leaks.py names them.

    Raises:
        InputError: what `fold_of_each` raises; splits of another length, with other words, without a test
            sample, or whose train or test lacks a class.

    """
    if splits is None:
        return fold_of_each(labels, groups, cfg)
    _check_labels(labels, groups)
    check_splits(splits, len(labels))
    for word in ("train", "test"):
        absent = sorted(set(range(int(labels.max()) + 1)) - set(labels[splits == word].tolist()))
        if absent:
            raise InputError(f"probe: the split {word} has no sample of the classes {absent}; it needs all")
    return np.where(splits == "test", 0, NOT_REPORTED)


def check_splits(splits: np.ndarray, num_rows: int) -> None:
    """Raise InputError unless there are `num_rows` known words, with train and test among them."""
    if splits.shape != (num_rows,):
        raise InputError(f"probe: splits have shape {splits.shape}; ({num_rows},) is needed")
    unknown = sorted(set(splits.tolist()) - set(SPLITS))
    if unknown:
        raise InputError(f"probe: a split is called {unknown[0]!r}; one of {', '.join(SPLITS)} is needed")
    for word in ("train", "test"):
        if word not in splits:
            raise InputError(f"probe: no sample is in the split {word}; it needs some")


def partitions(folds: np.ndarray, splits: np.ndarray | None) -> Iterator[Partition]:
    """One partition per fold, or the one of the splits."""
    if splits is not None:
        val = np.flatnonzero(splits == "val")
        rows = [np.flatnonzero(splits == word) for word in ("train", "test")]
        yield Partition(rows[0], val if len(val) else None, rows[1])
        return
    for fold in np.unique(folds):
        yield Partition(np.flatnonzero(folds != fold), None, np.flatnonzero(folds == fold))


def divided(part: Partition, labels: np.ndarray, groups: np.ndarray, cfg: ProbeConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit on and rows to choose with: val where the set has one, else a group-wise part of train.

    Raises:
        InputError: no inner split has every class in both parts.

    """
    if part.val is not None:
        return part.train, part.val
    inner = inner_validation(labels[part.train], groups[part.train], cfg)
    return part.train[~inner], part.train[inner]


def inner_validation(labels: np.ndarray, groups: np.ndarray, cfg: ProbeConfig) -> np.ndarray:
    """(n,) bool, the samples that choose: the first split by group with every class in both parts.

    Raises:
        InputError: there is none.

    """
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


def _groups_per_class(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(C,) number of groups that hold the class."""
    return np.array([len(np.unique(groups[labels == c])) for c in range(int(labels.max()) + 1)])


def _check_labels(labels: np.ndarray, groups: np.ndarray) -> None:
    if labels.ndim != 1 or groups.shape != labels.shape:
        raise InputError(f"probe: labels have shape {labels.shape}, groups {groups.shape}; both (n,) is needed")
    check_class_indices(labels, "probe")
    num_classes = len(np.unique(labels))
    if num_classes <= 1:
        raise InputError(f"probe: {len(labels)} labels of {num_classes} class; at least 2 classes are needed")

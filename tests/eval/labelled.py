"""Small labelled features for the tests of the probes."""

import numpy as np

from eval.partition import ProbeConfig

SMALL = ProbeConfig(folds=3, strengths=(1e-2, 1.0))

Case = tuple[np.ndarray, np.ndarray, np.ndarray]


def drawn_case(seed: int, num_classes: int = 2, width: int = 6, num_groups: int = 12, gap: float = 1.0) -> Case:
    """Features, labels and groups of five samples each; in every group one label is not the others'."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_groups), 5)
    labels = groups % num_classes
    labels[::5] = (labels[::5] + 1) % num_classes
    centres = gap * rng.normal(size=(num_classes, width))
    features = centres[labels] + rng.normal(size=(len(labels), width))
    return features.astype(np.float32), labels, groups


def splits_of(groups: np.ndarray, val: bool = True) -> np.ndarray:
    """Half of the groups train, a quarter val (or train), a quarter test."""
    quarter = groups * 4 // (groups.max() + 1)
    return np.array(["train", "train", "val" if val else "train", "test"])[quarter]

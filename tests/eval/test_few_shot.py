"""The interval of few shots is that of the number beside it: the mean over the draws of train groups."""

import numpy as np

from eval.bootstrap import group_weights
from eval.comparison_probes import few_shot_cell
from eval.datasets import LabelledSet
from eval.few_shot import few_shot
from eval.metrics import resampled_score
from eval.partition import ProbeConfig

CFG = ProbeConfig(folds=3, strengths=(1.0,))


def noisy_set() -> tuple[LabelledSet, np.ndarray]:
    """40 groups of two samples, and features that few of them explain badly, each draw in another way."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(40) % 2, 2)
    features = random.normal(size=(80, 8)) + 0.8 * labels[:, None] * (np.arange(8) < 2)
    groups = np.repeat([f"p{number:02}" for number in range(40)], 2)
    squares = np.zeros((80, 2, 4, 4), dtype=np.uint8)
    keys = np.array([f"{number:03}" for number in range(80)])
    return LabelledSet("noisy", squares, labels, groups, ("a", "b"), 0, keys), features.astype(np.float32)


def test_the_interval_is_that_of_the_mean_and_narrower_than_that_of_single_draws() -> None:
    data, features = noisy_set()
    cell = few_shot_cell(data, CFG, features)["10"]
    by_seed = few_shot(features, data.labels, data.groups, CFG)[0.1].by_seed
    assert by_seed is not None
    group_of_each = np.unique(data.groups, return_inverse=True)[1]
    once, weights = np.ones((1, 40)), group_weights(40, 2000, seed=0)
    observed = [resampled_score("macro_f1", data.labels, draw, group_of_each, once)[0] for draw in by_seed]
    single = np.array([resampled_score("macro_f1", data.labels, draw, group_of_each, weights) for draw in by_seed])
    assert np.isclose(cell["value"], np.mean(observed))
    assert np.allclose([cell["low"], cell["high"]], np.percentile(single.mean(axis=0), [2.5, 97.5]))
    assert np.isclose(cell["deviation"], np.std(observed, ddof=1))
    assert cell["deviation"] > 0.02
    assert cell["low"] < cell["value"] < cell["high"]
    low, high = np.percentile(single, [2.5, 97.5])  # of the draws, as if one of them were the number
    assert cell["high"] - cell["low"] < 0.9 * (high - low)

"""Numbers that stand beside each other in a comparison belong together: intervals, groups, hashes."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

import eval.datasets
from eval.bootstrap import group_weights, indices_of_groups
from eval.comparison_probes import _few_shot_score
from eval.datasets import LabelledSet
from eval.metrics import scores
from eval.probe import ProbeResult
from eval.results import groups_in_words, headline


def labelled_set(num_samples: int, num_groups: int) -> LabelledSet:
    rng = np.random.default_rng(0)
    return LabelledSet(
        name="set",
        squares=rng.integers(0, 255, (num_samples, 2, 4, 4), dtype=np.uint8),
        labels=np.arange(num_samples) % 2,
        groups=(np.arange(num_samples) % num_groups).astype(str),
        classes=("benign", "malignant"),
        num_refused=0,
        keys=np.array([f"k{row}" for row in range(num_samples)]),
    )


def of_draws(data: LabelledSet, num_draws: int) -> ProbeResult:
    """Draws that are right about 60 to 80 % of the samples."""
    rng = np.random.default_rng(1)
    chances = np.stack([rng.normal(0.3 + 0.3 * draw, 1, len(data.labels)) for draw in range(num_draws)])
    positive = 1 / (1 + np.exp(-chances * (2 * data.labels - 1)))
    by_seed = np.stack([1 - positive, positive], axis=-1)
    folds = np.zeros(len(data.labels), dtype=int)
    return ProbeResult(by_seed.mean(axis=0), folds, (), False, 0, by_seed, 0)


def test_the_few_shot_interval_is_of_the_mean_beside_it() -> None:
    data = labelled_set(120, 30)
    result = of_draws(data, 5)
    found = _few_shot_score(result, data)
    assert result.by_seed is not None
    draws = [scores(data.labels, values).macro_f1 for values in result.by_seed]
    assert found["draws"] == pytest.approx(draws)
    assert found["value"] == pytest.approx(np.mean(draws))
    group_of_each = indices_of_groups(data.groups, len(data.labels))
    means = []
    for weights in group_weights(30, 2000, seed=0)[:300].astype(int):
        rows = np.repeat(np.arange(120), weights[group_of_each])
        means.append(np.mean([_macro_f1(data.labels[rows], values[rows]) for values in result.by_seed]))
    low, high = np.percentile(means, [2.5, 97.5])
    assert found["low"] == pytest.approx(low, abs=0.02)
    assert found["high"] == pytest.approx(high, abs=0.02)
    assert found["low"] > min(draws)  # the draws lie far apart, and that is no part of the mean's interval
    assert found["high"] < max(draws)


def _macro_f1(labels: np.ndarray, chances: np.ndarray) -> float:
    predicted = chances.argmax(axis=1)
    parts = [
        2 * ((predicted == c) & (labels == c)).sum() / ((predicted == c).sum() + (labels == c).sum()) for c in (0, 1)
    ]
    return float(np.mean(parts))


@pytest.mark.parametrize(("num_groups", "words"), [(529, "529 groups of one frame each"), (60, "60 groups (patients)")])
def test_pictures_are_not_called_patients(num_groups: int, words: str) -> None:
    one = {"num_groups": num_groups, "num_reported": 529}
    assert groups_in_words(one) == words
    pair = {"metric": "macro_f1", "first": "a", "second": "b", "difference": 0.1, "low": 0.0, "high": 0.2}
    sentence = headline(one, {"pairs": [pair | {"p_holm": 0.04}]}, "a", "b", 1)
    assert words in sentence
    assert ("patients" in sentence) == (num_groups < 529)


def test_the_hash_of_a_set_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = labelled_set(6, 3)
    made = []

    def counted(*values: bytes) -> object:
        made.append(values)
        return hashlib.sha256(*values)

    monkeypatch.setattr(eval.datasets, "hashlib", type("hashlib", (), {"sha256": staticmethod(counted)}))
    assert data.sha256 == data.sha256
    assert len(made) == 1
    turned = replace(data, squares=data.squares[:, :, ::-1])
    assert turned.sha256 != data.sha256
    assert len(made) == 2

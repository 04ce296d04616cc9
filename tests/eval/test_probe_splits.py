"""Every probe: train fits, val chooses, test is reported and does neither; order and shuffled labels."""

import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from eval.attentive_probe import attentive_probe
from eval.bootstrap import bootstrap
from eval.descent import DescentConfig, content_order
from eval.few_shot import few_shot
from eval.knn_probe import knn_probe
from eval.metrics import scores
from eval.paper_probe import paper_probe
from eval.partition import ProbeConfig, fold_of_each
from eval.probe import ProbeResult, choose_and_predict, linear_probe, majority_probabilities
from sharding.recording import InputError
from tests.eval.labelled import SMALL, drawn_case, splits_of

SHORT = DescentConfig(lr=5e-2, epochs=20, patience=5, seeds=(0, 1))
Probe = Callable[..., ProbeResult]


def attend(features: np.ndarray, *rest: object) -> ProbeResult:
    """The attentive probe of features as two tokens of half the width."""
    tokens = features.reshape(len(features), 2, -1)
    return attentive_probe(tokens, *rest, descent=SHORT, num_heads=1)  # type: ignore[arg-type]


def of_half(*case: object) -> ProbeResult:
    """The few-shot probe at one share."""
    return few_shot(*case, shares=(0.5,), seeds=(0, 1))[0.5]  # type: ignore[arg-type]


PROBES: dict[str, Probe] = {
    "fair": linear_probe,
    "paper": partial(paper_probe, descent=SHORT),
    "knn": knn_probe,
    "attentive": attend,
    "few shot": of_half,
}
every_probe = pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES.keys())


@every_probe
@pytest.mark.parametrize("val", [True, False], ids=["val", "no val"])
def test_only_test_is_reported_and_neither_its_labels_nor_its_features_choose(probe: Probe, val: bool) -> None:
    features, labels, groups = drawn_case(0, num_groups=24)
    splits = splits_of(groups, val)
    result = probe(features, labels, groups, SMALL, splits)
    test = splits == "test"
    np.testing.assert_array_equal(result.reported, test)
    assert np.isnan(result.probabilities[~test]).all()
    np.testing.assert_allclose(result.probabilities[test].sum(axis=1), 1, atol=1e-6)
    rng, other_labels, other_features = np.random.default_rng(0), labels.copy(), features.copy()
    other_labels[test] = rng.permutation(labels[test])
    first = np.flatnonzero(test)[0]
    other_features[test] += 1000 * (np.arange(len(labels)) != first)[test, None]
    np.testing.assert_array_equal(
        probe(features, other_labels, groups, SMALL, splits).probabilities, result.probabilities
    )
    other = probe(other_features, labels, groups, SMALL, splits)
    assert other.strengths == result.strengths
    np.testing.assert_allclose(other.probabilities[first], result.probabilities[first], atol=1e-6)


@every_probe
def test_rows_in_another_order_give_the_same_predictions(probe: Probe) -> None:
    features, labels, groups = drawn_case(1)
    order = np.random.default_rng(0).permutation(len(labels))
    result = probe(features, labels, groups, SMALL)
    shuffled = probe(features[order], labels[order], groups[order], SMALL)
    np.testing.assert_array_equal(shuffled.folds, result.folds[order])
    np.testing.assert_array_equal(result.folds, fold_of_each(labels, groups, SMALL))
    np.testing.assert_allclose(shuffled.probabilities, result.probabilities[order], atol=1e-4)


@every_probe
def test_classes_far_apart_are_told_apart(probe: Probe) -> None:
    features, labels, groups = drawn_case(2, num_classes=3, num_groups=24, gap=6)
    result = probe(features, labels, groups, SMALL)
    assert scores(labels, result.probabilities).auroc > 0.95
    assert not result.constant


def covers_a_half(probe: Probe, seed: int) -> bool:
    """Whether the interval of AUROC on test does so when the labels are shuffled."""
    features, labels, groups = drawn_case(3, num_groups=60, gap=3)
    shuffled, splits = np.random.default_rng(seed).permutation(labels), splits_of(groups)
    result = probe(features, shuffled, groups, SMALL, splits)
    rows = result.reported
    found = bootstrap(shuffled[rows], {"a": result.probabilities[rows]}, groups[rows], num_resamples=500)
    return found.intervals["a"].auroc.low <= 0.5 <= found.intervals["a"].auroc.high


@every_probe
@pytest.mark.parametrize("seed", [0, 1])
def test_with_shuffled_labels_the_interval_of_auroc_contains_a_half(probe: Probe, seed: int) -> None:
    assert covers_a_half(probe, seed)


def test_with_shuffled_labels_hardly_any_interval_misses_a_half() -> None:
    assert sum(covers_a_half(linear_probe, seed) for seed in range(40)) >= 36


def test_without_val_the_probe_is_fitted_again_on_all_train_rows() -> None:
    features, labels, groups = drawn_case(4, num_groups=24)
    splits = splits_of(groups)
    train, val, test = (splits == word for word in ("train", "val", "test"))
    one = ProbeConfig(strengths=(1.0,))
    np.testing.assert_allclose(
        linear_probe(features, labels, groups, one, splits).probabilities[test],
        choose_and_predict(features[train], labels[train], features[val], labels[val], features[test], one)[1],
    )
    merged = np.where(val, "train", splits)
    wider = linear_probe(features, labels, groups, one, merged).probabilities[test]
    together = choose_and_predict(features[~test], labels[~test], features[val], labels[val], features[test], one)[1]
    np.testing.assert_allclose(wider, together, atol=1e-4)


def test_val_chooses_the_strength() -> None:
    rng = np.random.default_rng(0)
    groups, labels = np.arange(300), np.arange(300) % 10 // 9  # a tenth is of class 1
    features, splits = 2.5 * labels[:, None] + rng.normal(size=(300, 3)), splits_of(np.arange(300))
    cfg = ProbeConfig(strengths=(1e-5, 1.0))  # the former always names the majority
    assert linear_probe(features, labels, groups, cfg, splits).strengths == (1.0,)
    misleading = np.where((splits == "val")[:, None] & (labels == 0)[:, None], features + 5, features)
    assert linear_probe(misleading, labels, groups, cfg, splits).strengths == (1e-5,)


def test_the_majority_row_of_splits_has_the_shares_of_train() -> None:
    labels, splits = np.array([0, 0, 1, 1, 1, 0]), np.array(["train"] * 3 + ["val", "test", "test"])
    shares = majority_probabilities(labels, np.where(splits == "test", 0, -1), splits)
    assert np.isnan(shares[:4]).all()
    np.testing.assert_allclose(shares[4:], np.tile([2 / 3, 1 / 3], (2, 1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, _: s[1:], "splits have shape (59,); (60,) is needed"),
        (lambda s, _: np.where(s == "val", "dev", s), "a split is called 'dev'; one of train, val, test"),
        (lambda s, _: np.where(s == "test", "val", s), "no sample is in the split test"),
        (lambda s, y: np.where((s == "train") & (y == 1), "val", s), "train has no sample of the classes [1]"),
    ],
)
def test_splits_that_cannot_be_used_are_named(
    change: Callable[[np.ndarray, np.ndarray], np.ndarray], message: str
) -> None:
    features, labels, groups = drawn_case(6)
    with pytest.raises(InputError, match=re.escape(message)):
        linear_probe(features, labels, groups, SMALL, change(splits_of(groups), labels))


def test_the_order_by_content_does_not_depend_on_that_of_the_input() -> None:
    rng = np.random.default_rng(0)
    rows, labels = rng.integers(2, size=(30, 4)).astype(np.float32), rng.integers(2, size=30)
    shuffled = rng.permutation(30)
    first = content_order(rows, labels)
    second = shuffled[content_order(rows[shuffled], labels[shuffled])]
    np.testing.assert_array_equal(rows[first], rows[second])
    np.testing.assert_array_equal(labels[first], labels[second])

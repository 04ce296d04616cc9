"""The probe leaks nothing, equals scikit-learn's plain fit, and says when it is worth nothing."""

import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from eval.metrics import scores
from eval.probe import ProbeConfig, fit_and_predict, fold_of_each, linear_probe, majority_probabilities
from sharding.recording import InputError
from tests.eval.labelled import SMALL, drawn_case

ONE_STRENGTH = ProbeConfig(folds=3, strengths=(1.0,), tolerance=1e-9, max_iterations=10_000)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), folds=st.integers(2, 5), num_classes=st.integers(2, 3))
def test_groups_stay_whole_and_every_fold_holds_every_class(seed: int, folds: int, num_classes: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(36), rng.integers(1, 6, size=36)))
    labels, names = groups % num_classes, np.array([f"patient {group}" for group in groups])
    try:
        chosen = fold_of_each(labels, names, ProbeConfig(folds=folds, seed=seed))
    except InputError as error:
        assert "has no sample of the classes" in str(error)  # noqa: PT017 - the other outcome is allowed
        assume(False)
    assert set(chosen.tolist()) == set(range(folds))
    for group in range(36):
        assert len(set(chosen[groups == group].tolist())) == 1
    for fold in range(folds):
        assert set(labels[chosen == fold].tolist()) == set(range(num_classes))


def test_every_encoder_is_compared_on_the_same_folds_and_another_seed_gives_others() -> None:
    features, labels, groups = drawn_case(0)
    folds = fold_of_each(labels, groups, SMALL)
    np.testing.assert_array_equal(linear_probe(features, labels, groups, SMALL).folds, folds)
    np.testing.assert_array_equal(linear_probe(features[:, :2] ** 2, labels, groups, SMALL).folds, folds)
    assert (fold_of_each(labels, groups, ProbeConfig(folds=3, seed=1)) != folds).any()


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), fold=st.integers(0, 2))
def test_labels_of_the_reported_fold_do_not_change_its_probabilities(seed: int, fold: int) -> None:
    features, labels, groups = drawn_case(seed)
    result = linear_probe(features, labels, groups, SMALL)
    rng, permuted = np.random.default_rng(seed), labels.copy()
    for group in np.unique(groups[result.folds == fold]):  # within groups, which leaves the folds as they are
        permuted[groups == group] = rng.permutation(labels[groups == group])
    other = linear_probe(features, permuted, groups, SMALL)
    reported = result.folds == fold
    np.testing.assert_array_equal(other.folds, result.folds)
    np.testing.assert_array_equal(other.probabilities[reported], result.probabilities[reported])
    assert other.strengths[fold] == result.strengths[fold]
    assert (permuted == labels).all() or (other.probabilities != result.probabilities).any()


@pytest.mark.parametrize("width", [6, 70])
def test_features_of_the_reported_fold_change_neither_its_strength_nor_each_other(width: int) -> None:
    features, labels, groups = drawn_case(1, width=width)
    result = linear_probe(features, labels, groups, SMALL)
    reported = np.flatnonzero(result.folds == 0)
    shifted = features.copy()
    shifted[reported[1:]] += 1000
    other = linear_probe(shifted, labels, groups, SMALL)
    assert other.strengths[0] == result.strengths[0]
    np.testing.assert_allclose(other.probabilities[reported[0]], result.probabilities[reported[0]], atol=1e-12)


@pytest.mark.parametrize("width", [6, 70])
@pytest.mark.parametrize("constant", [0.0, 0.1])
def test_a_feature_that_is_constant_in_train_says_nothing_whatever_it_is_in_the_reported_fold(
    width: int, constant: float
) -> None:
    features, labels, groups = drawn_case(2, width=width)
    train = fold_of_each(labels, groups, SMALL) != 0
    poisoned = np.column_stack([features, np.where(train, constant, 1e6 * labels)]).astype(np.float32)
    clean = fit_and_predict(features[train], labels[train], groups[train], features[~train], SMALL)
    other = fit_and_predict(poisoned[train], labels[train], groups[train], poisoned[~train], SMALL)
    assert other[0] == clean[0]
    np.testing.assert_allclose(other[1], clean[1], atol=1e-6)


@pytest.mark.parametrize(("num_classes", "width"), [(2, 6), (3, 6), (2, 70), (3, 70)])
def test_probabilities_equal_a_plain_fit_on_standardised_features(num_classes: int, width: int) -> None:
    features, labels, groups = drawn_case(3, num_classes, width)
    result = linear_probe(features, labels, groups, ONE_STRENGTH)
    for fold in range(3):
        train = result.folds != fold
        mean, spread = features[train].mean(axis=0, dtype=float), features[train].std(axis=0, dtype=float)
        model = LogisticRegression(C=1.0, tol=1e-9, max_iter=10_000)
        model.fit((features[train] - mean) / spread, labels[train])
        plain = model.predict_proba((features[~train] - mean) / spread)
        np.testing.assert_allclose(result.probabilities[~train], plain, atol=1e-5)


def test_features_that_tell_classes_apart_are_read_and_noise_is_not() -> None:
    features, labels, groups = drawn_case(5, gap=3, num_groups=60)
    result = linear_probe(features, labels, groups, ProbeConfig())
    noise = np.random.default_rng(0).normal(size=features.shape)
    assert scores(labels, result.probabilities).macro_f1 > 0.95
    assert 0.3 < scores(labels, linear_probe(noise, labels, groups, ProbeConfig()).probabilities).auroc < 0.65
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1)
    assert not result.constant


def test_probabilities_come_in_the_order_of_the_input() -> None:
    features, labels, groups = drawn_case(6)
    order = np.random.default_rng(0).permutation(len(labels))
    result = linear_probe(features, labels, groups, SMALL)
    shuffled = linear_probe(features[order], labels[order], groups[order], SMALL)
    np.testing.assert_allclose(shuffled.probabilities, result.probabilities[order], atol=1e-4)


def test_equal_validation_scores_choose_the_strongest_regularisation() -> None:
    features, labels, groups = drawn_case(7, gap=50)
    cfg = ProbeConfig(folds=3, strengths=(1e-2, 1.0, 100.0))
    assert linear_probe(features, labels, groups, cfg).strengths == (1e-2, 1e-2, 1e-2)


def test_the_strength_follows_the_validation_score() -> None:
    rng = np.random.default_rng(0)
    groups, labels = np.arange(300), np.arange(300) % 10 // 9  # a tenth is of class 1
    features = 2.5 * labels[:, None] + rng.normal(size=(300, 3))
    cfg = ProbeConfig(folds=3, strengths=(1e-5, 1.0))  # the former always names the majority
    assert linear_probe(features, labels, groups, cfg).strengths == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("width", [4, 70])
def test_collapsed_features_are_flagged_as_a_constant_probe(width: int) -> None:
    _, labels, groups = drawn_case(8)
    result = linear_probe(np.full((len(labels), width), 0.3, np.float32), labels, groups, SMALL)
    assert result.constant
    assert result.num_unconverged == 0


def test_fits_that_did_not_converge_are_counted_and_do_not_warn() -> None:
    features, labels, groups = drawn_case(9)
    cfg = ProbeConfig(folds=3, strengths=(0.1, 1.0), tolerance=1e-14, max_iterations=1)
    assert linear_probe(features, labels, groups, cfg).num_unconverged == 3 * (2 + 1)
    assert linear_probe(features, labels, groups, SMALL).num_unconverged == 0


def test_the_majority_row_gives_each_fold_the_class_shares_of_the_others() -> None:
    labels, folds = np.array([0, 0, 1, 0, 1, 1, 0, 0]), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    shares = majority_probabilities(labels, folds)
    np.testing.assert_allclose(shares[:4], np.tile([0.5, 0.5], (4, 1)))
    np.testing.assert_allclose(shares[4:], np.tile([0.75, 0.25], (4, 1)))


def raises(message: str, features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        linear_probe(features, labels, groups, SMALL)


def test_labels_and_groups_that_cannot_be_split_are_named() -> None:
    features, labels, groups = drawn_case(11)
    raises("60 labels of 1 class; at least 2 classes", features, np.ones_like(labels), groups)
    raises("labels are float64; integers 0..C-1", features, labels.astype(float), groups)
    raises("groups (59,); both (n,) is needed", features, labels, groups[1:])
    in_two_groups = np.where(groups < 2, 2, groups % 2)
    raises("groups per class {2: 2}; at least 3 are needed for 3 folds", features, in_two_groups, groups)
    raises("groups per class {1: 0}", features, labels * 2, groups)


def test_a_fold_without_some_class_is_named() -> None:
    of_class_0, of_class_1 = [4, 1, 7, 8], [3, 9, 5, 0]  # samples per group: whole groups balance these badly
    groups = np.concatenate([np.repeat(np.arange(4), of_class_0), np.repeat(np.arange(4), of_class_1)])
    labels = np.repeat([0, 1], [sum(of_class_0), sum(of_class_1)])
    message = r"fold 0 of 3 has no sample of the classes \[1\].*; fewer folds or another seed are needed"
    with pytest.raises(InputError, match=message):
        fold_of_each(labels, groups, SMALL)


def test_features_that_cannot_be_probed_are_named() -> None:
    features, labels, groups = drawn_case(12)
    raises("features have shape (59, 6), labels (60,)", features[1:], labels, groups)
    raises("features have shape (60,)", features[:, 0], labels, groups)
    features[3, :2], features[5, 0] = np.nan, np.inf
    raises("2 NaN and 1 infinite values in 2 of 60 rows", features, labels, groups)


def test_train_folds_without_a_split_for_the_strength_are_named_unless_there_is_one_strength() -> None:
    groups = np.repeat(np.arange(4), 5)
    labels, features = groups % 2, np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(InputError, match="1 groups of the rarest class, but no split with every class in both"):
        linear_probe(features, labels, groups, ProbeConfig(folds=2))
    linear_probe(features, labels, groups, ProbeConfig(folds=2, strengths=(1.0,)))


def test_impossible_configs_are_named() -> None:
    with pytest.raises(InputError, match="folds is 1; at least 2"):
        ProbeConfig(folds=1)
    with pytest.raises(InputError, match=r"inner_share is 0\.7"):
        ProbeConfig(inner_share=0.7)
    for strengths in ((), (0.0, 1.0), (1.0, 0.1)):
        with pytest.raises(InputError, match="positive ascending ones are needed"):
            ProbeConfig(strengths=strengths)

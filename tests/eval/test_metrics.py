"""Scores against scikit-learn, the bootstrap against a plain loop and against what is known of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

from eval.bootstrap import Interval, bootstrap, group_weights
from eval.metrics import scores
from eval.weighted import weighted_auroc
from sharding.recording import InputError


def drawn_case(
    seed: int, num_classes: int, num_samples: int = 60, num_groups: int = 12
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels with every class, probabilities that lean to the label and hold ties, groups."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num_samples) % num_classes)
    raw = rng.integers(1, 6, size=(num_samples, num_classes)) + 3.0 * np.eye(num_classes)[labels]
    return labels, raw / raw.sum(axis=1, keepdims=True), rng.integers(num_groups, size=num_samples)


def sklearn_auroc(labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray | None = None) -> float:
    binary = probabilities.shape[1] == 2
    ranking = probabilities[:, 1] if binary else probabilities
    kind = "raise" if binary else "ovr"
    return float(roc_auc_score(labels, ranking, sample_weight=weight, multi_class=kind))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_classes=st.integers(2, 5))
def test_scores_equal_those_of_scikit_learn(seed: int, num_classes: int) -> None:
    labels, probabilities, _ = drawn_case(seed, num_classes)
    predicted = probabilities.argmax(axis=1)
    result = scores(labels, probabilities)
    assert result.accuracy == pytest.approx(accuracy_score(labels, predicted), abs=1e-12)
    assert result.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
    assert result.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-12)
    assert result.auroc == pytest.approx(sklearn_auroc(labels, probabilities), abs=1e-9)


def test_a_class_that_is_never_predicted_counts_as_zero_in_macro_f1() -> None:
    labels = np.array([0, 0, 0, 1])
    constant = np.tile([0.9, 0.1], (4, 1))
    assert scores(labels, constant).macro_f1 == pytest.approx((6 / 7 + 0) / 2)
    assert scores(labels, constant).auroc == 0.5


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.floats(0.01, 9)), min_size=2, max_size=30).filter(
        lambda rows: len({row[0] for row in rows}) == 2
    )
)
def test_weighted_auroc_equals_that_of_scikit_learn_with_ties(rows: list[tuple[bool, int, float]]) -> None:
    positive, ranking, weight = (np.array(column) for column in zip(*rows, strict=True))
    area = weighted_auroc(positive, ranking / 4, np.arange(len(rows)), weight[None])[0]
    assert area == pytest.approx(roc_auc_score(positive, ranking, sample_weight=weight), abs=1e-9)


def test_weighted_auroc_does_not_depend_on_how_resamples_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, probabilities, groups = drawn_case(0, 2)
    weights = group_weights(12, 50, seed=1)
    whole = weighted_auroc(labels == 1, probabilities[:, 1], groups, weights)
    monkeypatch.setattr("eval.weighted.CHUNK_VALUES", 7 * len(labels))
    np.testing.assert_array_equal(weighted_auroc(labels == 1, probabilities[:, 1], groups, weights), whole)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_bootstrap_equals_a_loop_over_the_same_resamples(num_classes: int) -> None:
    labels, probabilities, groups = drawn_case(3, num_classes)
    result = bootstrap(labels, {"a": probabilities}, groups, num_resamples=40, seed=5)
    looped = []
    for counts in group_weights(12, 40, seed=5).astype(int):
        rows = np.repeat(np.arange(len(labels)), counts[groups])
        drawn, predicted = labels[rows], probabilities[rows].argmax(axis=1)
        f1 = f1_score(drawn, predicted, average="macro", labels=range(num_classes), zero_division=0)
        looped.append((accuracy_score(drawn, predicted), f1, sklearn_auroc(drawn, probabilities[rows])))
    resampled = result.resampled["a"]
    fast = np.stack([resampled.accuracy, resampled.macro_f1, resampled.auroc], axis=1)
    np.testing.assert_allclose(fast, looped, atol=1e-9)
    low, high = np.percentile(np.array(looped)[:, 1], [2.5, 97.5])
    assert result.intervals["a"].macro_f1.low == pytest.approx(low)
    assert result.intervals["a"].macro_f1.high == pytest.approx(high)
    assert result.observed["a"] == scores(labels, probabilities)


@settings(max_examples=20, deadline=None)
@given(num_groups=st.integers(1, 9), num_resamples=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_resample_draws_as_many_groups_as_there_are(num_groups: int, num_resamples: int, seed: int) -> None:
    weights = group_weights(num_groups, num_resamples, seed)
    assert weights.shape == (num_resamples, num_groups)
    assert (weights.sum(axis=1) == num_groups).all()
    np.testing.assert_array_equal(weights, group_weights(num_groups, num_resamples, seed))


def test_groups_are_drawn_evenly() -> None:
    weights = group_weights(20, 4000, seed=0)
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.08)
    np.testing.assert_allclose(weights.var(axis=0), 1 - 1 / 20, atol=0.12)


def test_intervals_cover_the_true_accuracy_about_95_times_in_100() -> None:
    rng, covered, trials = np.random.default_rng(0), 0, 200
    for _ in range(trials):
        groups = np.repeat(np.arange(60), 4)
        labels = np.repeat(rng.permutation(np.arange(60) % 2), 4)
        right = np.repeat(rng.random(60) < 0.7, 4)  # a group is right or wrong as a whole
        probabilities = np.eye(2)[np.where(right, labels, 1 - labels)]
        interval = bootstrap(labels, {"a": probabilities}, groups, num_resamples=300).intervals["a"].accuracy
        covered += interval.low <= 0.7 <= interval.high
    assert 0.89 <= covered / trials <= 0.99


@pytest.mark.parametrize("copies", [2, 10])
def test_copies_within_a_group_do_not_narrow_an_interval(copies: int) -> None:
    labels, probabilities, groups = drawn_case(8, 3)
    once = bootstrap(labels, {"a": probabilities}, groups, num_resamples=200)
    repeated = [np.repeat(values, copies, axis=0) for values in (labels, probabilities, groups)]
    often = bootstrap(repeated[0], {"a": repeated[1]}, repeated[2], num_resamples=200)
    np.testing.assert_allclose(often.resampled["a"].macro_f1, once.resampled["a"].macro_f1, atol=1e-12)
    np.testing.assert_allclose(often.resampled["a"].auroc, once.resampled["a"].auroc, atol=1e-12)


def test_the_difference_of_equal_predictions_is_exactly_zero() -> None:
    labels, probabilities, groups = drawn_case(1, 3)
    result = bootstrap(labels, {"a": probabilities, "b": probabilities.copy()}, groups, num_resamples=100)
    difference = result.paired_difference("a", "b")
    assert (difference.observed, difference.mean, difference.excludes_zero) == (0, 0, False)
    assert difference.interval == Interval(0, 0)


def test_a_paired_difference_is_narrower_than_the_intervals_of_its_parts_and_changes_sign_with_order() -> None:
    labels, probabilities, groups = drawn_case(2, 2, num_samples=300, num_groups=50)
    worse = probabilities.copy()
    worse[:30] = 1 - np.eye(2)[labels[:30]]
    result = bootstrap(labels, {"good": probabilities, "worse": worse}, groups)
    forth, back = result.paired_difference("good", "worse"), result.paired_difference("worse", "good")
    parts = result.intervals["good"].macro_f1, result.intervals["worse"].macro_f1
    assert forth.excludes_zero
    assert back.excludes_zero
    assert forth.observed == pytest.approx(result.observed["good"].macro_f1 - result.observed["worse"].macro_f1)
    assert (back.interval.low, back.interval.high) == pytest.approx((-forth.interval.high, -forth.interval.low))
    assert forth.mean == pytest.approx(forth.observed, abs=0.02)
    assert forth.interval.high - forth.interval.low < sum(part.high - part.low for part in parts)


def test_resamples_without_a_class_are_left_out_of_the_auroc_only() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    groups = np.array(["p1", "p2", "p3", "p4", "p5", "p5"])
    probabilities = np.linspace([0.9, 0.1], [0.2, 0.8], 6)
    result = bootstrap(labels, {"a": probabilities}, groups, num_resamples=500)
    missing = (weights := group_weights(5, 500, seed=0))[:, 4] == 0
    missing |= weights[:, :4].sum(axis=1) == 0
    assert result.auroc_left_out == missing.sum() > 100
    np.testing.assert_array_equal(np.isnan(result.resampled["a"].auroc), missing)
    assert result.intervals["a"].auroc == Interval(1, 1)
    assert np.isfinite(result.resampled["a"].macro_f1).all()


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1, 1], np.ones((2, 2)), r"labels have shape \(3,\), probabilities \(2, 2\)"),
        ([0, 0], np.ones((2, 1)), "C of at least 2"),
        ([0, 1], np.array([[np.nan, 1], [0, np.inf]]), "2 of 4 probabilities are not finite"),
        ([0.0, 1.0], np.ones((2, 2)), r"labels are float64; integers 0\.\.C-1"),
        ([-1, 1], np.ones((2, 2)), "the lowest label is -1"),
        ([0, 2], np.ones((2, 3)), r"classes \[0, 2\], the probabilities have 3 columns"),
        ([0, 2], np.ones((2, 2)), r"classes \[0, 2\], the probabilities have 2 columns"),
    ],
)
def test_what_cannot_be_scored_is_named(labels: list[float], probabilities: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=f"^scores: .*{message}"):
        scores(np.array(labels), probabilities)


def test_what_cannot_be_resampled_is_named() -> None:
    labels, probabilities = np.array([0, 1]), np.eye(2)
    with pytest.raises(InputError, match="no encoder"):
        bootstrap(labels, {}, np.array([0, 1]))
    with pytest.raises(InputError, match=r"groups have shape \(3,\); \(2,\) is needed"):
        bootstrap(labels, {"a": probabilities}, np.arange(3))
    with pytest.raises(InputError, match="1 group; an interval over groups needs at least 2"):
        bootstrap(labels, {"a": probabilities}, np.zeros(2))
    one_sided = next(seed for seed in range(99) if group_weights(2, 1, seed).max() == 2)
    with pytest.raises(InputError, match="none of 1 resamples of 2 groups holds every class"):
        bootstrap(labels, {"a": probabilities}, np.arange(2), num_resamples=1, seed=one_sided)

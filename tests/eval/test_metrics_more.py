"""Average precision, calibration, paired tests, correction over sets: against references and what is known of them."""

import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from eval.bootstrap import bootstrap, group_weights, paired_bootstrap
from eval.metrics import holm, scores
from eval.weighted import weighted_average_precision
from tests.eval.test_metrics import drawn_case

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "average_precision", "calibration_error")


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_classes=st.integers(2, 5))
def test_average_precision_equals_that_of_scikit_learn(seed: int, num_classes: int) -> None:
    labels, probabilities, _ = drawn_case(seed, num_classes)
    classes = [1] if num_classes == 2 else range(num_classes)
    expected = np.mean([average_precision_score(labels == c, probabilities[:, c]) for c in classes])
    assert scores(labels, probabilities).average_precision == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.floats(0.01, 9)), min_size=2, max_size=30).filter(
        lambda rows: len({row[0] for row in rows}) == 2
    )
)
def test_weighted_average_precision_equals_that_of_scikit_learn_with_ties(rows: list[tuple[bool, int, float]]) -> None:
    positive, ranking, weight = (np.array(column) for column in zip(*rows, strict=True))
    found = weighted_average_precision(positive, ranking / 4, np.arange(len(rows)), weight[None])[0]
    assert found == pytest.approx(average_precision_score(positive, ranking, sample_weight=weight), abs=1e-9)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_calibration_error_equals_a_loop_over_its_bins(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(num_classes, 0.7), size=400)
    probabilities[:40] = (np.arange(40) % 6 + 9)[:, None] / 15 * (np.arange(num_classes) == 0)  # ends of bins
    probabilities[:40, 1] = 1 - probabilities[:40, 0]
    # Bins err to either side by turns, so it counts where they end.
    right = rng.random(400) < np.where(np.ceil(probabilities.max(axis=1) * 15 - 1e-9) % 2, 0.98, 0.2)
    labels = (probabilities.argmax(axis=1) + ~right) % num_classes
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low + 1e-9) & (confidence <= low + 1 / 15 + 1e-9)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    assert scores(labels, probabilities).calibration_error == pytest.approx(total, abs=1e-9)


def test_honest_probabilities_are_calibrated_and_boasting_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    chance = rng.random(20_000)
    labels = (rng.random(20_000) < chance).astype(np.int64)
    honest, boasting = (np.stack([1 - p, p], axis=1) for p in (chance, (chance > 0.5) * 0.98 + 0.01))
    assert scores(labels, honest).calibration_error < 0.02
    assert scores(labels, boasting).calibration_error == pytest.approx(0.24, abs=0.02)


def test_a_paired_bootstrap_is_that_of_the_whole_bootstrap_for_every_score() -> None:
    labels, first, groups = drawn_case(1, 3, num_samples=200, num_groups=30)
    second = drawn_case(2, 3, num_samples=200)[1]
    whole = bootstrap(labels, {"a": first, "b": second}, groups, num_resamples=300)
    for metric in METRICS:
        alone = paired_bootstrap(labels, first, second, groups, metric, num_resamples=300)  # type: ignore[arg-type]
        assert alone == whole.paired_difference("a", "b", metric)  # type: ignore[arg-type]


def test_p_values_agree_with_intervals_and_count_resamples_on_the_smaller_side() -> None:
    labels, first, groups = drawn_case(3, 2, num_samples=300, num_groups=60)
    rng = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.05, 0.1, 0.3):
        flipped = rng.random(300) < share
        second = np.where(flipped[:, None], first[:, ::-1], first)
        result = bootstrap(labels, {"a": first, "b": second}, groups)
        found = result.paired_difference("a", "b")
        difference = result.resampled["a"].macro_f1 - result.resampled["b"].macro_f1
        smaller = min((difference <= 0).sum(), (difference >= 0).sum())
        assert found.p_value == pytest.approx(min(1, 2 * (smaller + 1) / 2001))
        assert (found.p_value < 0.05) == found.excludes_zero or abs(found.p_value - 0.05) < 0.002
    assert bootstrap(labels, {"a": first, "b": first}, groups).paired_difference("a", "b").p_value == 1


def rejections(draw: Callable[[np.random.Generator], np.ndarray], trials: int) -> float:
    """Share of trials with p < 0.05 where both encoders are right equally often."""
    rejected = 0
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        groups, labels = np.repeat(np.arange(120), 3), np.repeat(rng.permutation(np.arange(120) % 2), 3)
        chances = [np.eye(2)[np.where(draw(rng), labels, 1 - labels)] for _ in range(2)]
        rejected += paired_bootstrap(labels, *chances, groups, "accuracy", 400, trial).p_value < 0.05
    return rejected / trials


def test_equal_encoders_are_told_apart_about_5_times_in_100() -> None:
    assert 0.02 <= rejections(lambda rng: np.repeat(rng.random(120) < 0.7, 3), 400) <= 0.08


def test_intervals_of_groups_cover_the_truth_93_to_97_times_in_100() -> None:
    trials, covered = 1000, 0
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        groups, labels = np.repeat(np.arange(150), 4), np.repeat(rng.permutation(np.arange(150) % 2), 4)
        # Half of a group's frames share their fate, so frames are no independent draws.
        shared, own = np.repeat(rng.random(150) < 0.7, 4), rng.random(600) < 0.7
        right = np.where(np.tile([True, True, False, False], 150), shared, own)
        weights = group_weights(150, 1000, trial)
        per_group = (right == 1).reshape(150, 4).mean(axis=1)
        low, high = np.percentile(weights @ per_group / 150, [2.5, 97.5])
        if trial < 100:  # the loop above in short is what the bootstrap does
            found = bootstrap(labels, {"a": np.eye(2)[np.where(right, labels, 1 - labels)]}, groups, 1000, trial)
            assert (found.intervals["a"].accuracy.low, found.intervals["a"].accuracy.high) == pytest.approx((low, high))
        covered += low <= 0.7 <= high
    assert 0.93 <= covered / trials <= 0.97


def test_ten_thousand_paired_bootstraps_by_group_take_less_than_a_second() -> None:
    rng = np.random.default_rng(0)
    groups = np.concatenate([np.arange(1141), rng.integers(1141, size=3705 - 1141)])
    labels = groups % 3 // 2
    first, second = (np.eye(2)[np.where(rng.random(3705) < 0.8, labels, 1 - labels)] for _ in range(2))
    seconds = []
    for _ in range(3):
        started = time.process_time()
        paired_bootstrap(labels, first, second, groups, num_resamples=10_000)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 1


def test_holm_corrects_as_in_his_paper() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_array_equal(holm(np.array([0.6, 0.9])), [1, 1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_rejects_what_stepping_down_rejects(p_values: list[float]) -> None:
    corrected = holm(np.array(p_values))
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected: set[int] = set()
    for place, index in enumerate(order):
        if (len(p_values) - place) * p_values[index] > 0.05:
            break
        rejected.add(index)
    assert set(np.flatnonzero(corrected <= 0.05).tolist()) == rejected

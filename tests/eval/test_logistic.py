"""The path of the fair probe finds what a cold scikit-learn fit finds."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from eval.logistic import logistic_path

STRENGTHS = (1e-3, 1e-1, 1.0, 10.0)


def drawn_problem(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features of unequal scale, more or fewer than samples; two to five classes of unequal size."""
    rng = np.random.default_rng(seed)
    num_samples, width, num_classes = int(rng.integers(60, 160)), int(rng.integers(4, 200)), 2 + seed % 4
    shares = rng.dirichlet(np.full(num_classes, 3.0))
    labels = np.concatenate([np.arange(num_classes), rng.choice(num_classes, num_samples - num_classes, p=shares)])
    hidden = rng.normal(size=(num_samples, width)) + rng.normal(size=(num_classes, width))[labels] / 2
    mixed = hidden @ rng.normal(size=(width, width)) * 10.0 ** rng.uniform(-3, 3, size=width)
    return mixed + rng.normal(size=width), labels


@pytest.mark.parametrize("balanced", [False, True], ids=["plain", "balanced"])
@pytest.mark.parametrize("seed", range(20))
def test_every_strength_has_the_coefficients_of_a_cold_scikit_learn_fit(seed: int, balanced: bool) -> None:
    features, labels = drawn_problem(seed)
    standardised = (features - features.mean(axis=0)) / features.std(axis=0)
    path = logistic_path(features, labels, STRENGTHS, tolerance=1e-9, balanced=balanced)
    for strength, found in zip(STRENGTHS, path, strict=True):
        cold = LogisticRegression(
            C=strength, tol=1e-9, max_iter=50_000, class_weight="balanced" if balanced else None
        ).fit(standardised, labels)
        np.testing.assert_allclose(found.coefficients, cold.coef_, atol=1e-4)
        np.testing.assert_allclose(found.intercepts, cold.intercept_, atol=1e-4)
        np.testing.assert_allclose(found.predict(features), cold.predict_proba(standardised), atol=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_fits_converge_at_the_tolerance_of_the_probe_and_tighter(seed: int) -> None:
    features, labels = drawn_problem(seed)
    for tolerance in (1e-5, 1e-7):
        assert all(found.converged for found in logistic_path(features, labels, STRENGTHS, tolerance))


def test_collinear_features_cost_few_steps() -> None:
    features, labels = drawn_problem(2)
    doubled = np.hstack([features, features, np.zeros((len(features), 3))])
    once, twice = (logistic_path(x, labels, STRENGTHS, 1e-7, max_iterations=300)[-1] for x in (features, doubled))
    assert twice.converged
    assert once.converged
    width = features.shape[1]
    np.testing.assert_allclose(twice.coefficients[:, :width], twice.coefficients[:, width : 2 * width], atol=1e-6)
    assert not twice.coefficients[:, 2 * width :].any()


def test_a_fit_that_is_cut_short_says_so() -> None:
    features, labels = drawn_problem(3)
    assert not logistic_path(features, labels, (10.0,), max_iterations=1)[0].converged

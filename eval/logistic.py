"""L2 logistic regression over a whole path of strengths: the solver of the fair protocol.

The optimum is scikit-learn's: sum of the (weighted) cross-entropies times C, plus half the squared coefficients,
intercepts free; multinomial for more than two classes. What differs is the way there. Features are rotated once
onto their principal axes, which changes no L2 solution and makes the Hessian nearly diagonal; L-BFGS then runs in
coordinates scaled by that diagonal, from the solution of the next stronger regularisation. Collinear features,
of which encoders have many, cost a plain L-BFGS a hundred times as many steps.
Dimensions: n samples, D features, R rotated features, C classes, K columns (1 for two classes, else C).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

_BINARY = 2
_MEMORY = 20  # pairs that L-BFGS keeps; a pair costs little beside a pass over the features
_FLOOR = 1e-8  # of a curvature: without it a saturated class would have an endless step


@dataclass(frozen=True)
class Logistic:
    """A fitted classifier.

    Attributes:
        coefficients: (K, D) for standardised features, as scikit-learn's `coef_`.
        intercepts: (K,), for more than two classes with the sum 0.
        scaler: standardises raw features with the statistics of the fitted ones.
        converged: whether no entry of the gradient of the mean loss, on the principal axes, is above the tolerance.

    """

    coefficients: np.ndarray
    intercepts: np.ndarray
    scaler: StandardScaler
    converged: bool

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(m, C) float64 probabilities of raw features (m, D)."""
        standardised = np.asarray(self.scaler.transform(features.astype(np.float64)))
        return _probabilities(standardised @ self.coefficients.T + self.intercepts)


@dataclass(frozen=True)
class _Problem:
    """Rotated features (n, R), one-hot labels (n, K), weights of the samples (n, 1) with the mean 1."""

    rotated: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    def logits(self, solution: np.ndarray) -> np.ndarray:
        """(n, K) of a solution (R + 1, K), its last row the intercepts."""
        return np.asarray(self.rotated @ solution[:-1] + solution[-1])

    def loss_and_slope(self, solution: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        """Mean loss with the penalty, and its gradient (R + 1, K)."""
        logits = self.logits(solution)
        binary = logits.shape[1] == 1
        ceiling = np.logaddexp(0, logits) if binary else logsumexp(logits, axis=1, keepdims=True)
        chances = expit(logits) if binary else np.exp(logits - ceiling)
        loss = (self.weights * ceiling).sum() - (self.weights * self.targets * logits).sum()
        residual = self.weights * (chances - self.targets) / len(logits)
        slope = np.vstack([self.rotated.T @ residual + penalty * solution[:-1], residual.sum(axis=0)])
        return loss / len(logits) + penalty / 2 * (solution[:-1] ** 2).sum(), slope

    def curvature(self, solution: np.ndarray, penalty: float) -> np.ndarray:
        """Diagonal of the Hessian, (R + 1, K)."""
        logits = self.logits(solution)
        chances = expit(logits) if logits.shape[1] == 1 else softmax(logits, axis=1)
        spread = self.weights * chances * (1 - chances) / len(logits)
        return np.vstack([(self.rotated**2).T @ spread + penalty, spread.sum(axis=0)]) + _FLOOR


def logistic_path(
    features: np.ndarray,
    labels: np.ndarray,
    strengths: Sequence[float],
    tolerance: float = 1e-5,
    max_iterations: int = 2000,
    balanced: bool = False,
) -> list[Logistic]:
    """One classifier per strength, each starting where the one before ended.

    Args:
        features: (n, D) raw, finite; standardised here.
        labels: (n,) integers 0..C-1, every class present.
        strengths: scikit-learn's C, ascending.
        tolerance: largest gradient entry of the mean loss at which a fit stops.
        max_iterations: of L-BFGS per fit.
        balanced: whether every class has the same weight in the loss (scikit-learn's class_weight="balanced").

    """
    features = features.astype(np.float64)
    scaler = StandardScaler().fit(features)
    standardised = np.asarray(scaler.transform(features))
    axes = _principal_axes(standardised)
    targets = np.eye(int(labels.max()) + 1)[labels]
    targets = targets[:, 1:] if targets.shape[1] == _BINARY else targets
    weights = compute_sample_weight("balanced" if balanced else None, labels)[:, None]
    problem = _Problem(standardised @ axes, targets, weights)
    solution, path = np.zeros((axes.shape[1] + 1, targets.shape[1])), []
    for strength in strengths:
        solution, converged = _solve(problem, solution, 1 / (strength * len(labels)), tolerance, max_iterations)
        intercepts = solution[-1] - (solution[-1].mean() if len(solution[-1]) > 1 else 0)
        path.append(Logistic((axes @ solution[:-1]).T, intercepts, scaler, converged))
    return path


def _principal_axes(standardised: np.ndarray) -> np.ndarray:
    """(D, R) orthonormal, R the smaller of n and D: an L2-penalised solution lies in the span of its samples."""
    if len(standardised) >= standardised.shape[1]:
        return np.asarray(np.linalg.eigh(standardised.T @ standardised)[1])
    return np.asarray(np.linalg.svd(standardised, full_matrices=False)[2].T)


def _solve(
    problem: _Problem, start: np.ndarray, penalty: float, tolerance: float, max_iterations: int
) -> tuple[np.ndarray, bool]:
    """Solution (R + 1, K) and whether it converged."""
    scale = 1 / np.sqrt(problem.curvature(start, penalty))

    def scaled(point: np.ndarray) -> tuple[float, np.ndarray]:
        loss, slope = problem.loss_and_slope(scale * point.reshape(scale.shape), penalty)
        return loss, (scale * slope).ravel()

    # The scaled gradient bounds the plain one by the smallest scale; losses say nothing this close to the optimum.
    options = {"gtol": tolerance * scale.min(), "ftol": 0, "maxcor": _MEMORY}
    limits = {"maxiter": max_iterations, "maxfun": 10 * max_iterations}
    found = minimize(scaled, (start / scale).ravel(), jac=True, method="L-BFGS-B", options=options | limits)
    solution = scale * found.x.reshape(scale.shape)
    slope = problem.loss_and_slope(solution, penalty)[1]
    return solution, bool(np.abs(slope).max() <= tolerance)


def _probabilities(logits: np.ndarray) -> np.ndarray:
    if logits.shape[1] == 1:
        positive = expit(logits)
        return np.hstack([1 - positive, positive])
    return np.asarray(softmax(logits, axis=1))

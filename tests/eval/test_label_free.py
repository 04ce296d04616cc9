"""Measures without labels, against what is known in closed form."""

import numpy as np
import pytest
from scipy.linalg import eigh
from scipy.spatial.distance import pdist

from eval.label_free import alpha_req, dispersion, label_free, lidar, rankme, uniformity
from sharding.recording import InputError

WIDTH = 16


def normal(num: int, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num, width))


def of_spectrum(eigenvalues: np.ndarray, num: int = 200) -> np.ndarray:
    """Features whose covariance has just these eigenvalues, about a mean that is not 0."""
    raw = normal(num, len(eigenvalues))
    left = np.linalg.qr(raw - raw.mean(axis=0))[0]
    turn = np.linalg.qr(normal(len(eigenvalues), len(eigenvalues), seed=1))[0]
    return np.asarray((left * np.sqrt(eigenvalues)) @ turn + 3)


def test_rankme_is_the_number_of_equal_directions() -> None:
    assert rankme(of_spectrum(np.ones(WIDTH))) == pytest.approx(WIDTH)
    assert rankme(normal(20000)) == pytest.approx(WIDTH, rel=0.01)
    assert rankme(np.outer(normal(50)[:, 0], np.ones(WIDTH))) == pytest.approx(1, abs=1e-6)
    assert rankme(np.full((50, WIDTH), 0.1)) == pytest.approx(1)


def test_rankme_is_the_published_formula_on_centred_features() -> None:
    features = normal(40)
    values = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    shares = values / values.sum()
    assert rankme(features) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.5])
def test_alpha_is_the_exponent_of_the_spectrum(exponent: float) -> None:
    features = of_spectrum(np.arange(1, 41.0) ** -exponent)
    assert alpha_req(features) == pytest.approx(exponent, abs=1e-6)
    assert alpha_req(1e-3 * features) == pytest.approx(exponent, abs=1e-6)


def test_alpha_of_fewer_samples_than_features_counts_what_can_vary() -> None:
    assert 0 < alpha_req(normal(10, 200)) < 0.5
    assert alpha_req(np.full((10, 200), 0.1)) == 0
    assert alpha_req(np.outer(np.arange(10), np.ones(8))) > 5


def clips_around(means: np.ndarray, per_clip: int = 20, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    clips = np.repeat(np.arange(len(means)), per_clip)
    return means[clips] + noise * normal(len(clips), means.shape[1], seed=2), clips


def test_lidar_counts_directions_in_which_clips_differ() -> None:
    spread, clips = clips_around(30 * normal(2000), per_clip=3)
    assert lidar(spread, clips) == pytest.approx(WIDTH, rel=0.02)
    line = np.outer(1000 * normal(200)[:, 0], np.eye(WIDTH)[0])
    assert lidar(*clips_around(line)) == pytest.approx(1, abs=0.05)


def test_lidar_is_the_generalised_eigenvalue_problem_and_knows_no_scale() -> None:
    features, clips = clips_around(normal(12))
    parts = [features[clips == clip] for clip in range(12)]
    within = np.mean([np.cov(part.T, bias=True) for part in parts], axis=0)
    between = np.cov(np.stack([part.mean(axis=0) for part in parts]).T, bias=True)
    values = eigh(between, within, eigvals_only=True)
    shares = values[values > 1e-9] / values[values > 1e-9].sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert lidar(features, clips) == pytest.approx(expected, rel=1e-3)
    assert lidar(1e4 * features, clips) == pytest.approx(lidar(features, clips))
    alone = np.concatenate([features, 100 * normal(1)])
    assert lidar(alone, np.append(clips, 99)) == pytest.approx(lidar(features, clips))
    assert lidar(np.full((6, 4), 0.1), np.array([0, 0, 1, 1, 2, 2])) == 1


def test_uniformity_of_known_arrangements() -> None:
    assert uniformity(np.full((5, 3), 0.7)) == pytest.approx(0, abs=1e-9)
    assert uniformity(np.array([[2.0, 0], [-1.0, 0]])) == pytest.approx(-8)
    assert uniformity(3 * np.eye(6)) == pytest.approx(-4)
    features = normal(30)
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert uniformity(features) == pytest.approx(np.log(np.exp(-2 * pdist(directions) ** 2).mean()))


def test_uniformity_of_many_samples_is_that_of_a_draw() -> None:
    features = normal(6000)
    assert uniformity(features) == uniformity(features)
    assert uniformity(features) == pytest.approx(uniformity(features, seed=1), abs=0.02)


def test_dispersion_is_the_mean_squared_angle() -> None:
    assert dispersion(np.eye(2)) == pytest.approx((np.pi / 4) ** 2)
    assert dispersion(np.full((9, 5), 0.3)) == pytest.approx(0, abs=1e-12)
    angle = 1e-3
    small = np.array([[np.cos(angle), np.sin(angle)], [np.cos(angle), -np.sin(angle)]])
    assert dispersion(100 * small) == pytest.approx(angle**2, rel=1e-6)


def test_all_measures_by_name() -> None:
    features, clips = clips_around(normal(5))
    found = label_free(features.astype(np.float32), clips)
    assert set(found) == {"rankme", "lidar", "alpha_req", "uniformity", "dispersion"}
    assert found["lidar"] == pytest.approx(lidar(features, clips), rel=1e-4)
    assert "lidar" not in label_free(features)
    assert "lidar" not in label_free(features, np.arange(len(features)))
    text = np.array([f"infant {clip}" for clip in clips])
    assert label_free(features, text) == label_free(features, clips)


def test_what_is_refused() -> None:
    features = normal(4)
    with pytest.raises(InputError, match=r"features have shape \(16,\); \(n, D\), n above 1"):
        rankme(features[0])
    with pytest.raises(InputError, match="1 of 64 features are not finite"):
        label_free(np.where(np.arange(64).reshape(4, 16) == 3, np.nan, features))
    with pytest.raises(InputError, match=r"clips have shape \(3,\); \(4,\) is needed"):
        label_free(features, np.arange(3))
    with pytest.raises(InputError, match="LiDAR: 1 clips have two samples or more"):
        lidar(features, np.array([0, 0, 1, 2]))

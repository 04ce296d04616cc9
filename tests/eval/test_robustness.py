"""Degraded frames: what each kind does to a frame, and what none of them may touch."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from eval.robustness import KINDS, SEVERITIES, Kind, degrade, relative_drop
from sharding.recording import InputError

SIDE = 48
KEYS = np.array(["a/0", "a/1", "b/0"])


def made_squares() -> np.ndarray:
    squares = np.zeros((3, 2, SIDE, SIDE), dtype=np.uint8)
    squares[:, 1, 4:44, 8:40] = 255
    squares[:, 0] = np.random.default_rng(0).integers(60, 200, (3, SIDE, SIDE))
    squares[:, 0][squares[:, 1] == 0] = 0
    return squares


def flat_square(level: int = 120) -> np.ndarray:
    squares = np.zeros((1, 2, SIDE, SIDE), dtype=np.uint8)
    squares[:, 1, 4:44, 8:40] = 255
    squares[0, 0][squares[0, 1] > 0] = level
    return squares


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_inside_changes_and_more_so_with_severity(kind: Kind) -> None:
    squares = made_squares()
    before, inside = squares.copy(), squares[:, 1] > 0
    changes = []
    for severity in SEVERITIES:
        degraded = degrade(squares, kind, severity, KEYS)
        assert degraded.dtype == np.uint8
        assert (degraded[:, 1] == squares[:, 1]).all()
        assert not degraded[:, 0][~inside].any()
        changes.append(np.abs(degraded[:, 0].astype(float) - squares[:, 0])[inside].mean())
    assert 0 < changes[0] < changes[1] < changes[2]
    assert (squares == before).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_comes_out_the_same_in_any_order_and_batch(kind: Kind) -> None:
    squares = made_squares()
    together = degrade(squares, kind, 2, KEYS)
    turned = degrade(squares[::-1], kind, 2, KEYS[::-1])
    alone = degrade(squares[1:2], kind, 2, KEYS[1:2])
    assert (turned[::-1] == together).all()
    assert (alone[0] == together[1]).all()


@pytest.mark.parametrize("kind", ["speckle", "shadow"])
def test_key_and_seed_choose_what_is_drawn(kind: Kind) -> None:
    square = flat_square()
    first = degrade(square, kind, 2, np.array(["a"]))
    assert (first != degrade(square, kind, 2, np.array(["b"]))).any()
    assert (first != degrade(square, kind, 2, np.array(["a"]), seed=1)).any()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_is_a_gaussian_of_the_papers_width_and_pulls_in_no_black(severity: int) -> None:
    squares = made_squares()
    blurred = degrade(squares, "blur", severity, KEYS)[0, 0].astype(float)
    reference = gaussian_filter(squares[0, 0].astype(float), severity, truncate=2.0)
    middle = (slice(12, 36), slice(16, 32))
    assert np.abs(blurred[middle] - reference[middle]).max() <= 1
    assert (degrade(flat_square(), "blur", severity, KEYS[:1]) == flat_square()).all()


@pytest.mark.parametrize(("severity", "share"), [(1, 0.7), (2, 0.5), (3, 0.3)])
def test_contrast_shrinks_towards_the_regions_median(severity: int, share: float) -> None:
    squares = made_squares()
    inside = squares[0, 1] > 0
    before = squares[0, 0][inside].astype(float)
    after = degrade(squares, "contrast", severity, KEYS)[0, 0][inside]
    assert np.abs(after - (np.median(before) + share * (before - np.median(before)))).max() <= 0.5


def test_speckle_is_multiplicative_correlated_and_of_the_papers_strength() -> None:
    side = 256
    squares = np.full((1, 2, side, side), 255, dtype=np.uint8)
    squares[0, 0] = 100
    squares[0, 0, :, side // 2 :] = 50
    noise = degrade(squares, "speckle", 1, KEYS[:1])[0, 0] / squares[0, 0] - 1
    halves = noise[:, : side // 2], noise[:, side // 2 :]
    assert [half.std() for half in halves] == pytest.approx([0.35, 0.35], abs=0.02)
    neighbours = np.corrcoef(halves[0][:, 1:].ravel(), halves[0][:, :-1].ravel())[0, 1]
    assert neighbours == pytest.approx(np.exp(-1 / (4 * 0.5**2)), abs=0.12)  # of a Gaussian of sd 0.5, in pixels


def test_gain_goes_either_way() -> None:
    keys = np.array([f"{number}" for number in range(40)])
    squares = np.repeat(flat_square(), 40, axis=0)
    levels = degrade(squares, "gain", 1, keys)[:, 0, 20, 20].astype(int) - 120
    assert set(levels.tolist()) <= {25, 26, -25, -26}
    assert 10 < (levels > 0).sum() < 30


def test_attenuation_grows_with_depth_from_the_regions_top() -> None:
    column = degrade(flat_square(200), "attenuation", 2, KEYS[:1])[0, 0, 4:44, 20].astype(int)
    assert column[0] == 200
    assert column[-1] == 200 - 85
    assert (np.diff(column) < 0).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_shadow_darkens_some_columns_from_a_depth_to_the_bottom(severity: int) -> None:
    for key in ("a", "b", "c"):
        loss = 200 - degrade(flat_square(200), "shadow", severity, np.array([key]))[0, 0, 4:44, 8:40].astype(int)
        depths = np.flatnonzero(loss.any(axis=1))
        assert depths[0] <= 20
        assert depths[-1] == 39
        assert (loss[depths] == loss[-1]).all()
        assert 0 < (loss[-1] > 64).mean() <= 0.1 * severity + 0.04


def test_a_frame_without_a_region_counts_as_one() -> None:
    squares = np.full((1, 2, SIDE, SIDE), 100, dtype=np.uint8)
    whole = squares.copy()
    squares[:, 1], whole[:, 1] = 0, 255
    assert (
        degrade(squares, "attenuation", 1, KEYS[:1])[:, 0] == degrade(whole, "attenuation", 1, KEYS[:1])[:, 0]
    ).all()


def test_relative_drop() -> None:
    assert relative_drop(0.8, 0.6) == pytest.approx(0.25)
    assert relative_drop(0.5, 0.6) < 0
    with pytest.raises(InputError, match=r"the clean score is 0\.0; .* above 0"):
        relative_drop(0.0, 0.1)


def test_what_is_refused() -> None:
    squares = made_squares()
    with pytest.raises(InputError, match="kind fog: is none of blur, contrast"):
        degrade(squares, "fog", 1, KEYS)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="severity is 4; one of 1, 2, 3"):
        degrade(squares, "blur", 4, KEYS)
    with pytest.raises(InputError, match=r"squares are float64 of shape .*; uint8 \(n, 2, S, S\)"):
        degrade(squares / 255, "blur", 1, KEYS)
    with pytest.raises(InputError, match=r"keys have shape \(2,\); \(3,\)"):
        degrade(squares, "blur", 1, KEYS[:2])

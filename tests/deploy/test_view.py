"""The pictures of the page: the outline lies on the region, the map tells unlike patches apart."""

import base64

import cv2
import numpy as np

from deploy.view import outlined, principal_map

RNG = np.random.default_rng(0)


def opened(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)


def half() -> np.ndarray:
    """A square whose left half is the region."""
    square = np.zeros((2, 64, 64), np.uint8)
    square[:, :, :32] = np.array([100, 255], np.uint8)[:, None, None]
    return square


def test_the_outline_is_on_the_border_of_the_region() -> None:
    picture = opened(outlined(half()))
    coloured = picture.max(axis=2) != picture.min(axis=2)
    assert coloured[:, 31].all()
    assert not coloured[1:-1, 1:31].any()
    assert not picture[:, 32:].any()


def test_like_patches_have_like_colours_and_none_outside() -> None:
    kinds = RNG.normal(size=(2, 24))
    patches = np.repeat(kinds, 8, axis=0) + RNG.normal(size=(16, 24)) * 1e-3  # two rows of four each
    picture = opened(principal_map(half(), patches.astype(np.float32))).astype(int)
    assert not picture[:, 32:].any()
    top, bottom = picture[:32, :32], picture[32:, :32]
    assert np.abs(top[8, 8] - bottom[8, 8]).max() > 200
    assert np.ptp(top[..., 2]) < 40  # red: the first component, which tells the kinds apart
    assert (opened(principal_map(half(), patches.astype(np.float32))) == picture).all()


def test_a_single_patch_or_like_ones_are_no_error() -> None:
    for patches in (np.ones((1, 24), np.float32), np.ones((16, 24), np.float32)):
        assert opened(principal_map(half(), patches)).shape == (64, 64, 3)

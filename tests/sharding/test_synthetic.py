"""Generated recordings: what is true of the pixels, and what tells the tissue classes apart."""

from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sharding.recording import InputError
from sharding.sources.synthetic import NUM_TISSUES, Geometry, SyntheticSpec, generate
from sharding.sources.synthetic_screen import BANNER_SHARE

GEOMETRIES: tuple[Geometry, ...] = ("fan", "curved", "linear")
SIZES = [(240, 320), (96, 128), (480, 360), (241, 641)]
SPEC = SyntheticSpec("fan", 1, num_frames=4, seed=3)
NUM_SEEDS = 30


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equal_specs_give_equal_pixels(geometry: Geometry) -> None:
    spec = replace(SPEC, geometry=geometry)
    first, second = generate(spec), generate(replace(spec))
    assert np.array_equal(first.frames, second.frames)
    assert np.array_equal(first.region, second.region)
    assert np.array_equal(first.glyphs, second.glyphs)


@pytest.mark.parametrize("change", [{"seed": 4}, {"patient_id": "other"}, {"tissue": 2}, {"geometry": "linear"}])
def test_another_spec_gives_another_tissue(change: dict[str, int | str]) -> None:
    spec = replace(SPEC, **change)  # type: ignore[arg-type] # of the field's own type
    assert not np.array_equal(generate(SPEC).frames[:, 30:], generate(spec).frames[:, 30:])


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_sector_holds_no_glyph_and_stays_clear_of_the_banner(geometry: Geometry, height: int, width: int) -> None:
    made = generate(replace(SPEC, geometry=geometry, height=height, width=width, num_frames=2))
    near = cv2.dilate(made.region.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    assert not (made.glyphs & near).any()
    assert not made.region[: round(BANNER_SHARE * height) + 1].any()
    assert 0.2 < made.region.mean() < 0.8


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("colour", [False, True])
def test_what_is_lit_is_sector_or_glyph(geometry: Geometry, colour: bool) -> None:
    made = generate(replace(SPEC, geometry=geometry, colour=colour))
    assert made.frames.shape == made.glyphs.shape + (3,) * colour
    assert made.frames.dtype == np.uint8
    lit = made.frames.any(axis=-1) if colour else made.frames > 0
    assert np.array_equal(lit, made.glyphs | made.region)


def test_tissue_in_colour_is_the_grey_tissue() -> None:
    grey, colour = generate(SPEC), generate(replace(SPEC, colour=True))
    assert np.array_equal(colour.frames[:, grey.region], np.repeat(grey.frames[:, grey.region, None], 3, axis=-1))


def test_without_banner_nothing_is_drawn_over_the_same_tissue() -> None:
    plain, drawn = generate(replace(SPEC, banner=False)), generate(SPEC)
    assert not plain.glyphs.any()
    assert drawn.glyphs.any()
    assert np.array_equal(plain.frames[:, plain.region], drawn.frames[:, drawn.region])


def test_the_clock_changes_in_every_frame_and_nothing_else_of_the_screen_does() -> None:
    glyphs = generate(replace(SPEC, num_frames=30)).glyphs
    assert all((a != b).any() for a, b in pairwise(glyphs))
    rows, columns = np.nonzero(glyphs.any(axis=0) & ~glyphs.all(axis=0))
    assert columns.min() > 0.7 * SPEC.width
    assert rows.max() < BANNER_SHARE * SPEC.height


def test_the_name_is_drawn_also_when_it_is_long() -> None:
    first = generate(replace(SPEC, patient_name="Adelheid^" + "Quorvath" * 12))
    second = generate(replace(SPEC, patient_name="Adelheid^" + "Quorvath" * 11))
    assert (first.glyphs != second.glyphs).any()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("tissue", range(NUM_TISSUES))
def test_the_sector_moves_everywhere_and_is_nowhere_black(geometry: Geometry, tissue: int) -> None:
    made = generate(SyntheticSpec(geometry, tissue, seed=tissue))
    inside = made.frames[:, made.region].astype(np.float32)
    deviation = inside.std(axis=0)
    assert (deviation > 2.5).mean() > 0.97
    assert deviation.mean() > 8
    assert inside.min() > 0
    assert inside.mean(axis=0).min() > 12


@pytest.mark.parametrize("tissue", range(NUM_TISSUES))
def test_neighbouring_frames_are_more_alike_than_distant_ones(tissue: int) -> None:
    made = generate(replace(SPEC, tissue=tissue, num_frames=16))
    change = made.frames[:, made.region] - made.frames[:, made.region].mean(axis=0)
    alike = np.corrcoef(change)
    assert np.diagonal(alike, 1).mean() > np.diagonal(alike, 4).mean() + 0.2


@pytest.mark.parametrize(
    ("field", "value"),
    [("geometry", "round"), ("tissue", 3), ("num_frames", 0), ("height", 95), ("width", 100), ("seed", -1)],
)
def test_a_spec_out_of_range_is_refused_with_name_and_value(field: str, value: int | str) -> None:
    with pytest.raises(InputError, match=f"{field} is .?{value}.*must be"):
        replace(SPEC, **{field: value})  # type: ignore[arg-type] # wrong on purpose


# --- classes


def first_frame(tissue: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    patient = f"{tissue}-{seed}"
    made = generate(SyntheticSpec(GEOMETRIES[seed % 3], tissue, num_frames=1, seed=seed, patient_id=patient))
    inner = cv2.erode(made.region.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
    return made.frames[0].astype(np.float32), inner


def texture_of(frame: np.ndarray, inner: np.ndarray) -> tuple[float, float, float]:
    """Mean grey level, skewness of the fine detail, and coarse over fine detail."""
    fine = (frame - cv2.GaussianBlur(frame, (0, 0), 6))[inner]
    coarse = (cv2.GaussianBlur(frame, (0, 0), 3) - cv2.GaussianBlur(frame, (0, 0), 10))[inner]
    skewness = ((fine - fine.mean()) ** 3).mean() / fine.std() ** 3
    return float(frame[inner].mean()), float(skewness), float(coarse.std() / fine.std())


@pytest.fixture(scope="module")
def textures() -> np.ndarray:
    """(tissue, seed, statistic)."""
    return np.array([[texture_of(*first_frame(t, s)) for s in range(NUM_SEEDS)] for t in range(NUM_TISSUES)])


def auroc(textures: np.ndarray, tissues: tuple[int, int], statistic: int) -> float:
    scores = textures[tissues, :, statistic].ravel()
    return float(roc_auc_score(np.repeat([0, 1], NUM_SEEDS), scores))


@pytest.mark.parametrize(("tissues", "statistic"), [((0, 1), 1), ((0, 2), 1), ((1, 2), 2)])
def test_texture_tells_the_tissues_apart_and_mean_brightness_does_not(
    textures: np.ndarray, tissues: tuple[int, int], statistic: int
) -> None:
    assert 0.25 < auroc(textures, tissues, 0) < 0.75
    assert auroc(textures, tissues, statistic) > 0.85

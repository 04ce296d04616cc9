"""Boxes that a source declares for something else, and what `public` keeps where nothing is certified."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from sharding.preprocess import cut_clips
from sharding.profiles import Profile
from sharding.recording import Box, FrameChoice, Reason, Recording, Rejected
from sharding.region import find_regions
from sharding.sources import read
from tests.cases.scans import cine, us_dataset

CHOICE = FrameChoice()
FRAMES = cine(12)  # 240 x 320
ROWS, COLUMNS = FRAMES.shape[1:]
EVERYWHERE = ((0, 0), (COLUMNS - 1, 0), (COLUMNS - 1, ROWS - 1), (0, ROWS - 1))
PROFILES = (Profile("acme", "one", ROWS, COLUMNS, EVERYWHERE, ("K. Example", "2026-11-01", 10)),)


def plain(frames: np.ndarray = FRAMES) -> Recording:
    return Recording(frames, np.arange(len(frames)), "dicom", "p", "c")


def flat_but_one() -> np.ndarray:
    """A still without a sector in it."""
    still = np.zeros((1, ROWS, COLUMNS), np.uint8)
    still[0, 3, 3] = 90
    return still


PATHS = {  # a recording, and how its pixels are certified
    "tag": (replace(plain(), regions=((5, 5, 314, 234),), mm_per_pixel=(None,)), "certified"),
    "motion": (plain(), "certified"),
    "profile": (replace(plain(), device=("ACME", "One")), "certified"),
    "sector": (plain(FRAMES[:1]), "public"),
    "whole": (plain(flat_but_one()), "public"),
    "mask": (replace(plain(), mask=FRAMES.max(axis=0) > 0), "public"),
    "empty tag": (replace(plain(FRAMES[:1]), regions=((0, 200, 40, 239),), mm_per_pixel=(None,)), "public"),
}


def covered(box: Box) -> np.ndarray:
    """(H, W) bool, true in a box, pixel by pixel."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    x0, y0, x1, y1 = box
    return np.asarray((x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1))


boxes = st.tuples(
    st.integers(-60, COLUMNS + 20), st.integers(-60, ROWS + 20), st.integers(-60, COLUMNS + 60), st.integers(-60, ROWS)
)


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=12, deadline=None)
@given(excluded=st.lists(boxes, min_size=1, max_size=3))
@example(excluded=[(0, 180, 319, 239)])
@example(excluded=[(0, -50, 319, -10)])  # outside the picture: it excludes nothing
@example(excluded=[(0, 0, 319, 239)])  # everything
def test_an_excluded_box_is_never_kept(path: str, excluded: list[Box]) -> None:
    recording, pixels = PATHS[path]
    recording = replace(recording, excluded=tuple(excluded))
    try:
        regions = find_regions(recording, pixels, PROFILES)
    except Rejected:
        return
    for region in regions:
        assert region.mask.any()
        for box in excluded:
            assert not (region.mask & covered(box)).any()


@pytest.mark.parametrize("path", PATHS)
def test_what_is_not_excluded_is_kept(path: str) -> None:
    recording, pixels = PATHS[path]
    [whole] = find_regions(recording, pixels, PROFILES)
    box = (0, 120, COLUMNS - 1, ROWS - 1)
    [less] = find_regions(replace(recording, excluded=(box, (0, -50, 319, -10))), pixels, PROFILES)
    assert whole.mask[120:].any()
    assert less.mask.sum() > 0.8 * whole.mask[:120].sum()


def test_an_invalid_tissue_box_leaves_the_exclusions(tmp_path: Path) -> None:
    """One box beyond the picture condemns the tissue boxes; the ECG is still where it is."""
    dataset = us_dataset(FRAMES)
    tissue = dataset.SequenceOfUltrasoundRegions[0]
    tissue.RegionLocationMaxX1 = 5000
    ecg = Dataset()
    ecg.RegionSpatialFormat, ecg.RegionDataType, ecg.RegionFlags = 2, 0xA, 0
    ecg.RegionLocationMinX0, ecg.RegionLocationMinY0, ecg.RegionLocationMaxX1, ecg.RegionLocationMaxY1 = (
        0,
        150,
        319,
        239,
    )
    dataset.SequenceOfUltrasoundRegions = [tissue, ecg]
    dataset.PixelData = FRAMES.tobytes()
    dataset.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    recording = read(tmp_path / "x.dcm", "x", CHOICE)
    assert recording.regions is None
    for pixels in ("certified", "public"):
        [region] = find_regions(recording, pixels)
        assert region.certificate == "motion"
        assert not region.mask[150:].any()


@pytest.mark.parametrize("regions", [None, ((0, 200, 40, 239),), ((0, 200, 40, 239), (280, 200, 319, 239))])
def test_public_keeps_what_has_no_certificate(regions: tuple[Box, ...] | None) -> None:
    """Declared boxes without a sector in them change nothing about a still that the user vouches for."""
    still = plain(FRAMES[:1])
    declared = replace(still, regions=regions, mm_per_pixel=(None,) * len(regions or ()))
    [clip] = cut_clips(declared, CHOICE, "public")
    [as_without] = cut_clips(still, CHOICE, "public")
    assert clip.certificate == as_without.certificate == "public"
    np.testing.assert_array_equal(clip.frames, as_without.frames)
    with pytest.raises(Rejected) as refused:
        cut_clips(declared, CHOICE)
    assert refused.value.reason == (Reason.UNCERTIFIED_STILL if regions is None else Reason.NO_CONE)


def test_public_keeps_the_whole_where_no_sector_is_found() -> None:
    for declared in ({}, {"regions": ((0, 200, 40, 239),), "mm_per_pixel": (None,)}, {"device": ("ACME", "One")}):
        recording = replace(plain(flat_but_one()), **declared)  # type: ignore[arg-type]
        [clip] = cut_clips(recording, CHOICE, "public", PROFILES)
        assert (clip.certificate, clip.region.all()) == ("public", True)

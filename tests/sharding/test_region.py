"""Regions by every way that leads to one: what is declared for something else stays out, and public keeps the rest."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.profiles import load_profiles
from sharding.recording import Box, Reason, Recording, Rejected
from sharding.region import find_regions
from sharding.sources.synthetic import SyntheticSpec, generate
from tests.sharding.test_pixels import PROFILE

WHOLE = (0, 0, 319, 239)


def recording(**known: object) -> Recording:
    made = generate(SyntheticSpec("fan", 0, num_frames=12))
    of = Recording(made.frames, np.arange(len(made.frames)), "dicom", "p", "c")
    return replace(of, **known)  # type: ignore[arg-type]


def ways(tmp_path: Path) -> dict[str, tuple[Recording, str]]:
    """One recording for each way to a region, and the setting that leads there."""
    (tmp_path / "p.yaml").write_text(PROFILE)
    still = recording(frames=recording().frames[:1], frame_ids=np.arange(1))
    return {
        "tag": (recording(regions=(WHOLE,), mm_per_pixel=(None,)), "certified"),
        "motion": (recording(), "certified"),
        "profile": (recording(device=("acme ultrasound", "Scan 3000")), "certified"),
        "public": (still, "public"),
        "mask": (replace(still, mask=np.ones((240, 320), dtype=bool)), "public"),
    }


@settings(max_examples=15, deadline=None)
@given(
    box=st.tuples(st.integers(0, 250), st.integers(0, 200), st.integers(10, 120), st.integers(10, 120)),
    way=st.sampled_from(["tag", "motion", "profile", "public", "mask"]),
)
def test_a_box_declared_for_something_else_is_never_kept(
    tmp_path_factory: pytest.TempPathFactory, box: Box, way: str
) -> None:
    folder = tmp_path_factory.mktemp("p")
    made, pixels = ways(folder)[way]
    x, y, width, height = box
    other = (x, y, x + width, y + height)
    try:
        regions = find_regions(replace(made, excluded=(other,)), pixels, load_profiles(folder / "p.yaml"))
    except Rejected:
        return
    assert regions
    assert not any(region.mask[y : y + height + 1, x : x + width + 1].any() for region in regions)


@pytest.mark.parametrize("way", ["tag", "motion", "profile", "public", "mask"])
def test_every_way_leads_to_its_region(tmp_path: Path, way: str) -> None:
    made, pixels = ways(tmp_path)[way]
    [region] = find_regions(replace(made, excluded=((0, 230, 30, 239),)), pixels, load_profiles(tmp_path / "p.yaml"))
    assert region.certificate == ("public" if way == "mask" else way)


def test_public_keeps_a_declared_frame_without_a_sector() -> None:
    dark = np.zeros((1, 240, 320), dtype=np.uint8)
    dark[0, ::9, ::9] = 40  # no solid area
    made = recording(frames=dark, frame_ids=np.arange(1))
    [region] = find_regions(made, "public")
    assert region.mask.all()
    [declared] = find_regions(replace(made, regions=(WHOLE,), mm_per_pixel=(None,)), "public")
    assert declared.mask.all()
    assert declared.certificate == "public"


def test_nothing_is_left_of_a_frame_that_is_declared_for_other_things() -> None:
    with pytest.raises(Rejected) as refusal:
        find_regions(recording(excluded=(WHOLE,)), "public")
    assert refusal.value.reason == Reason.NO_CONE

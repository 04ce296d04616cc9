"""What may be kept of a recording: certificates, coloured marks, frames, percentiles, copies."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.bench.phi import examine
from pipeline.bench.screens import draw
from sharding.marks import remove_marks
from sharding.preprocess import cut_clips
from sharding.profiles import find_profile, load_profiles
from sharding.recording import FrameChoice, InputError, Reason, Recording, Rejected
from sharding.region import find_regions
from sharding.sources import read
from sharding.sources.synthetic import Geometry, SyntheticSpec, generate
from sharding.sources.synthetic_files import write_dicom

CHOICE = FrameChoice(16)
PROFILE = """
- manufacturer: ACME Ultrasound
  model: Scan 3000
  rows: 240
  columns: 320
  polygon: [[20, 20], [300, 20], [300, 235], [20, 235]]
  reviewer: K. Example
  reviewed_on: 2026-11-01
  num_reviewed: 12
"""


def recording_of(spec: SyntheticSpec) -> Recording:
    made = generate(spec)
    frame_ids = CHOICE.decoded(len(made.frames))
    return Recording(made.frames[frame_ids], frame_ids, "dicom", "p", "c")


def refusal_of(recording: Recording, **how: object) -> Reason:
    with pytest.raises(Rejected) as refusal:
        cut_clips(recording, CHOICE, **how)  # type: ignore[arg-type]
    return refusal.value.reason


@pytest.mark.parametrize("geometry", get_args(Geometry))
@pytest.mark.parametrize("region_tag", [True, False])
def test_no_drawn_pixel_is_kept_and_most_of_the_sector_is(geometry: Geometry, region_tag: bool, tmp_path: Path) -> None:
    spec = SyntheticSpec(geometry, tissue=1, seed=5, num_frames=16, region_tag=region_tag)
    made = generate(spec)
    write_dicom(made, spec, tmp_path / "x.dcm")
    recording = read(tmp_path / "x.dcm", "x", CHOICE)
    [region] = find_regions(recording, "certified")
    assert region.certificate == ("tag" if region_tag else "motion")
    assert not made.glyphs.any(axis=0)[region.mask].any()
    assert (region.mask & made.region).sum() > 0.9 * made.region.sum()
    [clip] = cut_clips(recording, FrameChoice(4))
    assert len(clip.frames) == 4
    assert not clip.frames[:, ~clip.region].any()


@settings(max_examples=8, deadline=None)
@given(number=st.integers(0, 10_000))
@example(number=2371)  # a pane ten rows below the sector: both in one solid area
@example(number=4982)  # a scrolling spectrum under an ECG: no rectangle
def test_no_letter_beside_the_sector_is_kept(number: int) -> None:
    screen = draw(number, num_frames=9)
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in screen.recording.frames])
    recording = Recording(grey, np.arange(len(grey)), "video", "p", "c")
    try:
        regions = find_regions(recording, "certified")
    except Rejected:
        return
    for region in regions:
        assert not (screen.outside.any(axis=0) & region.mask).any()


def test_a_still_needs_a_certificate_and_a_profile_is_one(tmp_path: Path) -> None:
    still = recording_of(SyntheticSpec("fan", 0, num_frames=1))
    assert refusal_of(still) == Reason.UNCERTIFIED_STILL
    assert cut_clips(still, CHOICE, "public")[0].certificate == "public"
    (tmp_path / "p.yaml").write_text(PROFILE)
    profiles = load_profiles(tmp_path / "p.yaml")
    known = replace(still, device=("acme ULTRASOUND ", "Scan 3000"))
    [clip] = cut_clips(known, CHOICE, profiles=profiles)
    assert clip.certificate == "profile"
    assert refusal_of(replace(known, device=("acme ultrasound", "Scan 3001")), profiles=profiles)
    assert find_profile(profiles, known.device, (240, 321)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("num_reviewed: 12", "num_reviewed: 3"), r"0\.num_reviewed: Input should be greater than or equal to 10"),
        (("model:", "modell:"), r"0\.model: Field required"),
        (("[300, 20]", "[400, 20]"), r"corner \(400, 20\) is outside 320 x 240"),
        ((PROFILE, "profiles: none"), "the file: Input should be a valid list"),
        (("rows: 240", "rows: ["), "not YAML"),
    ],
)
def test_a_wrong_profile_is_named(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(PROFILE.replace(*change))
    with pytest.raises(InputError, match=message):
        load_profiles(tmp_path / "p.yaml")


def test_a_frozen_cine_is_refused() -> None:
    recording = recording_of(SyntheticSpec("fan", 0, num_frames=16))
    frozen = replace(recording, frames=np.repeat(recording.frames[:1], 16, axis=0))
    assert refusal_of(frozen) == Reason.NO_MOTION


def test_a_sector_that_stops_half_way_is_refused() -> None:
    recording = recording_of(SyntheticSpec("fan", 0, num_frames=16))
    frames = recording.frames.copy()
    frames[8:] = frames[7]
    assert refusal_of(replace(recording, frames=frames)) == Reason.NO_MOTION


@pytest.mark.parametrize("number", [38, 46, 150])
def test_a_scrolling_pane_is_no_sector(number: int, tmp_path: Path) -> None:
    screen = draw(number)
    assert "scrolling" in screen.kind
    finding, _ = examine(screen, tmp_path / "x.dcm")
    assert finding.outside == 0
    assert finding.kept > 0.9


def test_a_dual_screen_has_two_sectors(tmp_path: Path) -> None:
    screen = draw(10)
    write_dicom(screen.recording, screen.spec, tmp_path / "x.dcm")
    regions = find_regions(read(tmp_path / "x.dcm", "x", CHOICE), "certified")
    found = [(region.mask & screen.recording.region).sum() / region.mask.sum() for region in regions]
    assert len(regions) == 2
    assert min(found) > 0.99
    assert not (regions[0].mask & regions[1].mask).any()


def test_a_region_tag_without_a_sector_in_it_is_refused() -> None:
    recording = recording_of(SyntheticSpec("fan", 0, num_frames=16))
    corner = replace(recording, regions=((0, 180, 60, 239),), mm_per_pixel=(None,))
    assert refusal_of(corner) == Reason.NO_CONE


def test_a_declared_box_is_cut_by_what_else_is_declared() -> None:
    recording = recording_of(SyntheticSpec("linear", 0, num_frames=16))
    declared = replace(recording, regions=((0, 20, 319, 239),), mm_per_pixel=((0.2, 0.2),))
    [whole] = find_regions(declared, "certified")
    [less] = find_regions(replace(declared, excluded=((0, 180, 319, 239),)), "certified")
    assert less.mm_per_pixel == (0.2, 0.2)
    assert not less.mask[180:].any()
    assert whole.mask[180:].any()


def test_letters_over_the_sector_refuse_the_clip() -> None:
    recording = recording_of(SyntheticSpec("linear", 0, num_frames=16, height=300, width=400))
    frames = recording.frames.copy()
    for frame in frames:
        cv2.putText(frame, "QUORVATH Z", (130, 160), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 235, 1, cv2.LINE_AA)
    assert refusal_of(replace(recording, frames=frames)) == Reason.TEXT_IN_REGION
    assert cut_clips(recording, CHOICE)
    assert cut_clips(replace(recording, frames=frames), CHOICE, "public")


def marks_on(recording: Recording, share: float) -> Recording:
    """Coloured columns over a share of the picture."""
    colour = np.zeros_like(recording.frames)
    colour[:, :, : round(share * colour.shape[2])] = 200
    return replace(recording, colour=colour, regions=((0, 20, 319, 239),), mm_per_pixel=(None,))


def test_coloured_marks_are_painted_over_or_refuse_frame_or_clip() -> None:
    frames = np.full((3, 40, 40), 100, np.uint8)
    region = np.ones((40, 40), dtype=bool)
    colour = np.zeros_like(frames)
    frames[0, 10, 5:25], colour[0, 10, 5:25] = 255, 180  # a line: 1.25 %
    frames[1, :10], colour[1, :10] = 255, 180  # a quarter
    cleaned = remove_marks(frames, colour, region)
    assert cleaned.kept.tolist() == [True, False, True]
    assert cleaned.num_inpainted == 1
    assert np.abs(cleaned.frames.astype(int) - 100).max() <= 2
    with pytest.raises(Rejected, match="colour_overlay"):
        remove_marks(frames[1:2], colour[1:2], region)
    with pytest.raises(Rejected, match="colour_cast"):
        remove_marks(frames, np.full_like(frames, 90), region)
    jpeg_noise = np.random.default_rng(0).integers(0, 30, frames.shape).astype(np.uint8)
    assert remove_marks(frames, jpeg_noise, region).num_inpainted == 0


def test_a_tinted_recording_is_refused_and_as_is_keeps_it_whole() -> None:
    tinted = marks_on(recording_of(SyntheticSpec("linear", 0, num_frames=16)), share=1)
    assert refusal_of(tinted) == Reason.COLOUR_CAST
    [clip] = cut_clips(tinted, FrameChoice(4), "as_is")
    assert clip.certificate == "as_is"
    assert clip.region.all()


def test_a_mask_that_a_public_set_brings_is_the_region() -> None:
    recording = recording_of(SyntheticSpec("fan", 0, num_frames=1))
    mask = np.zeros((240, 320), dtype=bool)
    mask[60:200, 100:220] = True
    [clip] = cut_clips(replace(recording, mask=mask), CHOICE, "public")
    assert clip.region.shape == (140, 120)
    assert refusal_of(replace(recording, mask=mask)) == Reason.UNCERTIFIED_STILL


def test_equal_neighbours_are_dropped_and_counted() -> None:
    recording = recording_of(SyntheticSpec("fan", 0, num_frames=16))
    frames = recording.frames.repeat(2, axis=0)[:16]
    [clip] = cut_clips(replace(recording, frames=frames), CHOICE)
    assert clip.frame_ids.tolist() == list(range(0, 16, 2))
    assert clip.num_dropped == 8


def test_percentiles_are_those_of_the_pixels_inside() -> None:
    [clip] = cut_clips(recording_of(SyntheticSpec("curved", 0, num_frames=16)), CHOICE)
    expected = np.percentile(clip.frames[:, clip.region], (2, 98))
    assert np.abs(np.array(clip.percentiles) - expected).max() <= 1


def test_a_frame_shrinks_to_the_short_side_and_spacing_grows() -> None:
    recording = recording_of(SyntheticSpec("linear", 0, num_frames=16, height=800, width=1000))
    declared = replace(recording, regions=((0, 60, 999, 799),), mm_per_pixel=((0.1, 0.1),))
    [clip] = cut_clips(declared, FrameChoice(2))
    assert min(clip.region.shape) == 256
    [region] = find_regions(declared, "certified")
    rows = np.flatnonzero(region.mask.any(axis=1))
    assert clip.mm_per_pixel is not None
    assert clip.mm_per_pixel[1] == pytest.approx(0.1 * (rows[-1] + 1 - rows[0]) / clip.region.shape[0], rel=0.02)


@settings(max_examples=200, deadline=None)
@given(num_frames=st.integers(1, 400), max_frames=st.integers(1, 64), stride=st.integers(1, 20))
def test_stored_frames_are_decoded_ones(num_frames: int, max_frames: int, stride: int) -> None:
    choice = FrameChoice(max_frames, stride)
    stored, decoded = choice.stored(num_frames), choice.decoded(num_frames)
    assert 1 <= len(stored) <= max_frames
    assert len(set(stored.tolist())) == len(stored)
    assert not (stored % stride).any()
    assert set(stored.tolist()) <= set(decoded.tolist())
    assert decoded[-1] == num_frames - 1
    assert len(decoded) <= max_frames + 16

"""No frame that is stored shows letters, however few frames show them; verify looks at each of them."""

from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sharding.manifest import Manifest, ShardInfo
from sharding.preprocess import Clip, cut_clips
from sharding.recording import FrameChoice, InputError, Reason, Recording, Rejected
from sharding.sample import Meta, Sample, encode
from sharding.sources.synthetic import SyntheticSpec, generate
from sharding.store import Store
from sharding.verify import verify
from sharding.writer import write_shard

NAME = "SMITH JOHN 1947"


@cache
def cine(rows: int = 240, columns: int = 320) -> np.ndarray:
    frames = generate(SyntheticSpec("curved", 0, 64, rows, columns, seed=1, banner=False)).frames
    frames.flags.writeable = False
    return frames


def named(frames: np.ndarray, first: int, num_shown: int, at: tuple[int, int], scale: float, grey: int) -> np.ndarray:
    drawn = frames.copy()
    for frame in drawn[first : first + num_shown]:
        cv2.putText(frame, NAME, at, cv2.FONT_HERSHEY_SIMPLEX, scale, grey, 1, cv2.LINE_AA)
    return drawn


def cut(frames: np.ndarray) -> Clip:
    """As a recording whose region the scanner declares."""
    box = 0, 0, frames.shape[2] - 1, frames.shape[1] - 1
    tagged = Recording(frames, np.arange(len(frames)), "dicom", "p", "c", regions=(box,), mm_per_pixel=(None,))
    (clip,) = cut_clips(tagged, FrameChoice())
    return clip


def refusal(frames: np.ndarray) -> Reason:
    with pytest.raises(Rejected) as refused:
        cut(frames)
    return refused.value.reason


def test_without_a_name_the_cine_is_accepted() -> None:
    assert len(cut(cine()[:32]).frames) == 32
    assert len(cut(cine(480, 640)[:12]).frames) == 12


@settings(max_examples=25, deadline=None)
@given(st.integers(9, 32), st.integers(0, 63), st.integers(1, 4), st.sampled_from([0.4, 0.6]), st.integers(190, 255))
@example(32, 5, 4, 0.4, 255)
@example(32, 1, 3, 0.4, 255)
@example(16, 12, 4, 0.4, 255)
def test_a_name_in_any_one_to_four_frames_is_refused(
    num_frames: int, first: int, num_shown: int, scale: float, grey: int
) -> None:
    first %= num_frames - num_shown + 1
    frames = named(cine()[:num_frames], first, num_shown, (100, 130), scale, grey)
    assert refusal(frames) == Reason.TEXT_IN_REGION


@settings(max_examples=10, deadline=None)
@given(st.integers(33, 64), st.integers(0, 31), st.integers(1, 4))
def test_of_a_long_cine_the_stored_frames_count(num_frames: int, place: int, num_shown: int) -> None:
    stored = FrameChoice().stored(num_frames)
    first = min(int(stored[place]), num_frames - num_shown)
    first = int(stored[stored >= first][0])  # a stored frame shows the name
    frames = named(cine()[:num_frames], first, num_shown, (100, 130), 0.5, 255)
    assert refusal(frames) == Reason.TEXT_IN_REGION


def test_a_name_in_frames_that_are_not_stored_harms_nobody() -> None:
    stored = FrameChoice().stored(64)
    first = next(number for number in range(10, 60) if number not in stored)
    clip = cut(named(cine(), first, 1, (100, 130), 0.5, 255))
    assert first not in clip.frame_ids


@pytest.mark.parametrize("first", [1, 5, 22])
def test_a_small_name_of_a_large_cine_is_refused_though_it_is_hardly_stored(first: int) -> None:
    frames = named(cine(480, 640)[:24], first, 1, (230, 260), 0.45, 255)
    assert refusal(frames) == Reason.TEXT_IN_REGION


def shards_of(folder: Path, frames: np.ndarray, region: np.ndarray) -> Path:
    """A shard directory of one clip, in order of time."""
    folder.mkdir(exist_ok=True)
    meta = Meta("set", "clip", 0, (4, 200), "dicom", "tag")
    samples = [Sample(f"k{row:02d}", frame, region, replace(meta, frame=row)) for row, frame in enumerate(frames)]
    members = [member for sample in samples for member in encode(sample).items()]
    size, sha256 = write_shard(Store(folder), "train-00000-000.tar", members)
    shard = ShardInfo(name="train-00000-000.tar", split="train", num_samples=len(frames), num_bytes=size, sha256=sha256)
    empty: dict[str, int] = {}
    Manifest(
        dataset="set", plan="p", key_id="k", pixels="certified", max_frames=32, stride=1, val_share=0, tools={},
        outcomes=empty, certificates=empty, notes=empty, shards=(shard,),
    ).save(Store(folder))  # fmt: skip
    return folder


@pytest.mark.parametrize("place", [1, 5, 8])
def test_verify_finds_letters_in_any_frame_of_a_clip(tmp_path: Path, place: int) -> None:
    clip = cut(cine()[:9])
    assert list(verify(shards_of(tmp_path / "clean", clip.frames, clip.region)))
    frames = named(clip.frames, place, 1, (70, 100), 0.5, 255) * clip.region
    with pytest.raises(InputError, match=f"sample k{place:02d} seems to show letters"):
        list(verify(shards_of(tmp_path / "named", frames, clip.region)))


@pytest.mark.parametrize("grey", range(60, 150, 6))
def test_verify_passes_what_shards_accept(tmp_path: Path, grey: int) -> None:
    """Names that fade into the tissue: some are found, some are not, none by verify alone."""
    frames = named(cine()[:9], 4, 1, (100, 130), 0.5, grey)
    with suppress(Rejected):
        clip = cut(frames)
        assert list(verify(shards_of(tmp_path, clip.frames, clip.region)))

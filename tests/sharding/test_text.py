"""Text inside the region is found, what is outside or no text is not."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.bench import text_trial as trial
from pipeline.bench.onnx_writer import to_onnx
from pipeline.bench.text_drawing import blend, write
from pipeline.bench.text_trial import Clip
from sharding import text
from sharding.page import render_page
from sharding.report import _letters
from sharding.sources.synthetic import SyntheticSpec, generate
from sharding.text import (
    FRAME_WEIGHTS,
    WEIGHTS,
    evidence,
    figures,
    find_text,
    frame_score,
    has_text,
    limits,
    text_score,
)

FONT = cv2.FONT_HERSHEY_SIMPLEX


def clip(num_frames: int = 8, seed: int = 1) -> Clip:
    made = generate(SyntheticSpec("curved", 0, num_frames, seed=seed, banner=False))
    return Clip(made.frames, made.region)


def written(clip: Clip, words: str, top: int, left: int, frames: slice = slice(None), cap_height: float = 12) -> Clip:
    coverage = write(words, FONT, cap_height, np.random.default_rng(0)).coverage
    height, width = coverage.shape
    drawn = clip.frames.copy()
    blend(drawn[frames, top : top + height, left : left + width], coverage, 255, 1)
    return Clip(drawn, clip.region)


@pytest.fixture(scope="module")
def clean() -> list[Clip]:
    rng = np.random.default_rng(77)
    return [trial.generated_clip(rng) for _ in range(24)]


def recall(clips: list[Clip], contrast: tuple[float, float]) -> float:
    rng = np.random.default_rng(78)
    drawn = [trial.with_text(clip, rng, contrast, (8, 40)) for clip in clips for _ in range(2)]
    found = [has_text(clip.frames, clip.region) for clip in drawn if clip is not None]
    assert len(found) >= len(clips) / 2
    return float(np.mean(found))


def test_text_in_unseen_fonts_is_found(clean: list[Clip]) -> None:
    assert recall(clean, trial.CLEAR) >= 0.96
    assert recall(clean, trial.FAINT) >= 0.85


def test_clean_clips_raise_no_alarm(clean: list[Clip]) -> None:
    assert sum(has_text(clip.frames, clip.region) for clip in clean) <= 1


@pytest.mark.parametrize("num_frames", [1, 8])
def test_a_label_in_the_sector_is_found_where_it_is(num_frames: int) -> None:
    labelled = written(clip(num_frames), "RT KIDNEY LONG", 120, 90)
    found = find_text(labelled.frames, labelled.region)
    assert has_text(labelled.frames, labelled.region)
    assert found[120:135, 95:200].mean() > 0.7
    far = found.copy()
    far[96:176, 64:264] = False  # a cell or two around it, of 16 pixels at half size
    assert not far.any()


def test_a_clock_that_runs_is_found() -> None:
    running = clip(16)
    for frame in range(16):
        running = written(running, f"10:42:{frame:02d}", 120, 120, slice(frame, frame + 1))
    assert has_text(running.frames, running.region)


def test_large_text_is_found() -> None:
    made = generate(SyntheticSpec("linear", 1, 1, 600, 800, seed=3, banner=False))
    large = written(Clip(made.frames, made.region), "LIVER", 250, 300, cap_height=40)
    assert has_text(large.frames, large.region)


def test_text_outside_the_region_does_not_count() -> None:
    plain = clip()
    banner = written(plain, "ZELMIRA QUORVATH", 2, 2)
    assert not (plain.region[2:25, 2:180]).any()
    assert text_score(banner.frames, banner.region) == text_score(plain.frames, plain.region)
    inside = written(plain, "ZELMIRA", 120, 120)
    assert not has_text(inside.frames, plain.region & (np.arange(240) > 160)[:, None])


def test_the_border_of_a_region_is_no_text() -> None:
    bright = np.full((1, 240, 320), 180, np.uint8)
    for region in (np.ones((240, 320), bool), clip().region, np.tri(240, 320, 20, dtype=bool)):
        assert not has_text(bright, region)
        assert not find_text(bright, region).any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (40, 2), (9, 9)])
def test_tiny_regions(shape: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 60, 60), dtype=np.uint8)
    region = np.zeros((60, 60), bool)
    assert text_score(frames, region) == 0
    assert not find_text(frames, region).any()
    region[5 : 5 + shape[0], 5 : 5 + shape[1]] = True
    assert 0 <= text_score(frames, region) <= 1
    assert not (find_text(frames, region) & ~region).any()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 140), st.integers(1, 140), st.integers(0, 99), st.floats(0.3, 0.999))
def test_verdict_and_cells_agree_for_any_region(height: int, width: int, seed: int, limit: float) -> None:
    rng = np.random.default_rng(seed)
    coverage = write("AB 42", FONT, 10, rng).coverage[:height, :width]
    frames = rng.integers(0, 120, (2, height, width), dtype=np.uint8)
    blend(frames[:, : coverage.shape[0], : coverage.shape[1]], coverage, 255, 1)
    region = rng.random((height, width)) < rng.choice([0.01, 0.5, 1])
    with mock.patch.object(text, "limits", return_value=replace(limits(), clip=limit)):
        assert has_text(frames, region) == find_text(frames, region).any()


@pytest.mark.parametrize("words", ["", "MRN 123456"])
def test_verdict_and_cells_agree(words: str) -> None:
    labelled = written(clip(), words, 120, 90) if words else clip()
    assert has_text(labelled.frames, labelled.region) == find_text(labelled.frames, labelled.region).any()
    assert has_text(labelled.frames, labelled.region) == bool(words)


def test_same_pixels_same_score() -> None:
    labelled = written(clip(), "BPD 4.2 cm", 120, 90)
    first = text._evidence(labelled.frames, labelled.region)
    second = text._evidence(labelled.frames, labelled.region)
    assert all(a[1].tobytes() == b[1].tobytes() for a, b in zip(first, second, strict=True))
    text._network.cache_clear()
    scores = {text_score(labelled.frames, labelled.region) for _ in range(2)}
    assert len(scores) == 1


def test_the_file_written_by_hand_computes_what_torch_computes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.Conv2d(4, 5, 3, 2, 1), nn.ReLU(), nn.Conv2d(5, 1, 1), nn.Sigmoid()
    )
    path = tmp_path / "net.onnx"
    path.write_bytes(to_onnx(net))
    read = cv2.dnn.readNetFromONNX(str(path), engine=cv2.dnn.ENGINE_CLASSIC)
    for shape in ((1, 3, 40, 64), (1, 3, 120, 32)):
        pixels = np.random.default_rng(0).random(shape, dtype=np.float32)
        read.setInput(pixels)
        with torch.no_grad():
            expected = net(torch.from_numpy(pixels)).numpy()
        np.testing.assert_allclose(read.forward(), expected, atol=1e-5)


def test_the_weights_are_small_and_calibrated() -> None:
    assert WEIGHTS.stat().st_size + FRAME_WEIGHTS.stat().st_size < 300_000
    limit = limits()
    assert 0.3 < limit.clip < 0.95
    assert 0.3 < limit.frame < limit.stored < 0.95
    assert len(figures()) > 8
    assert all(0 <= figure.found <= figure.number for figure in figures())


def test_the_weights_for_one_picture_compute_what_those_for_three_equal_ones_do() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (1, 64, 96), dtype=np.uint8)
    np.testing.assert_allclose(evidence(picture), evidence(picture.repeat(3, axis=0)), atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2])
def test_of_a_frame_the_part_with_strokes_is_judged_as_in_the_whole(scale: int) -> None:
    labelled = written(clip(1), "RT KIDNEY", 120, 90, cap_height=12 * scale)
    whole = np.where(labelled.region, labelled.frames[0], 0)[None]
    seen = whole if scale == 1 else text._halved(whole)
    seen = text._padded(seen)
    runs = text._runs_of_strokes(seen[0], 32)
    expected = cv2.blur(evidence(seen, scale), text._RUN, borderType=cv2.BORDER_CONSTANT)
    assert 0 < runs.mean() < 0.5
    np.testing.assert_allclose(text._evidence_at(seen, runs, scale)[runs], expected[runs], atol=1e-5)
    assert frame_score(labelled.frames[0], labelled.region) >= expected[runs].max() - 1e-5


@pytest.mark.parametrize("name", ["GREYSCALE_IMAGE.dcm", "RGB_IMAGE.dcm"])
def test_a_name_really_burned_in_by_a_scanner_is_found(shared_data: Path, name: str) -> None:
    pydicom = pytest.importorskip("pydicom")
    pixels = pydicom.dcmread(shared_data / "dicom" / name).pixel_array
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    whole = np.ones(grey.shape, bool)
    assert has_text(grey.astype(np.uint8)[None], whole)
    assert frame_score(grey.astype(np.uint8), whole) >= limits().stored


def test_the_page_to_sign_says_what_is_found_of_each_kind_of_text() -> None:
    page = render_page("t", "l", [_letters("certified")])
    for figure in figures():
        assert f'<td>{figure.what}</td><td class="number">{figure.found} of {figure.number}</td>' in page
    assert "not looked for" in _letters("public").text
    assert not _letters("as_is").table

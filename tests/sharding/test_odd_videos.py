"""Videos of every codec, pixel format and container that can be written here: the pixels that a third reader sees."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sharding.convert import Task, convert
from sharding.recording import FrameChoice, Reason, Rejected
from sharding.sources import read
from tests.conftest import ROOT

pytest.importorskip("av")
from tests.cases.odd_videos import reference_of, video_frames, write_video

TRUTH = video_frames().astype(np.float32)
EXACT = [  # codec, pixel format and suffix of what loses at most a rounding
    ("qtrle", "gray", "mov"),
    ("qtrle", "rgb24", "mov"),
    ("qtrle", "argb", "mov"),
    ("rawvideo", "gray", "mov"),
    ("rawvideo", "rgb24", "mov"),
    ("rawvideo", "uyvy422", "mov"),
    ("rawvideo", "bgr24", "avi"),
    ("rawvideo", "gray", "avi"),
    ("rawvideo", "yuv420p", "mkv"),
    ("ffv1", "gray", "mkv"),
    ("ffv1", "gray16le", "mkv"),
    ("ffv1", "yuv420p", "mkv"),
    ("ffv1", "yuv444p10le", "mkv"),
    ("png", "gray", "mov"),
    ("png", "rgb24", "avi"),
    ("huffyuv", "yuv422p", "avi"),
    ("v210", "yuv422p10le", "mov"),
]
LOSSY = [
    ("qtrle", "rgb555be", "mov"),
    ("mjpeg", "yuvj420p", "mov"),
    ("mjpeg", "yuvj444p", "avi"),
    ("mpeg4", "yuv420p", "mp4"),
    ("libx264", "yuv420p", "mp4"),
    ("libx264", "yuvj420p", "mp4"),
    ("libx264", "yuv422p", "mkv"),
    ("libx264", "yuv444p", "mov"),
    ("libx264", "yuv420p10le", "mp4"),
    ("libx265", "yuv420p", "mp4"),
    ("libx265", "gray10le", "mkv"),
    ("prores_ks", "yuv422p10le", "mov"),
    ("gif", "gray", "gif"),
]
_ROUNDING = 1  # grey level, of samples of more than 8 bits
_UNREADABLE = {"libsvtav1"}  # OpenCV and decord come without a decoder of AV1


def off(path: Path) -> tuple[float, float]:
    """Mean grey levels between what is read and the truth, and what PyAV reads; the frames must be in order."""
    recording = read(path, "n", FrameChoice())
    assert recording.frame_ids.tolist() == list(range(len(TRUTH)))
    found = recording.frames.astype(np.float32)
    apart = np.abs(found[:, None] - TRUTH[None]).mean(axis=(2, 3))
    assert apart.argmin(axis=1).tolist() == list(range(len(TRUTH)))
    reference = reference_of(path)
    assert reference is not None
    return float(apart.diagonal().mean()), float(np.abs(found - reference).mean())


@pytest.mark.parametrize(("codec", "pixel_format", "suffix"), EXACT + LOSSY)
def test_the_stored_levels_are_those_of_the_video(codec: str, pixel_format: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    try:
        write_video(path, codec, pixel_format)
    except ValueError as error:  # av.FFmpegError is one, too
        pytest.skip(f"this PyAV cannot write it: {error}")
    from_truth, from_reference = off(path)
    assert from_truth < (1 if (codec, pixel_format, suffix) in EXACT else 6)
    assert from_reference < 0.6


@pytest.mark.parametrize("codec", ["qtrle", "rawvideo"])
def test_a_film_with_a_palette_is_stored_as_it_is(codec: str, tmp_path: Path) -> None:
    """The public report: accepted, one frame, black."""
    write_video(tmp_path / "x.mov", codec, "gray")
    converted = convert(Task(tmp_path / "x.mov", "x", pixels="public"))
    assert converted.refusal is None
    (clip,) = converted.clips
    assert len(clip.frames) == len(TRUTH)
    assert clip.percentiles[1] > 100


@pytest.mark.parametrize(("suffix", "codec"), [("mov", "png"), ("avi", "ffv1"), ("mkv", "ffv1")])
def test_a_black_film_is_no_recording(suffix: str, codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.cases.odd_videos.cine", lambda *shape: np.full(shape, 7, np.uint8))
    write_video(tmp_path / f"x.{suffix}", codec, "rgb24" if codec == "png" else "gray")
    with pytest.raises(Rejected) as refused:
        read(tmp_path / f"x.{suffix}", "x", FrameChoice())
    assert refused.value.reason == Reason.EMPTY


def test_a_film_that_begins_black_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first frame is alike in every reader, whatever they do to the others."""
    faded = video_frames()
    faded[0] = 0
    monkeypatch.setattr("tests.cases.odd_videos.cine", lambda *_: faded)
    write_video(tmp_path / "x.mov", "qtrle", "gray")
    np.testing.assert_array_equal(read(tmp_path / "x.mov", "x", FrameChoice()).frames, faded)


@pytest.mark.slow
def test_every_codec_format_and_container(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.cases.odd_videos", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"SVT_LOG": "1"}, capture_output=True)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) > 400
    wrong: dict[str, str] = {}
    num_read = 0
    for path in paths:
        reference = reference_of(path)
        if reference is None or reference.shape != TRUTH.shape or np.abs(reference - TRUTH).mean() > 8:
            continue  # a format of few colours, or one that its container does not note
        try:
            num_read += 1
            from_reference = off(path)[1]
        except (Rejected, AssertionError) as error:
            wrong[path.name] = str(error).splitlines()[0]
        else:
            wrong |= {path.name: str(from_reference)} if from_reference > _ROUNDING else {}
    assert num_read > 300
    assert {name: why for name, why in wrong.items() if name.split(".")[0] not in _UNREADABLE} == {}
    assert {why for name, why in wrong.items() if name.split(".")[0] in _UNREADABLE} <= {Reason.UNDECODABLE}

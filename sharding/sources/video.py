"""Video files through decord; OpenCV's FFmpeg where decord fails."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import decord
import numpy as np

from sharding.recording import MAX_FRAMES, Reason, Recording, Rejected


def read_video(path: Path, name: str) -> Recording:
    """Decode a video to grey frames (T, H, W) uint8 with presentation times in ms.

    Raises:
        Rejected: `undecodable`, `empty`, `too_large`.

    """
    try:
        frames, times = _read_with_decord(path)
    except decord.DECORDError:
        frames, times = _read_with_opencv(path)
    return Recording(frames=frames, source_kind="video", patient=name, clip=name, frame_times_ms=times)


def _read_with_decord(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    # Opened here, in the worker that reads it: a decord reader that crosses a fork deadlocks.
    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    if len(reader) > MAX_FRAMES:
        raise Rejected(Reason.TOO_LARGE)
    frames = _stack(frame.asnumpy() for frame in reader)
    times = reader.get_frame_timestamp(np.arange(len(frames)))[:, 0] * 1000
    return frames, times - times[0]


def _read_with_opencv(path: Path) -> tuple[np.ndarray, None]:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise Rejected(Reason.UNDECODABLE)

    def rgb_frames() -> Iterator[np.ndarray]:
        while (read := capture.read())[0]:
            yield cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)

    try:
        return _stack(rgb_frames()), None
    finally:
        capture.release()


def _stack(rgb_frames: Iterator[np.ndarray]) -> np.ndarray:
    grey = []
    for frame in rgb_frames:
        grey.append(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
        if len(grey) > MAX_FRAMES:
            raise Rejected(Reason.TOO_LARGE)
    if not grey:
        raise Rejected(Reason.EMPTY)
    return np.stack(grey)

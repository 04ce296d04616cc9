"""Video files and video streams inside DICOM.

decord jumps between keyframes where a container has an index that is right (mp4, mov, Matroska). Of MPEG program and
transport streams it returns other frames than those asked for, so all else goes through OpenCV's FFmpeg in one pass.
decord ignores palettes, too (8-bit grey in mov comes out black), and the range of some formats, so its first frame must
be that of OpenCV in every file: one more frame, 2 to 4 % of the time that real clips of 100 to 500 frames take.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import decord
import numpy as np

from sharding.recording import MAX_BYTES, MAX_FRAMES, MAX_SIDE, FrameChoice, Reason, Recording, Rejected
from sharding.sources.colour import is_flat, stack_planes

_ISO_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}
_MATROSKA = b"\x1aE\xdf\xa3"
_MAX_OFF, _MAX_SHARE_OFF = 8, 0.001  # grey levels between two readers of a frame, in all but so many pixels
_SLACK = 2  # frames by which a count that was estimated from a duration may be wrong

Open = Callable[[], cv2.VideoCapture]


@dataclass(frozen=True)
class Stream:
    """The chosen frames of a video.

    Attributes:
        frames: (T, H, W) uint8, grey.
        colour: (T, H, W) uint8.
        frame_ids: (T,) int64.
        times_ms: (T,) since the first frame of the video, None when the stream does not say.
        num_frames: of the whole video.

    """

    frames: np.ndarray
    colour: np.ndarray | None
    frame_ids: np.ndarray
    times_ms: np.ndarray | None
    num_frames: int

    def recording(self, source_kind: str, name: str, is_truncated: bool) -> Recording:
        """As a recording whose patient and clip are its name."""
        return Recording(
            frames=self.frames,
            frame_ids=self.frame_ids,
            source_kind=source_kind,
            patient=name,
            clip=name,
            colour=self.colour,
            frame_times_ms=self.times_ms,
            is_lossy=True,
            is_truncated=is_truncated,
        )


def read_video(path: Path, name: str, choice: FrameChoice) -> Recording:
    """Decode the chosen frames of a video file, with presentation times in ms.

    Rotation and sound are ignored. Patient and clip are the name.

    Raises:
        Rejected: `undecodable`, `empty`, `too_large`.

    """
    with path.open("rb") as file:
        head = file.read(8)

    def capture() -> cv2.VideoCapture:
        return _unrotated(cv2.VideoCapture(str(path), cv2.CAP_FFMPEG))

    first = capture()
    num_claimed, _, is_rotated = _examine(first)
    is_indexed = head.startswith(_MATROSKA) or head[4:8] in _ISO_BOXES
    stream = _read_with_decord(path, num_claimed, choice) if is_indexed and not is_rotated else None
    if stream is None or not _is_alike(stream.frames[0], first):
        stream = _read_in_order(capture, num_claimed, choice)
    slack = 0 if head[4:8] in _ISO_BOXES or head.startswith(b"RIFF") else _SLACK
    return stream.recording("video", name, is_truncated=stream.num_frames < num_claimed - slack)


def read_stream(data: bytes, num_claimed: int, choice: FrameChoice, size: tuple[int, int]) -> Stream:
    """Decode the chosen frames of a video in memory.

    Args:
        data: elementary stream or container.
        num_claimed: frames, as the data set says.
        choice: which.
        size: rows and columns that it must have.

    Raises:
        Rejected: `undecodable`, `empty`, `too_large`, `size_mismatch`.

    """

    def capture() -> cv2.VideoCapture:
        # OpenCV takes any readable object; its type hints want a class of its own.
        return _unrotated(cv2.VideoCapture(io.BytesIO(data), cv2.CAP_FFMPEG, []))  # type: ignore[call-overload]

    if _examine(capture())[1] != size:
        raise Rejected(Reason.SIZE_MISMATCH)
    return _read_in_order(capture, num_claimed, choice)


def _unrotated(capture: cv2.VideoCapture) -> cv2.VideoCapture:
    if not capture.isOpened():
        raise Rejected(Reason.UNDECODABLE)
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
    return capture


def _examine(capture: cv2.VideoCapture) -> tuple[int, tuple[int, int], bool]:
    """Claimed number of frames (0 when unknown), rows and columns, whether it is to be shown rotated.

    Captures are dropped, never released: OpenCV 5.0 crashes in `release` when the bytes come from Python.
    """
    rows, columns = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
    num_claimed = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    is_rotated = capture.get(cv2.CAP_PROP_ORIENTATION_META) != 0
    _refuse_large(num_claimed, rows, columns)
    return num_claimed, (rows, columns), is_rotated


def _refuse_large(num_frames: int, rows: int, columns: int) -> None:
    if max(rows, columns) > MAX_SIDE or num_frames > MAX_FRAMES or rows * columns * num_frames > MAX_BYTES:
        raise Rejected(Reason.TOO_LARGE)


def _read_with_decord(path: Path, num_claimed: int, choice: FrameChoice) -> Stream | None:
    """Chosen frames by index; None when decord fails or counts other frames than the container: it may be cut."""
    try:
        # Opened here, in the process that reads it: a decord reader that crosses a fork deadlocks.
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != num_claimed:
            return None
        frame_ids = choice.decoded(num_claimed)
        frames, colour = stack_planes(reader[int(number)].asnumpy() for number in frame_ids)
        times = reader.get_frame_timestamp(np.arange(num_claimed))[:, 0] * 1000
    except (decord.DECORDError, IndexError, StopIteration):
        return None
    return Stream(frames, colour, frame_ids, _sound_times(times, frame_ids), num_claimed)


def _is_alike(grey: np.ndarray, capture: cv2.VideoCapture) -> bool:
    """Whether decord's first frame (H, W) is the one that OpenCV reads; a frame of a single level does not tell.

    In 524 files, each of another codec, pixel format or container, right frames differ by 2 levels at most, and wrong
    ones by more than 8 in at least 15 % of the pixels.
    """
    is_read, picture = capture.read()
    if not is_read or picture.shape[:2] != grey.shape:
        return False
    other = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    num_off = int(np.count_nonzero(cv2.absdiff(grey, other) > _MAX_OFF))
    return not is_flat(other) and num_off <= _MAX_SHARE_OFF * grey.size


def _read_in_order(capture: Open, num_claimed: int, choice: FrameChoice) -> Stream:
    """Chosen frames in one pass; a second one when the number of frames was not as claimed.

    The last frame before a cut may be half a frame, so it is not chosen.
    """
    stream = _one_pass(capture(), choice.decoded(max(1, num_claimed)))
    if stream.num_frames in {num_claimed, 1}:
        return stream
    num_frames = stream.num_frames
    stream = _one_pass(capture(), choice.decoded(num_frames - (num_frames < num_claimed)))
    if stream.num_frames != num_frames:
        raise Rejected(Reason.UNDECODABLE)
    return stream


def _one_pass(capture: cv2.VideoCapture, frame_ids: np.ndarray) -> Stream:
    wanted, pictures = set(frame_ids.tolist()), []
    times: list[float] = []
    num_claimed = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    rows, columns = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
    while capture.grab():
        if len(times) in wanted:
            is_read, picture = capture.retrieve()
            if not is_read:
                raise Rejected(Reason.UNDECODABLE)
            pictures.append(stack_planes([cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)]))
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC))
        _refuse_large(len(times), rows, columns)
    if not pictures:  # a container that counts frames has some, of a codec that is not installed or of no codec at all
        raise Rejected(Reason.UNDECODABLE if num_claimed > 0 else Reason.EMPTY)
    frames, colour = (np.concatenate(planes) for planes in zip(*pictures, strict=True))
    present = frame_ids[: len(pictures)]
    return Stream(frames, colour, present, _sound_times(np.array(times), present), len(times))


def _sound_times(times_ms: np.ndarray, frame_ids: np.ndarray) -> np.ndarray | None:
    """Times of the chosen frames since the first; None where a container has none: they must rise."""
    is_sound = np.isfinite(times_ms).all() and (np.diff(times_ms) > 0).all()
    return (times_ms - times_ms[0])[frame_ids] if is_sound else None

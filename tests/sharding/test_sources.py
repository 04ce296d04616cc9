"""Video and image files: every container, the right frames, and limits before decoding."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.bench.transcode import encode_video
from sharding.recording import FrameChoice, Reason, Rejected
from sharding.sources import kind_of, read

CHOICE = FrameChoice(max_frames=6)
RNG = np.random.default_rng(3)


def moving(num_frames: int = 60, rows: int = 64, columns: int = 96, is_grey: bool = True) -> np.ndarray:
    """(T, H, W, 3): noise that wanders, so that no two frames are alike."""
    noise = cv2.GaussianBlur(RNG.integers(0, 256, (rows, columns, 3), dtype=np.uint8), (0, 0), 2)
    frame = np.repeat(noise[..., :1], 3, axis=-1) if is_grey else noise
    frame = cv2.normalize(frame, None, 0, 255, cv2.NORM_MINMAX)
    return np.stack([np.roll(frame, (t, 2 * t), (0, 1)) for t in range(num_frames)])


def reason_of(path: Path, choice: FrameChoice = CHOICE) -> Reason:
    with pytest.raises(Rejected) as caught:
        read(path, "n", choice)
    return caught.value.reason


def numbers_of(frames: np.ndarray, truth: np.ndarray) -> list[int]:
    """Which frame of the truth (T, H, W) each decoded one is."""
    return [int(np.abs(truth.astype(np.int16) - frame).mean(axis=(1, 2)).argmin()) for frame in frames]


VIDEOS = [
    ("libx264", "mp4"),
    ("libx265", "mp4"),
    ("mpeg4", "mov"),
    ("mpeg4", "avi"),
    ("mjpeg", "avi"),
    ("libx264", "matroska"),
    ("VP90", "webm"),
    ("mpeg2video", "mpeg"),
    ("mpeg2video", "mpeg2video"),
    ("libx264", "mpegts"),
    ("gif", "gif"),
]


@pytest.mark.parametrize(("codec", "container"), VIDEOS)
def test_every_container_gives_the_chosen_frames(codec: str, container: str, tmp_path: Path) -> None:
    pytest.importorskip("av")
    rgb = moving()
    formats = {"gif": "gray", "mjpeg": "yuvj420p"}
    path = tmp_path / "clip.bin"  # names tell nothing
    if container == "webm":  # PyAV takes OpenCV's libvpx for its own and fails
        _write_with_opencv(rgb, tmp_path / "clip.webm", codec).rename(path)
    else:
        path.write_bytes(encode_video(rgb, codec, container, formats.get(codec, "yuv420p"), rate=25))
    assert kind_of(path) == "video"
    recording = read(path, "n", CHOICE)
    wanted = CHOICE.decoded(60)
    np.testing.assert_array_equal(recording.frame_ids, wanted)
    assert numbers_of(recording.frames, rgb[..., 0]) == wanted.tolist()
    assert recording.colour is not None
    assert recording.colour.mean() < 3
    assert (recording.patient, recording.clip, recording.source_kind) == ("n", "n", "video")
    assert recording.is_lossy
    assert not recording.is_truncated
    if container not in {"mpeg", "mpeg2video"}:  # streams without times for every frame
        np.testing.assert_allclose(recording.frame_times_ms, wanted * 40.0, atol=1.1)


def _write_with_opencv(rgb: np.ndarray, path: Path, codec: str) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 25, (rgb.shape[2], rgb.shape[1]))
    for frame in rgb:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "mpeg"])
@pytest.mark.parametrize("share", [0.6, 0.95])
def test_cut_videos_give_their_whole_frames(container: str, share: float, tmp_path: Path) -> None:
    pytest.importorskip("av")
    rgb = moving(100)
    data = encode_video(rgb, "mpeg2video" if container == "mpeg" else "mpeg4", container, rate=25)
    path = tmp_path / "a.bin"
    path.write_bytes(data[: int(len(data) * share)])
    if container == "mp4":  # its index comes last
        assert reason_of(path) == Reason.UNDECODABLE
        return
    recording = read(path, "n", FrameChoice(max_frames=1000))
    num_whole = len(recording.frames)
    assert 100 * share - 15 < num_whole < 100
    whole = recording.frames[: num_whole - (container == "mpeg")]
    assert numbers_of(whole, rgb[..., 0]) == list(range(len(whole)))
    assert recording.is_truncated == (container != "mpeg")  # a program stream does not say how long it should be


def test_cut_mp4_with_its_index_first(tmp_path: Path) -> None:
    pytest.importorskip("av")
    rgb = moving(100)
    data = _index_first(encode_video(rgb, "libx264", "mp4", rate=25))
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    assert not read(path, "n", CHOICE).is_truncated
    path.write_bytes(data[: int(len(data) * 0.7)])
    recording = read(path, "n", FrameChoice(max_frames=1000))
    assert recording.is_truncated
    assert numbers_of(recording.frames, rgb[..., 0]) == list(range(len(recording.frames)))
    assert 40 < len(recording.frames) < 90


def _index_first(data: bytes) -> bytes:
    """Move `moov` before `mdat` and mend its chunk offsets."""
    boxes, offset = [], 0
    while offset < len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        boxes.append(data[offset : offset + length])
        offset += length
    moov = bytearray(next(box for box in boxes if box[4:8] == b"moov"))
    place = moov.index(b"stco") + 8
    (count,) = struct.unpack_from(">I", moov, place)
    for entry in range(place + 4, place + 4 + 4 * count, 4):
        struct.pack_into(">I", moov, entry, struct.unpack_from(">I", moov, entry)[0] + len(moov))
    rest = [box for box in boxes if box[4:8] not in {b"ftyp", b"moov"}]
    return boxes[0] + bytes(moov) + b"".join(rest)


def test_rotation_is_ignored(tmp_path: Path) -> None:
    pytest.importorskip("av")
    rgb = moving(12)
    data = bytearray(encode_video(rgb, "libx264", "mp4", rate=25))
    place = data.index(b"tkhd") + 44
    assert struct.unpack_from(">9i", data, place)[0] == 1 << 16
    struct.pack_into(">9i", data, place, 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(data)
    recording = read(tmp_path / "a.mp4", "n", CHOICE)
    assert recording.frames.shape[1:] == (64, 96)
    assert numbers_of(recording.frames, rgb[..., 0]) == recording.frame_ids.tolist()


def test_real_videos_give_the_chosen_frames(shared_data: Path) -> None:
    """Against a plain pass through OpenCV; MPEG program streams are where decord gives other frames."""
    paths = sorted(shared_data.glob("pocus_ccby/**/*"))
    by_kind = {path.suffix: path for path in paths if path.suffix in {".mpeg", ".mp4", ".mov"}}
    assert len(by_kind) == 3
    for path in by_kind.values():
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        frames = []
        while (found := capture.read())[0]:
            frames.append(cv2.cvtColor(found[1], cv2.COLOR_BGR2GRAY))
        recording = read(path, "n", CHOICE)
        np.testing.assert_array_equal(recording.frame_ids, CHOICE.decoded(len(frames)))
        np.testing.assert_array_equal(recording.frames, np.stack(frames)[recording.frame_ids])


def test_colour_video(tmp_path: Path) -> None:
    rgb = moving(6, is_grey=False)
    recording = read(_write_with_opencv(rgb, tmp_path / "a.avi", "MJPG"), "n", CHOICE)
    assert recording.colour is not None
    assert abs(recording.colour.mean() - np.ptp(rgb, axis=-1).mean()) < 10


def test_broken_videos(tmp_path: Path) -> None:
    for head in (b"\0\0\0\x18ftypisom", b"RIFF\0\0\0\0AVI ", b"\x1aE\xdf\xa3", b"GIF89a", b"\0\0\x01\xba"):
        (tmp_path / "a.mp4").write_bytes(head + b"\0" * 500)
        assert reason_of(tmp_path / "a.mp4") in {Reason.UNDECODABLE, Reason.EMPTY}


# Images


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("is_grey", [True, False])
def test_lossless_images(suffix: str, is_grey: bool, tmp_path: Path) -> None:
    rgb = moving(1, is_grey=False)[0]
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), grey if is_grey else cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    recording = read(path.rename(tmp_path / "b.jpg"), "n", CHOICE)
    np.testing.assert_array_equal(recording.frames, grey[None])
    assert not recording.is_lossy
    if not is_grey:
        np.testing.assert_array_equal(recording.colour, np.ptp(rgb, axis=-1)[None])
    elif suffix != ".bmp":  # which holds a palette
        assert recording.colour is None


@pytest.mark.parametrize("is_grey", [True, False])
def test_jpeg(is_grey: bool, tmp_path: Path) -> None:
    rgb = moving(1, is_grey=False)[0]
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    pixels = grey if is_grey else cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()
    exif = b"\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # turned
    for content in (data, data[:20] + exif + data[20:]):
        (tmp_path / "a").write_bytes(content)
        recording = read(tmp_path / "a", "n", CHOICE)
        assert cv2.PSNR(recording.frames[0], grey) > 36
        assert recording.is_lossy
        assert (recording.colour is None) == is_grey
    (tmp_path / "a").write_bytes(data[: len(data) // 2])
    assert reason_of(tmp_path / "a") == Reason.UNDECODABLE


def test_pages_of_a_tiff_are_frames(tmp_path: Path) -> None:
    pages = moving(40)[..., 0]
    cv2.imwritemulti(str(tmp_path / "a.tif"), list(pages))
    recording = read(tmp_path / "a.tif", "n", CHOICE)
    np.testing.assert_array_equal(recording.frame_ids, CHOICE.decoded(40))
    np.testing.assert_array_equal(recording.frames, pages[recording.frame_ids])
    cv2.imwritemulti(str(tmp_path / "b.tif"), [pages[0], pages[1][:40]])
    assert reason_of(tmp_path / "b.tif") == Reason.SIZE_MISMATCH


def test_deep_and_transparent_images(tmp_path: Path) -> None:
    ramp = np.linspace(1000, 5000, 64 * 64).reshape(64, 64).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), ramp)
    frames = read(tmp_path / "a.png", "n", CHOICE).frames
    assert (frames.min(), frames.max()) == (0, 255)
    rgba = np.dstack([moving(1)[0], RNG.integers(0, 256, (64, 96), dtype=np.uint8)])
    cv2.imwrite(str(tmp_path / "b.png"), rgba)
    np.testing.assert_array_equal(read(tmp_path / "b.png", "n", CHOICE).frames[0], rgba[..., 0])


def _png(rows: int, columns: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", columns, rows) + b"\x08\0\0\0\0" + b"\0" * 99


def _tiff(rows: int, columns: int, following: int = 0) -> bytes:
    tags = struct.pack("<HHIIHHII", 256, 4, 1, columns, 257, 4, 1, rows)
    return b"II*\0" + struct.pack("<IH", 8, 2) + tags + struct.pack("<I", following) + b"\0" * 99


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_png(30_000, 30_000), Reason.TOO_LARGE),
        (_png(0, 5), Reason.EMPTY),
        (_png(50, 50), Reason.UNDECODABLE),
        (_tiff(5000, 50), Reason.TOO_LARGE),
        (_tiff(50, 50, following=8), Reason.UNDECODABLE),  # its directories go round in a ring
        (b"BM" + b"\0" * 12 + struct.pack("<Iii", 40, 1 << 20, 1 << 20) + b"\0" * 99, Reason.TOO_LARGE),
        (b"\xff\xd8\xff\xc0\0\x0b\x08" + struct.pack(">HH", 65500, 65500) + b"\x01\x01\x11\0", Reason.TOO_LARGE),
        (b"BM, a letter that begins like a bitmap", Reason.NOT_READABLE_KIND),
        (b"\xff\xd8\xff", Reason.UNDECODABLE),
    ],
)
def test_hostile_images(data: bytes, reason: Reason, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    assert reason_of(tmp_path / "a") == reason


def test_missing_file_is_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        read(tmp_path / "gone.dcm", "n", CHOICE)

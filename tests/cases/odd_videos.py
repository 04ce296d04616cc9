"""Videos of every codec, pixel format and container that PyAV can write: a moving fan of speckle, 12 frames.

After public reports of palettes that a reader ignored. As a program it writes them all into a folder:
`python -m tests.cases.odd_videos FOLDER`; PyAV comes first there, since it takes OpenCV's libvpx for its own.
"""

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.cases.scans import cine

CONTAINERS = {"mov": "mov", "mp4": "mp4", "mkv": "matroska", "avi": "avi", "webm": "webm", "gif": "gif"}  # by suffix
CODECS = (
    "amv", "apng", "asv1", "bmp", "cfhd", "cinepak", "dnxhd", "ffv1", "ffvhuff", "flv", "gif", "huffyuv", "jpeg2000",
    "jpegls", "libsvtav1", "libvpx", "libvpx-vp9", "libx264", "libx265", "ljpeg", "magicyuv", "mjpeg", "mpeg1video",
    "mpeg2video", "mpeg4", "msmpeg4v3", "msrle", "msvideo1", "pcx", "png", "prores", "prores_ks", "qtrle", "r210",
    "rawvideo", "rpza", "sgi", "smc", "snow", "speedhq", "svq1", "targa", "tiff", "utvideo", "v210", "v308", "v408",
    "v410", "wmv2", "xwd", "yuv4", "zmbv",
)  # fmt: skip
_RAW_FORMATS = (
    "gray",
    "rgb24",
    "bgr24",
    "rgba",
    "yuv420p",
    "yuvj420p",
    "yuv422p",
    "yuv444p",
    "uyvy422",
    "nv12",
    "pal8",
)
_RATE, _BIT_RATE = 25, 8_000_000
_QUALITY = {"libx264", "libx265"}


def video_frames() -> np.ndarray:
    """(12, 96, 128) uint8, what all of them show."""
    return cine(12, 96, 128)


def write_video(path: Path, codec: str, pixel_format: str) -> None:
    """Write the frames into a container that the suffix of the path names.

    Raises:
        av.FFmpegError: one does not go with the other.

    """
    frames = video_frames()
    options = {"crf": "4", "log-level": "none", "x265-params": "log-level=none"} if codec in _QUALITY else {}
    with av.open(str(path), "w", format=CONTAINERS[path.suffix[1:]]) as output:
        stream: Any = output.add_stream(codec, rate=_RATE, options=options)
        stream.height, stream.width = frames.shape[1:]
        stream.pix_fmt, stream.bit_rate = pixel_format, _BIT_RATE
        for number, frame in enumerate(frames):
            rgb = np.ascontiguousarray(np.repeat(frame[..., None], 3, axis=-1))
            picture = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=pixel_format)
            picture.pts, picture.time_base = number, Fraction(1, _RATE)
            output.mux(stream.encode(picture))
        output.mux(stream.encode())


def reference_of(path: Path) -> np.ndarray | None:
    """(T, H, W) float32 grey of what PyAV reads, None when it reads nothing."""
    try:
        with av.open(str(path)) as file:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    except (av.FFmpegError, ValueError):
        return None
    return (frames @ np.array([0.299, 0.587, 0.114])).astype(np.float32)


def _formats(codec: str) -> tuple[str, ...]:
    known = av.codec.Codec(codec, "w").video_formats
    return tuple(one.name for one in known) if known else _RAW_FORMATS


def write_all(folder: Path) -> list[str]:
    """Write whatever goes together, as CODEC.FORMAT.SUFFIX; the names."""
    names = []
    for codec in CODECS:
        for pixel_format in _formats(codec):
            for suffix in CONTAINERS:
                path = folder / f"{codec}.{pixel_format}.{suffix}"
                try:
                    write_video(path, codec, pixel_format)
                except (av.FFmpegError, ValueError, TypeError):
                    path.unlink(missing_ok=True)
                else:
                    names.append(path.name)
    return names


if __name__ == "__main__":
    av.logging.set_level(av.logging.PANIC)
    print(len(write_all(Path(sys.argv[1]))))

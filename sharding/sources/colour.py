"""From decoded samples to the two planes that are kept: grey, and how coloured each pixel is.

Rules of colour for ultrasound (DICOM PS3.3 C.7.6.3.1.2; JPEG: JFIF, Adobe APP14).
"""

from collections.abc import Iterable

import cv2
import numpy as np

from sharding.recording import Reason, Rejected
from sharding.sources.dicom_codestream import JpegHeader

NUM_COLOURS = 3
_PEAK = 255

# R, G, B from Y, Cb - middle, Cr - middle, of full range (JFIF) and of video range (ITU-R BT.601).
_FULL = np.array([[1, 0, 1.402], [1, -0.114 * 1.772 / 0.587, -0.299 * 1.402 / 0.587], [1, 1.772, 0]])
_PARTIAL = _FULL * np.array([255 / 219, 255 / 224, 255 / 224])


def split_planes(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grey and colour of a picture (H, W, 3) uint8, R first: two planes (H, W) uint8.

    Colour is the largest minus the smallest of R, G and B. Measured: one colour decode and this takes 4.1 ms for a
    1024 x 768 JPEG; a grey decode and a colour decode at half size take 5.3 ms, and thin marks fade.
    """
    red, green, blue = cv2.split(rgb)
    highest, lowest = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.subtract(highest, lowest)


def stack_planes(pictures: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """Gather decoded frames.

    Args:
        pictures: (H, W) grey or (H, W, 3) RGB each, all of one shape, uint8, or wider where all levels of the clip
            are to be fitted into 8 bits together: frames of one clip must not be scaled one by one.

    Returns:
        frames (T, H, W) uint8 and colour (T, H, W) uint8, None for grey ones.

    Raises:
        Rejected: `empty`, or `undecodable` when the shapes or the depths differ.

    """
    greys: list[np.ndarray] = []
    colours: list[np.ndarray] = []
    waiting: list[np.ndarray] = []
    for picture in pictures:
        if picture.dtype != np.uint8:
            waiting.append(picture)
        else:
            _add(picture, greys, colours)
    for picture in _fit(waiting):
        _add(picture, greys, colours)
    if not greys:
        raise Rejected(Reason.EMPTY)
    is_mixed = len(waiting) not in {0, len(greys)}  # 8 bits beside 16: there is no scale for both
    if is_mixed or len({grey.shape for grey in greys}) > 1 or (colours and len(colours) != len(greys)):
        raise Rejected(Reason.UNDECODABLE)
    return np.stack(greys), np.stack(colours) if colours else None


def is_flat(grey: np.ndarray) -> bool:
    """Whether all pixels of a frame (H, W) have the same level."""
    low, high, _, _ = cv2.minMaxLoc(grey)
    return bool(low == high)


def _add(picture: np.ndarray, greys: list[np.ndarray], colours: list[np.ndarray]) -> None:
    if picture.ndim == 2:  # noqa: PLR2004 - (H, W)
        greys.append(picture)
        return
    grey, colour = split_planes(picture)
    greys.append(grey)
    colours.append(colour)


def _fit(pictures: list[np.ndarray]) -> Iterable[np.ndarray]:
    """Map the lowest level of all pictures to 0 and the highest to 255, one picture at a time."""
    low = min((int(picture.min()) for picture in pictures), default=0)
    high = max((int(picture.max()) for picture in pictures), default=0)
    scale = _PEAK / max(1, high - low)
    for picture in pictures:
        levels = (picture.astype(np.float32) - low) * scale
        yield levels.round().clip(0, _PEAK).astype(np.uint8)


def rgb_from_ybr(ybr: np.ndarray, num_bits: int = 8, is_partial: bool = False) -> np.ndarray:
    """RGB (H, W, 3) of luma and two chroma samples (H, W, 3).

    Args:
        ybr: uint8 or uint16.
        num_bits: of a sample.
        is_partial: of video range: luma 16..235, chroma 16..240.

    """
    matrix = _PARTIAL if is_partial else _FULL
    peak, middle = (1 << num_bits) - 1, 1 << (num_bits - 1)
    black = np.array([middle / 8 if is_partial else 0, middle, middle])
    # In floating point: OpenCV's own way for 8 bits rounds one sample in twenty wrongly, and is slower.
    rgb = cv2.transform(ybr.astype(np.float32), np.column_stack([matrix, -matrix @ black]))
    rounded: np.ndarray = np.floor(rgb + 0.5).clip(0, peak).astype(ybr.dtype)
    return rounded


def widen_422(data: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(H, W, 3) of samples stored as Y1 Y2 Cb Cr for every two pixels."""
    pairs = data.reshape(rows, columns // 2, 4)
    ybr = np.empty((rows, columns, NUM_COLOURS), data.dtype)
    ybr[..., 0] = pairs[..., :2].reshape(rows, columns)
    ybr[..., 1:] = np.repeat(pairs[..., 2:], 2, axis=1)
    return ybr


def is_rgb_jpeg(header: JpegHeader, photometric: str) -> bool:
    """Whether the three components of a lossy JPEG are R, G and B; the header around it is wrong more often than it is.

    In this order: JFIF means YCbCr; Adobe's marker says; components named R, G, B are; chroma stored more
    coarsely is chroma; else the photometric interpretation is believed.
    """
    if header.has_jfif:
        return False
    if header.adobe_transform is not None:
        return header.adobe_transform == 0
    if header.component_ids == b"RGB":
        return True
    return len(set(header.sampling)) == 1 and photometric == "RGB"

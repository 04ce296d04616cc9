"""Still images: png, jpg, tif (each page is a frame), bmp."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from sharding.recording import MAX_BYTES, MAX_FRAMES, MAX_SIDE, FrameChoice, Reason, Recording, Rejected
from sharding.sources.colour import NUM_COLOURS, stack_planes
from sharding.sources.dicom_codec import Layout, decode_jpeg
from sharding.sources.dicom_codestream import JPEG_START, read_jpeg
from sharding.sources.tiff import BIG_TIFF_START, check_tiff, decode_tiff, tiff_pages, upright

_PNG, _BITMAP = b"\x89PNG", b"BM"
_OLD_BITMAP = 12  # bytes of the header whose sizes are 16-bit


class _Page(NamedTuple):
    """Size of one picture of a file, and whether its codec loses something."""

    rows: int
    columns: int
    is_lossy: bool = False


def read_image(path: Path, name: str, choice: FrameChoice) -> Recording:
    """Decode the chosen pages of an image to grey and colour planes (T, H, W) uint8.

    Orientation tags are ignored, transparency is dropped, more than 8 bits are fitted into 8 over all pages together.

    Raises:
        Rejected: `undecodable`, `empty`, `too_large`, `size_mismatch`, `unsupported_codec`.

    """
    data = path.read_bytes()
    pages = _pages(data)
    _refuse_odd(pages)
    frame_ids = choice.decoded(len(pages))
    frames, colour = stack_planes(_pictures(data, frame_ids))
    if frames.shape[1:] != pages[0][:2]:
        raise Rejected(Reason.SIZE_MISMATCH)
    return Recording(
        frames=frames,
        frame_ids=frame_ids,
        source_kind="image",
        patient=name,
        clip=name,
        colour=colour,
        is_lossy=any(page.is_lossy for page in pages),
    )


def _refuse_odd(pages: list[_Page]) -> None:
    if not pages or min(pages[0][:2]) < 1:
        raise Rejected(Reason.EMPTY)
    if len({page[:2] for page in pages}) > 1:
        raise Rejected(Reason.SIZE_MISMATCH)
    rows, columns, _ = pages[0]
    if max(rows, columns) > MAX_SIDE or len(pages) > MAX_FRAMES or rows * columns * len(pages) > MAX_BYTES:
        raise Rejected(Reason.TOO_LARGE)


def _pages(data: bytes) -> list[_Page]:
    """Size of each picture, from the headers alone."""
    if data.startswith(JPEG_START):
        header = read_jpeg(data)
        return [_Page(header.rows, header.columns, is_lossy=True)]
    if data.startswith(_PNG):
        columns, rows = struct.unpack_from(">II", data, 16)
        return [_Page(rows, columns)]
    if data.startswith(_BITMAP):
        is_old = struct.unpack_from("<I", data, 14)[0] == _OLD_BITMAP
        columns, rows = struct.unpack_from("<HH" if is_old else "<ii", data, 18)
        return [_Page(abs(rows), columns)]
    if data.startswith(BIG_TIFF_START):
        raise Rejected(Reason.UNSUPPORTED_CODEC)
    return [_Page(*page.size, page.is_lossy) for page in tiff_pages(data)]


def _jpeg(data: bytes) -> np.ndarray:
    header = read_jpeg(data)
    num_bits = header.precision
    photometric = "YBR_FULL_422" if len(header.component_ids) == NUM_COLOURS else "MONOCHROME2"
    layout = Layout(
        header.rows, header.columns, len(header.component_ids), num_bits, num_bits, num_bits - 1, False, photometric
    )
    return decode_jpeg(data, layout)


def _pictures(data: bytes, frame_ids: np.ndarray) -> Iterator[np.ndarray]:
    if data.startswith(JPEG_START):
        return iter([_jpeg(data)])
    return iter([_picture(data)]) if data.startswith((_PNG, _BITMAP)) else _tiff(data, frame_ids)


def _tiff(data: bytes, frame_ids: np.ndarray) -> Iterator[np.ndarray]:
    pages = list(tiff_pages(data))
    data = upright(data, pages)
    for number in frame_ids.tolist():
        check_tiff(data, pages[number])
        yield decode_tiff(data, number, pages[number])


def _picture(data: bytes) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)  # ignores orientation, too
    if picture is None or picture.dtype not in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        raise Rejected(Reason.UNDECODABLE)
    return _without_alpha(picture)


def _without_alpha(picture: np.ndarray) -> np.ndarray:
    """(H, W) grey or (H, W, 3) RGB of what OpenCV reads as it is."""
    if picture.ndim == 2:  # noqa: PLR2004
        return picture
    return picture[..., 0] if picture.shape[2] < NUM_COLOURS else cv2.cvtColor(picture[..., :3], cv2.COLOR_BGR2RGB)

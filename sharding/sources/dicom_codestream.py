"""Size of a compressed picture, read from its own header: codecs are asked only after the size is known to be right.

JPEG ITU-T T.81, JPEG-LS T.87, JPEG 2000 T.800 (HTJ2K T.814), JPEG XL ISO/IEC 18181-1.
"""

import struct
from dataclasses import dataclass

from sharding.recording import Reason, Rejected

JPEG_START = b"\xff\xd8\xff"
JPEG2K_START = b"\xff\x4f\xff\x51"
JPEGXL_START = b"\xff\x0a"
BOX_START = b"\x00\x00\x00\x0c"  # JP2 and JPEG XL in their containers
END_OF_IMAGE = b"\xff\xd9"
LOSSLESS_SOF, JPEG_LS_SOF = 0xC3, 0xF7

_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_SOFS = (set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {JPEG_LS_SOF}
_APP0, _APP14, _SOS, _EOI, _FILL = 0xE0, 0xEE, 0xDA, 0xD9, 0xFF
_ADOBE_BYTES = 12
_COD = 0xFF52
_MAX_HEADER = 1 << 16  # bytes in which a codestream must begin inside its container
_XL_WIDTHS = (9, 13, 18, 30)  # bits of a size
_XL_RATIOS = ((1, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


@dataclass(frozen=True)
class JpegHeader:
    """What a JPEG says of itself before its first scan.

    Attributes:
        rows: of the picture.
        columns: of the picture.
        precision: bits per sample.
        process: last byte of the start-of-frame marker.
        component_ids: one byte each.
        sampling: one byte per component: horizontal and vertical factor.
        has_jfif: APP0 JFIF is present.
        adobe_transform: colour transform of APP14, None when absent.
        offset: of the start-of-frame marker.

    """

    rows: int
    columns: int
    precision: int
    process: int
    component_ids: bytes
    sampling: bytes
    has_jfif: bool
    adobe_transform: int | None
    offset: int


@dataclass(frozen=True)
class Jpeg2kHeader:
    """Size of a JPEG 2000 codestream; `has_transform`: its components are decorrelated, so that R, G, B come out."""

    rows: int
    columns: int
    num_components: int
    has_transform: bool


def read_jpeg(data: bytes) -> JpegHeader:
    """Header of a JPEG or JPEG-LS stream.

    Raises:
        Rejected: `undecodable`.

    """
    offset, has_jfif, adobe = 2, False, None
    while data[:2] == JPEG_START[:2] and offset + 4 <= len(data) and data[offset] == _FILL:
        marker = data[offset + 1]
        if marker in _ALONE or marker == _FILL:
            offset += 1 if marker == _FILL else 2
            continue
        if marker in {_SOS, _EOI}:
            break
        length = int.from_bytes(data[offset + 2 : offset + 4])
        body = data[offset + 4 : offset + 2 + length]
        if marker in _SOFS:
            return _start_of_frame(body, marker, has_jfif, adobe, offset)
        has_jfif |= marker == _APP0 and body.startswith(b"JFIF\0")
        if marker == _APP14 and body.startswith(b"Adobe") and len(body) >= _ADOBE_BYTES:
            adobe = body[_ADOBE_BYTES - 1]
        offset += 2 + length
    raise Rejected(Reason.UNDECODABLE)


def _start_of_frame(body: bytes, marker: int, has_jfif: bool, adobe: int | None, offset: int) -> JpegHeader:
    num_fixed = 6
    if len(body) < num_fixed or len(body) < num_fixed + 3 * body[5]:
        raise Rejected(Reason.UNDECODABLE)
    precision, rows, columns, count = struct.unpack_from(">BHHB", body)
    parts = body[num_fixed : num_fixed + 3 * count]
    return JpegHeader(rows, columns, precision, marker, parts[::3], parts[1::3], has_jfif, adobe, offset)


def read_jpeg2k(data: bytes) -> Jpeg2kHeader:
    """Header of a JPEG 2000 codestream, bare or inside JP2 boxes.

    Raises:
        Rejected: `undecodable`.

    """
    start = data.find(JPEG2K_START, 0, _MAX_HEADER)
    if start < 0 or len(data) < start + 42:
        raise Rejected(Reason.UNDECODABLE)
    length, _, right, bottom, left, top = struct.unpack_from(">HHIIII", data, start + 4)
    (count,) = struct.unpack_from(">H", data, start + 40)
    return Jpeg2kHeader(bottom - top, right - left, count, _has_transform(data, start + 4 + length))


def _has_transform(data: bytes, offset: int) -> bool:
    while offset + 9 <= len(data):
        marker, length = struct.unpack_from(">HH", data, offset)
        if marker == _COD:
            return data[offset + 8] == 1
        if marker >> 8 != _FILL:
            break
        offset += 2 + length
    raise Rejected(Reason.UNDECODABLE)


def read_jpegxl_size(data: bytes) -> tuple[int, int]:
    """Rows and columns of a JPEG XL codestream, bare or inside boxes.

    Raises:
        Rejected: `undecodable`.

    """
    start = data.find(JPEGXL_START, 0, _MAX_HEADER) if not data.startswith(BOX_START) else _boxed(data)
    if start < 0 or len(data) < start + 12:
        raise Rejected(Reason.UNDECODABLE)
    bits = _Bits(int.from_bytes(data[start + 2 : start + 12], "little"))
    is_small = bits.take(1)
    rows = bits.size(is_small)
    ratio = bits.take(3)
    if ratio == 0:
        return rows, bits.size(is_small)
    over, under = _XL_RATIOS[ratio]
    return rows, rows * over // under


def _boxed(data: bytes) -> int:
    """Where the codestream begins inside its box; a partial box has a number of 4 bytes first."""
    for name, num_skipped in ((b"jxlc", 4), (b"jxlp", 8)):
        place = data.find(name, 0, _MAX_HEADER)
        if place >= 0 and data[place + num_skipped : place + num_skipped + 2] == JPEGXL_START:
            return place + num_skipped
    return -1


class _Bits:
    """Bits of a number, lowest first."""

    def __init__(self, value: int) -> None:
        self._value = value

    def take(self, count: int) -> int:
        taken = self._value & ((1 << count) - 1)
        self._value >>= count
        return taken

    def size(self, is_small: int) -> int:
        return 8 * (self.take(5) + 1) if is_small else self.take(_XL_WIDTHS[self.take(2)]) + 1


def check_size(found: tuple[int, int], declared: tuple[int, int]) -> None:
    """Refuse a stream that is not of the size (rows, columns) that its header declares.

    Raises:
        Rejected: `size_mismatch`.

    """
    if found != declared:
        raise Rejected(Reason.SIZE_MISMATCH)

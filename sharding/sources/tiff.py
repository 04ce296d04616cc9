"""Pages of a TIFF 6.0 file as they are stored: libtiff unpacks the samples, what they mean is decided here.

OpenCV's reader is not asked: it inverts a white-is-zero page of 8 bits and not one of 16, mixes up 16-bit planes, and
turns some pages by their orientation tag and fails at others.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import imagecodecs
import numpy as np

from sharding.recording import MAX_FRAMES, Reason, Rejected
from sharding.sources.colour import NUM_COLOURS

TIFF_START = (b"II*\0", b"MM\0*")
BIG_TIFF_START = (b"II+\0", b"MM\0+")  # offsets of 64 bits; an image of our size limits needs none

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION = 256, 257, 258, 259, 262, 274
_NUM_SAMPLES, _PLANAR, _COLOUR_MAP, _SAMPLE_FORMAT = 277, 284, 320, 339
_EXTENTS = ((273, 279), (324, 325))  # offsets and bytes of the strips and of the tiles
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YBR = 0, 1, 2, 3, 5, 6
_JPEGS = {6, 7}
_LOSSY = {*_JPEGS, 33003, 33005, 34712, 50001}  # JPEG, JPEG 2000, WebP
_TYPES = {1: "B", 3: "H", 4: "I"}  # byte, short, long
_UNSIGNED, _UPRIGHT, _PLANES = 1, 1, 2
_MAX_BITS, _PEAK = 16, 255
_MAX_TAGS, _MAX_VALUES = 4096, 1 << 20


@dataclass(frozen=True)
class TiffPage:
    """What a directory of a TIFF says of its picture.

    Attributes:
        tags: values by tag, of those that are whole numbers.
        orientation_at: offset of the orientation in the file, None where there is none.

    """

    tags: dict[int, tuple[int, ...]]
    orientation_at: int | None

    def get(self, tag: int, default: int) -> int:
        """First value of a tag."""
        return self.tags.get(tag, (default,))[0]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.get(_HEIGHT, 0), self.get(_WIDTH, 0)

    @property
    def is_lossy(self) -> bool:
        """Whether its codec loses something."""
        return self.get(_COMPRESSION, 1) in _LOSSY

    @property
    def photometric(self) -> int:
        """Photometric interpretation; without the tag, black is zero."""
        return self.get(_PHOTOMETRIC, _RGB if self.get(_NUM_SAMPLES, 1) >= NUM_COLOURS else _BLACK_IS_ZERO)

    @property
    def is_converted(self) -> bool:
        """Whether libtiff gives grey or RGB by itself."""
        return self.get(_COMPRESSION, 1) in _JPEGS or self.photometric in {_CMYK, _YBR}


def tiff_pages(data: bytes) -> Iterator[TiffPage]:
    """Pages along the chain of directories.

    Raises:
        Rejected: `undecodable` when the chain is a ring or the file ends before its pixels.

    """
    order = "<" if data.startswith(b"II") else ">"
    (offset,) = struct.unpack_from(f"{order}I", data, 4)
    seen: set[int] = set()
    while offset and len(seen) <= MAX_FRAMES:
        (num_tags,) = struct.unpack_from(f"{order}H", data, offset)
        if offset in seen or num_tags > _MAX_TAGS:
            raise Rejected(Reason.UNDECODABLE)
        seen.add(offset)
        yield _page(data, order, range(offset + 2, offset + 2 + 12 * num_tags, 12))
        (offset,) = struct.unpack_from(f"{order}I", data, offset + 2 + 12 * num_tags)


def _page(data: bytes, order: str, entries: range) -> TiffPage:
    tags: dict[int, tuple[int, ...]] = {}
    orientation_at = None
    for at in entries:
        tag, kind, count = struct.unpack_from(f"{order}HHI", data, at)
        if tag in tags or kind not in _TYPES or not 0 < count <= _MAX_VALUES:
            continue  # libtiff believes the first one, too
        form = f"{order}{count}{_TYPES[kind]}"
        is_here = struct.calcsize(form) <= 4  # noqa: PLR2004 - bytes of an offset
        place = at + 8 if is_here else struct.unpack_from(f"{order}I", data, at + 8)[0]
        tags[tag] = struct.unpack_from(form, data, place)
        if tag == _ORIENTATION:
            orientation_at = at + 8
    return TiffPage(tags, orientation_at)


def check_tiff(data: bytes, page: TiffPage) -> None:
    """Refuse a page that cannot be read, before its pixels are unpacked.

    Raises:
        Rejected: `undecodable` when the file ends before its pixels; `unsupported_codec` for samples that are signed,
            in floating point or of more than 16 bits, and for colour spaces other than grey, palette, RGB, CMYK, YCbCr.

    """
    for offsets, lengths in _EXTENTS:
        ends = map(sum, zip(page.tags.get(offsets, ()), page.tags.get(lengths, ()), strict=False))
        if max(ends, default=0) > len(data):
            raise Rejected(Reason.UNDECODABLE)
    bits = page.tags.get(_BITS, (1,))
    known = {_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YBR}
    is_known = (
        set(page.tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))) == {_UNSIGNED}
        and len(set(bits)) == 1
        and 1 <= bits[0] <= (8 if page.is_converted else _MAX_BITS)
        and page.photometric in known
    )
    if not is_known:
        raise Rejected(Reason.UNSUPPORTED_CODEC)


def upright(data: bytes, pages: list[TiffPage]) -> bytes:
    """The file with its orientation tags set to upright: pixels are read as they are stored, as those of a JPEG are."""
    turned = [page for page in pages if page.get(_ORIENTATION, _UPRIGHT) != _UPRIGHT]
    if not turned:
        return data
    changed = bytearray(data)
    for page in turned:
        assert page.orientation_at is not None
        struct.pack_into("<H" if data.startswith(b"II") else ">H", changed, page.orientation_at, _UPRIGHT)
    return bytes(changed)


def decode_tiff(data: bytes, number: int, page: TiffPage) -> np.ndarray:
    """Decode a page, (H, W) grey or (H, W, 3) RGB, uint8, or uint16 where its samples have more than 8 bits.

    Args:
        data: the file, its pages upright.
        number: of the page, from 0.
        page: its directory, checked.

    Raises:
        Rejected: `undecodable`.

    """
    samples = imagecodecs.tiff_decode(data, index=number)
    num_samples = page.get(_NUM_SAMPLES, 1)
    if page.get(_PLANAR, 1) == _PLANES and num_samples > 1 and not page.is_converted:
        samples = np.moveaxis(samples, 0, -1)
    if samples.ndim > 2:  # noqa: PLR2004 - (H, W, samples): transparency comes last
        samples = samples[..., :NUM_COLOURS] if samples.shape[-1] >= NUM_COLOURS else samples[..., 0]
    if page.is_converted:
        return np.ascontiguousarray(samples)
    if page.photometric == _PALETTE:
        return _looked_up(samples, page)
    return np.ascontiguousarray(_levels(samples, page))


def _levels(samples: np.ndarray, page: TiffPage) -> np.ndarray:
    """Samples with black at zero; fewer than 8 bits are spread over 8."""
    num_bits = page.get(_BITS, 1)
    peak = (1 << num_bits) - 1
    if samples.dtype == bool:
        samples = samples.astype(np.uint8)
    levels: np.ndarray = peak - samples if page.photometric == _WHITE_IS_ZERO else samples
    return (levels.astype(np.uint16) * _PEAK // peak).astype(np.uint8) if num_bits < 8 else levels  # noqa: PLR2004


def _looked_up(indices: np.ndarray, page: TiffPage) -> np.ndarray:
    """RGB (H, W, 3) uint8 of indices (H, W); as libtiff does, a map without any level above 255 is one of 8 bits."""
    levels = np.array(page.tags.get(_COLOUR_MAP, ()), np.uint16)
    if levels.size != NUM_COLOURS << page.get(_BITS, 1) or indices.ndim != 2:  # noqa: PLR2004
        raise Rejected(Reason.UNDECODABLE)
    table = (levels >> 8 if levels.max() > _PEAK else levels).astype(np.uint8).reshape(NUM_COLOURS, -1).T
    return table[indices.astype(np.intp)]

"""TIFF files tag by tag: any photometric interpretation, depth, byte order, layout, orientation, and pages that differ.

After public reports about white-is-zero and turned TIFFs; nothing is compressed unless a page brings its own strips.
"""

import struct
from dataclasses import dataclass, field

import imagecodecs
import numpy as np

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YBR, LAB = 0, 1, 2, 3, 4, 5, 6, 8
COMPRESSION, ORIENTATION, COLOUR_MAP, EXTRA_SAMPLES, SAMPLE_FORMAT, SUBSAMPLING = 259, 274, 320, 338, 339, 530
_JPEG = 7
_SHORT, _LONG = 3, 4
Tags = dict[int, list[int]]


@dataclass(frozen=True)
class Page:
    """A picture (H, W) or (H, W, samples) and how it is to be stored.

    Attributes:
        samples: of the type that is written.
        photometric: interpretation.
        num_bits: of a sample; 0: those of its type, which it fills.
        is_planar: one plane after the other.
        tile: side of square tiles, 0: one strip.
        tags: more tags, of 16 bits.
        packed: what is written instead of the samples.

    """

    samples: np.ndarray
    photometric: int = BLACK_IS_ZERO
    num_bits: int = 0
    is_planar: bool = False
    tile: int = 0
    tags: Tags = field(default_factory=dict)
    packed: bytes | None = None

    def directory(self) -> tuple[Tags, Tags]:
        """Its tags of 16 and of 32 bits."""
        rows, columns, *channels = self.samples.shape
        num = channels[0] if channels else 1
        short = {258: [self.num_bits or 8 * self.samples.itemsize] * num, 259: [1], 262: [self.photometric]}
        short |= {277: [num], 284: [2 if self.is_planar else 1], **self.tags}
        tiles = {322: [self.tile], 323: [self.tile]} if self.tile else {278: [rows]}
        return short, {256: [columns], 257: [rows], **tiles}

    def blocks(self, order: str) -> list[bytes]:
        """Its strips or tiles."""
        if self.packed is not None:
            return [self.packed]
        samples = self.samples.astype(self.samples.dtype.newbyteorder(order))
        if self.is_planar:
            return [np.ascontiguousarray(samples[..., plane]).tobytes() for plane in range(samples.shape[2])]
        if not self.tile:
            return [samples.tobytes()]
        side = self.tile
        margins = [(0, -length % side) for length in samples.shape[:2]] + [(0, 0)] * (samples.ndim - 2)
        padded = np.pad(samples, margins)
        corners = [(y, x) for y in range(0, padded.shape[0], side) for x in range(0, padded.shape[1], side)]
        return [np.ascontiguousarray(padded[y : y + side, x : x + side]).tobytes() for y, x in corners]


def tiff(*pages: Page, order: str = "<") -> bytes:
    """A TIFF of some pages; order: `<` or `>`."""
    out = bytearray(struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 0))
    link = 4  # where the offset of the next directory is to be written
    for page in pages:
        short, long = page.directory()
        blocks = page.blocks(order)
        offsets, lengths = (324, 325) if page.tile else (273, 279)
        long |= {offsets: [_append(out, block) for block in blocks], lengths: [len(block) for block in blocks]}
        entries = [_entry(out, order, tag, _SHORT, values) for tag, values in short.items()]
        entries += [_entry(out, order, tag, _LONG, values) for tag, values in long.items()]
        entries.sort(key=lambda entry: struct.unpack_from(f"{order}H", entry)[0])
        at = _append(out, struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4))
        struct.pack_into(f"{order}I", out, link, at)
        link = len(out) - 4
    return bytes(out)


def _append(out: bytearray, data: bytes) -> int:
    """Offset, which is even, at which the data are appended."""
    out += b"\0" * (len(out) % 2)
    at = len(out)
    out += data
    return at


def _entry(out: bytearray, order: str, tag: int, kind: int, values: list[int]) -> bytes:
    data = struct.pack(f"{order}{len(values)}{'H' if kind == _SHORT else 'I'}", *values)
    if len(data) > 4:
        data = struct.pack(f"{order}I", _append(out, data))
    return struct.pack(f"{order}HHI", tag, kind, len(values)) + data.ljust(4, b"\0")


def packed(levels: np.ndarray, num_bits: int) -> bytes:
    """Levels (H, W) of any number of bits, the highest bit first, each row padded to whole bytes."""
    octets = levels.astype(">u2")[..., None].view(np.uint8)
    bits = np.unpackbits(octets, axis=-1)[..., 16 - num_bits :]
    return np.packbits(bits.reshape(len(levels), -1), axis=1).tobytes()


def colour_map(num_bits: int) -> list[int]:
    """16-bit levels of red, green and blue: a ramp up, a ramp down, and nothing."""
    ramp = [index * 65535 // ((1 << num_bits) - 1) for index in range(1 << num_bits)]
    return [*ramp, *ramp[::-1], *[0] * len(ramp)]


def jpeg_page(picture: np.ndarray, photometric: int, **tags: list[int]) -> Page:
    """A page (H, W) or (H, W, 3) RGB whose strip is a JPEG; a tag is given as `_274=[6]`."""
    spaces = {"colorspace": "RGB", "outcolorspace": "YCBCR" if photometric == YBR else "RGB", "subsampling": "444"}
    strip = imagecodecs.jpeg8_encode(picture, level=97, **(spaces if picture.ndim == 3 else {}))
    more = {COMPRESSION: [_JPEG]} | ({SUBSAMPLING: [1, 1]} if photometric == YBR else {})
    more |= {int(name[1:]): values for name, values in tags.items()}
    return Page(picture, photometric, tags=more, packed=bytes(strip))

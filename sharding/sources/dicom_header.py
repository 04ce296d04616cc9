"""Header of a DICOM file, without its pixels, and where these begin.

The pixel data element is never read through pydicom: of a cut cine it would hand over nothing.
"""

import io
import logging
import mmap
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.values import converters

from sharding.recording import MAX_BYTES, MAX_RATIO, Reason, Rejected

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its messages echo values of the file

PREAMBLE = 128
_META, _FIRST = 0x0002, 0x0008  # groups
_PIXEL_TAGS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_PIXEL_DATA = 0x7FE00010
_MIN_INFLATED = 1 << 20  # bytes below which a ratio means nothing
_LONG_VRS = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UN", b"UC", b"UR", b"UT", b"SV", b"UV"}
_VRS = {vr.encode() for vr in converters if len(vr) == 2}  # noqa: PLR2004 - some keys name alternatives
_UNDEFINED = 0xFFFFFFFF
_SNIFFED_TAGS = 3


@dataclass(frozen=True)
class Header:
    """What comes before the pixels of a DICOM file.

    Attributes:
        dataset: all elements before the pixel data.
        syntax: transfer syntax UID; a native one is guessed where the file has none.
        data: the bytes in which the pixel data lies: the mapped file, or the inflated data set.
        start: of the value of the pixel data element, None when there is none.
        length: of that value in bytes, None when undefined (encapsulated).
        is_little_endian: byte order of native pixels.
        is_cut: the deflated stream ends early.

    """

    dataset: Dataset
    syntax: str
    data: mmap.mmap | bytes
    start: int | None
    length: int | None
    is_little_endian: bool
    is_cut: bool = False


def is_dicom(head: bytes) -> bool:
    """Whether bytes begin like a data set without preamble: ascending tags of the first groups with sane lengths.

    pydicom's `force` would take PNG files and text for data sets.
    """
    offset, last = 0, -1
    for number in range(_SNIFFED_TAGS):
        if offset + 8 > len(head):
            return number == _SNIFFED_TAGS - 1  # the last value may go beyond what was sniffed
        group, element = struct.unpack_from("<HH", head, offset)
        tag = group << 16 | element
        if group not in {_META, _FIRST} or tag <= last:
            return False
        offset, last = _next_element(head, offset), tag
    return True


def _next_element(head: bytes, offset: int) -> int:
    vr = head[offset + 4 : offset + 6]
    if vr in _LONG_VRS:
        return offset + 12 + int.from_bytes(head[offset + 8 : offset + 12], "little")
    if vr in _VRS:
        return offset + 8 + int.from_bytes(head[offset + 6 : offset + 8], "little")
    return offset + 8 + int.from_bytes(head[offset + 4 : offset + 8], "little")


def read_header(path: Path) -> Header:
    """Read all but the pixels of a DICOM file.

    Raises:
        Rejected: `undecodable`, `inflate_ratio`, `too_large`.

    """
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they would echo values
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        file.seek(PREAMBLE)
        file.seek(PREAMBLE + 4 if file.read(4) == b"DICM" else 0)
        meta = read_dataset(file, False, True, stop_when=_past_meta)
        syntax = str(meta.get("TransferSyntaxUID", "")).strip("\0 ") or _guess_syntax(file)
        if syntax != uid.DeflatedExplicitVRLittleEndian:
            return _read_body(file, mapped, syntax, meta)
        inflated, is_cut = _inflate(file.read())
        return _read_body(io.BytesIO(inflated), inflated, syntax, meta, is_cut)


def _past_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag >> 16 != _META


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag in _PIXEL_TAGS


def _guess_syntax(file: BinaryIO) -> str:
    """Native little endian, as the first element is written; a compressed one cannot be guessed."""
    head = file.read(8)
    file.seek(-len(head), io.SEEK_CUR)
    return str(uid.ExplicitVRLittleEndian if head[4:6] in _VRS else uid.ImplicitVRLittleEndian)


def _inflate(packed: bytes) -> tuple[bytes, bool]:
    limit = min(MAX_BYTES, max(_MIN_INFLATED, MAX_RATIO * len(packed)))
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = engine.decompress(packed, limit)
    if engine.unconsumed_tail:
        raise Rejected(Reason.TOO_LARGE if limit == MAX_BYTES else Reason.INFLATE_RATIO)
    return inflated, not engine.eof


def _read_body(file: BinaryIO, data: mmap.mmap | bytes, syntax: str, meta: Dataset, is_cut: bool = False) -> Header:
    is_little = syntax != uid.ExplicitVRBigEndian
    dataset = read_dataset(file, syntax == uid.ImplicitVRLittleEndian, is_little, stop_when=_at_pixels)
    if not len(dataset):
        raise Rejected(Reason.UNDECODABLE)
    if "SOPClassUID" not in dataset and "MediaStorageSOPClassUID" in meta:
        dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    start, length = _pixel_element(data, file.tell(), is_little)
    return Header(dataset, syntax, data, start, length, is_little, is_cut)


def _pixel_element(data: mmap.mmap | bytes, offset: int, is_little: bool) -> tuple[int | None, int | None]:
    """Start and length of the value of the pixel data element at an offset."""
    order = "<" if is_little else ">"
    head = data[offset : offset + 12]
    if len(head) < 8 or struct.unpack_from(f"{order}HH", head) != (_PIXEL_DATA >> 16, _PIXEL_DATA & 0xFFFF):  # noqa: PLR2004
        return None, None
    # These letters read as a length would be odd, so the two spellings cannot be taken for each other; some files
    # are written otherwise than their transfer syntax says.
    is_explicit = head[4:6] in _LONG_VRS and len(head) == 12  # noqa: PLR2004
    (length,) = struct.unpack_from(f"{order}I", head, 8 if is_explicit else 4)
    return offset + (12 if is_explicit else 8), None if length == _UNDEFINED else length

"""Where the frames of a pixel data element lie (DICOM PS3.5 A.4), by an own walk: a cut file gives what is whole.

A frame is a tuple of (start, end) pieces of the file. Nothing is copied before a frame is chosen.
"""

import mmap
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sharding.recording import MAX_FRAMES, Reason, Rejected

Piece = tuple[int, int]  # first byte and the one after the last
Begins = Callable[[bytes], bool]  # whether a fragment is the first of a frame

_ITEM, _END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_ITEM_HEAD = 8  # bytes
_SIGNATURE = 16  # bytes by which a codec knows its beginning
_MAX_FRAGMENTS = 1_000_000


@dataclass(frozen=True)
class Frames:
    """Where each frame lies.

    Attributes:
        data: file.
        pieces: of each frame.
        is_truncated: the file ends before its last frame.

    """

    data: mmap.mmap | bytes
    pieces: Sequence[tuple[Piece, ...]]
    is_truncated: bool

    def __len__(self) -> int:
        return len(self.pieces)

    def read(self, number: int) -> bytes:
        """Bytes of one frame."""
        return b"".join(self.data[start:end] for start, end in self.pieces[number])


@dataclass(frozen=True)
class Fragments:
    """Items of an encapsulated pixel data element.

    Attributes:
        pieces: their bytes; the last one may be cut.
        offsets: of each item from the first, as offset tables count.
        table: Basic Offset Table.
        is_cut: the file ends inside the last piece.
        has_end: the sequence is closed.

    """

    pieces: list[Piece]
    offsets: list[int]
    table: tuple[int, ...]
    is_cut: bool
    has_end: bool


def locate_native(data: mmap.mmap | bytes, start: int, length: int, frame_bytes: int, num_declared: int) -> Frames:
    """Frames of uncompressed pixels, as many as are there; a wrong NumberOfFrames does not matter.

    Raises:
        Rejected: `empty`, `too_large`.

    """
    present = min(length, len(data) - start)
    surplus = length - frame_bytes * num_declared
    fits = surplus < frame_bytes or length % frame_bytes > 1  # one byte may pad; odder surplus is no frame
    num_frames = min(present // frame_bytes, num_declared if fits else length // frame_bytes)
    _check_count(num_frames)
    is_truncated = present < length or (surplus < 0 and length % frame_bytes > 1)
    starts = range(start, start + num_frames * frame_bytes, frame_bytes)
    return Frames(data, [((first, first + frame_bytes),) for first in starts], is_truncated)


def walk_fragments(data: mmap.mmap | bytes, start: int) -> Fragments:
    """Items of an encapsulated pixel data element, as far as the file goes.

    Raises:
        Rejected: `undecodable` without a Basic Offset Table item, `too_large`.

    """
    pieces: list[Piece] = []
    offset, has_end, is_cut = start, False, False
    while offset + _ITEM_HEAD <= len(data) and len(pieces) <= _MAX_FRAGMENTS:
        group, element, length = struct.unpack_from("<HHI", data, offset)
        has_end = (group, element) == _END
        if (group, element) != _ITEM or length == 0xFFFFFFFF:  # noqa: PLR2004
            break
        offset += _ITEM_HEAD + length
        is_cut = offset > len(data)
        pieces.append((offset - length, min(offset, len(data))))
    if not pieces or (is_cut and len(pieces) == 1):
        raise Rejected(Reason.EMPTY if pieces else Reason.UNDECODABLE)
    if len(pieces) > _MAX_FRAGMENTS:
        raise Rejected(Reason.TOO_LARGE)
    (table_start, table_end), *rest = pieces
    count = (table_end - table_start) // 4
    table = struct.unpack_from(f"<{count}I", data, table_start)
    offsets = [first - _ITEM_HEAD - table_end for first, _ in rest]
    return Fragments(rest, offsets, table, is_cut, has_end)


def group_fragments(
    data: mmap.mmap | bytes,
    found: Fragments,
    extended: tuple[int, ...],
    num_declared: int,
    begins: Begins | None = None,
    end_mark: bytes = b"",
) -> Frames:
    """Put fragments together to frames.

    The Extended Offset Table is asked first, then the Basic one; a table is believed when it hits items and agrees
    with the codec's signatures. Then the signatures decide, and for a codec without any, one fragment is one frame.

    Args:
        data: file.
        found: fragments.
        extended: Extended Offset Table, empty when absent.
        num_declared: NumberOfFrames.
        begins: tells the first fragment of a frame; None for a codec without a signature.
        end_mark: what the last frame of a cut file must hold to be whole.

    Raises:
        Rejected: `frame_count_mismatch`, `empty`, `too_large`, `undecodable`.

    """
    if not found.pieces:
        raise Rejected(Reason.EMPTY)
    firsts = _firsts(data, found, begins)
    tables = [places for table in (extended, found.table) if (places := _places(table, found, firsts)) is not None]
    places = tables[0] if tables else _without_table(found, firsts, num_declared)
    groups = [tuple(found.pieces[a:b]) for a, b in pairwise([*places, len(found.pieces)])]
    is_single = len(groups) == len(found.pieces)
    is_short = not found.has_end and len(groups) < num_declared
    if len(groups) != num_declared and not is_single and not is_short:
        raise Rejected(Reason.FRAME_COUNT_MISMATCH)
    frames = Frames(data, groups, found.is_cut or is_short)
    if found.is_cut or (not found.has_end and end_mark not in frames.read(-1)):
        frames = Frames(data, groups[:-1], is_truncated=True)
    _check_count(len(frames))
    return frames


def _firsts(data: mmap.mmap | bytes, found: Fragments, begins: Begins | None) -> list[int] | None:
    """Numbers of the fragments that begin a frame, None when the codec does not show it."""
    if begins is None:
        return None
    heads = (data[start : min(end, start + _SIGNATURE)] for start, end in found.pieces)
    return [number for number, head in enumerate(heads) if begins(head)]


def _places(table: tuple[int, ...], found: Fragments, firsts: list[int] | None) -> list[int] | None:
    """Fragments at which the frames of an offset table begin, None when the table is wrong."""
    numbers = {offset: number for number, offset in enumerate(found.offsets)}
    known = [numbers.get(offset) for offset in table]
    if not found.has_end:  # a cut file has lost the items of the last entries
        known = [place for place, offset in zip(known, table, strict=True) if offset <= found.offsets[-1]]
    places = [place for place in known if place is not None]
    if not places or places[0] != 0 or len(places) != len(known) or any(b <= a for a, b in pairwise(places)):
        return None
    return places if firsts is None or places == firsts else None


def _without_table(found: Fragments, firsts: list[int] | None, num_declared: int) -> list[int]:
    num_fragments = len(found.pieces)
    if firsts is not None:
        if not firsts or firsts[0] != 0:
            raise Rejected(Reason.UNDECODABLE)
        return firsts
    if num_declared == 1:
        return [0]
    if num_fragments == num_declared or (not found.has_end and num_fragments < num_declared):
        return list(range(num_fragments))
    raise Rejected(Reason.FRAME_COUNT_MISMATCH)


def _check_count(num_frames: int) -> None:
    if num_frames < 1:
        raise Rejected(Reason.EMPTY)
    if num_frames > MAX_FRAMES:
        raise Rejected(Reason.TOO_LARGE)

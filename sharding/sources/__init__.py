"""One reader per kind of source: DICOM, video, image. What comes out is a Recording or a Rejected."""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2

from sharding.names import path_for_decoders
from sharding.recording import FrameChoice, Reason, Recording, Rejected
from sharding.sources.colour import is_flat
from sharding.sources.dicom import read_dicom
from sharding.sources.dicom_header import is_dicom
from sharding.sources.image import read_image
from sharding.sources.tiff import BIG_TIFF_START, TIFF_START
from sharding.sources.video import read_video

_SNIFF_BYTES = 1024
_ARCHIVE_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")  # zip, gz, bz2, xz
_IMAGE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", *TIFF_START, *BIG_TIFF_START)
_VIDEO_MAGIC = (b"\x1aE\xdf\xa3", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"GIF8")  # Matroska, MPEG-PS, MPEG-ES
_ISO_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}  # of mp4 and mov
_BITMAP_HEADERS = {12, 40, 52, 56, 64, 108, 124}  # bytes
_TAR_MAGIC, _TS_PACKET = 257, 188

_READERS: dict[str, Callable[[Path, str, FrameChoice], Recording]] = {
    "dicom": read_dicom,
    "video": read_video,
    "image": read_image,
}


def kind_of(path: Path) -> str:
    """Tell `dicom`, `video`, `image` or `archive` from the first bytes; names lie.

    Raises:
        Rejected: `not_readable_kind`.
        OSError: the file system would not hand it over.

    """
    with path.open("rb") as file:
        head = file.read(_SNIFF_BYTES)
    # A file may begin like another kind in the 128 bytes that DICOM leaves free, so DICM comes first.
    tests = {
        "dicom": head[128:132] == b"DICM",
        "archive": head.startswith(_ARCHIVE_MAGIC) or head[_TAR_MAGIC:].startswith(b"ustar"),
        "image": head.startswith(_IMAGE_MAGIC) or _is_bitmap(head),
        "video": _is_video(head),
    }
    found = [kind for kind, is_it in tests.items() if is_it] or ["dicom"] * is_dicom(head)
    if not found:
        raise Rejected(Reason.NOT_READABLE_KIND)
    return found[0]


def _is_bitmap(head: bytes) -> bool:
    return head.startswith(b"BM") and len(head) > 18 and struct.unpack_from("<I", head, 14)[0] in _BITMAP_HEADERS  # noqa: PLR2004


def _is_video(head: bytes) -> bool:
    is_transport = len(head) > _TS_PACKET and head[0] == head[_TS_PACKET] == ord("G")
    is_riff = head.startswith(b"RIFF") and head[8:12] == b"AVI "
    return head.startswith(_VIDEO_MAGIC) or head[4:8] in _ISO_BOXES or is_riff or is_transport


def read(path: Path, name: str, choice: FrameChoice) -> Recording:
    """Decode the chosen frames of one source.

    Args:
        path: the file.
        name: what identifies it inside its source folder; patient and clip of a file that carries no
            identifier of its own, so a video or an image counts as its own patient.
        choice: which frames.

    Raises:
        Rejected: with the reason, whatever the file holds.
        OSError: the file system failed; not a verdict on the file.

    """
    kind = kind_of(path)
    if kind == "archive":
        raise Rejected(Reason.NESTED_ARCHIVE)
    with _refusing(), path_for_decoders(path) as place:
        recording = _READERS[kind](place, name, choice)
        if all(is_flat(frame) for frame in recording.frames):  # a decoder that fails without a word gives black frames
            raise Rejected(Reason.EMPTY)
        return recording


@contextmanager
def _refusing() -> Iterator[None]:
    """Codecs raise anything on hostile bytes, with texts that echo them."""
    try:
        yield
    except Rejected:
        raise
    except MemoryError:
        raise Rejected(Reason.OUT_OF_MEMORY) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno:  # codecs raise OSError too, but only the system numbers it
            raise
        is_memory = isinstance(error, cv2.error) and getattr(error, "code", 0) == cv2.Error.StsNoMem
        raise Rejected(Reason.OUT_OF_MEMORY if is_memory else Reason.UNDECODABLE) from None

"""One reader per kind of source: DICOM, video, image, and the generator of synthetic recordings."""

from pathlib import Path

from sharding.recording import Reason, Recording, Rejected
from sharding.sources.dicom import patient_of, read_dicom
from sharding.sources.image import read_image
from sharding.sources.video import read_video

_SNIFF_BYTES = 132
_IMAGE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*", b"BM")
_VIDEO_MAGIC = (
    b"\x1aE\xdf\xa3",
    b"\x00\x00\x01\xba",
    b"\x00\x00\x01\xb3",
    b"GIF8",
)  # mkv/webm, MPEG-PS, MPEG-ES


def kind_of(path: Path) -> str:
    """Tell `dicom`, `video` or `image` from the first bytes; names lie.

    Raises:
        Rejected: `not_readable_kind`.

    """
    with path.open("rb") as file:
        head = file.read(_SNIFF_BYTES)
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(_IMAGE_MAGIC):
        return "image"
    if head.startswith(_VIDEO_MAGIC) or head[4:8] in {b"ftyp", b"moov", b"mdat", b"wide"} or head[8:12] == b"AVI ":
        return "video"
    raise Rejected(Reason.NOT_READABLE_KIND)


def read(path: Path, name: str) -> Recording:
    """Decode one source.

    Args:
        path: the file.
        name: what identifies it inside its source folder; patient and clip of a file that carries no
            identifier of its own, so a video or an image counts as its own patient.

    Raises:
        Rejected: with the reason.

    """
    readers = {"dicom": read_dicom, "video": read_video, "image": read_image}
    return readers[kind_of(path)](path, name)


def read_patient(path: Path, name: str) -> str:
    """Identifier of the patient from the header alone, for planning; `name` where there is none."""
    try:
        return patient_of(path, name) if kind_of(path) == "dicom" else name
    except Rejected:
        return name

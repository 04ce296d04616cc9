"""One source to encoded clips: everything that touches hostile bytes. Runs inside a killable child; see
isolate.py."""

import errno
import hashlib
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import cast

import cv2

from sharding.names import path_for_decoders
from sharding.preprocess import Clip, Pixels, cut_clips
from sharding.profiles import Profile
from sharding.recording import FrameChoice, Reason, Recording, Rejected
from sharding.sample import Certificate, Codec, encode_frame, encode_region
from sharding.sources import kind_of, read

_THUMBNAIL = 16  # pixels; nothing smaller than an eighth of the frame can be read
_FORBIDDEN = {errno.EACCES, errno.EPERM}  # of this file alone; any other error of the file system ends the job


@dataclass(frozen=True)
class Task:
    """What a child is asked to do.

    Attributes:
        path: local file.
        name: below the source.
        choice: frames to keep.
        pixels: what may be kept; see preprocess.cut_clips.
        profiles: signed by the site.
        codec: of the frames.
        mask: image that is non-zero inside the scan, None when the source has none.

    """

    path: Path
    name: str
    choice: FrameChoice = field(default_factory=FrameChoice)
    pixels: Pixels = "certified"
    profiles: tuple[Profile, ...] = ()
    codec: Codec = "jpeg"
    mask: Path | None = None


@dataclass(frozen=True)
class EncodedClip:
    """A clip as bytes: the code of each frame and the PNG of their region; the rest as in preprocess.Clip."""

    frames: tuple[bytes, ...]
    region_png: bytes
    frame_ids: tuple[int, ...]
    times_ms: tuple[float, ...] | None
    percentiles: tuple[int, int]
    mm_per_pixel: tuple[float, float] | None
    certificate: Certificate
    notes: dict[str, int]


@dataclass(frozen=True)
class Converted:
    """What became of one source, or of one member of an archive.

    Attributes:
        name: below the source, `archive!member` for a member.
        refusal: None when accepted.
        clips: one per region.
        source_kind: `dicom`, `video`, `image`; empty when refused before it was known.
        patient: as the source gives it.
        study: see Recording.
        has_patient: see Recording.
        clip: as the source gives it.
        tags: allow-listed facts.
        is_lossy: see Recording.
        content: sha256 of all frames and regions as they are stored.
        thumbnail: of a refused recording, blurred beyond reading: 16 x 16 grey levels, empty when there is no picture.
        fault: exception and line of our own code when it failed, never a text from the file.

    """

    name: str
    refusal: Reason | None = None
    clips: tuple[EncodedClip, ...] = ()
    source_kind: str = ""
    patient: str = ""
    clip: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    is_lossy: bool = False
    content: bytes = b""
    thumbnail: bytes = b""
    fault: str = ""
    study: str = ""
    has_patient: bool = False


def convert(task: Task) -> Converted:
    """Convert a file that is no archive.

    Raises:
        OSError: the source has gone; not a verdict on the file.

    """
    try:
        return _convert_frames(task)
    except MemoryError:
        return Converted(task.name, Reason.OUT_OF_MEMORY)
    except OSError as error:
        if error.errno in _FORBIDDEN:
            return Converted(task.name, Reason.UNREADABLE)
        if error.errno != errno.ENOMEM:
            raise
        return Converted(task.name, Reason.OUT_OF_MEMORY)  # mmap says it so


def kind_of_source(path: Path) -> str:
    """Tell `dicom`, `video`, `image` or `archive`.

    Raises:
        Rejected: `not_readable_kind`, or `unreadable` for this file alone.
        OSError: the source has gone; not a verdict on the file.

    """
    try:
        return kind_of(path)
    except OSError as error:
        if error.errno in _FORBIDDEN:
            raise Rejected(Reason.UNREADABLE) from None
        raise


def _convert_frames(task: Task) -> Converted:
    try:
        recording = read(task.path, task.name, replace(task.choice, with_colour=task.pixels != "as_is"))
    except Rejected as refusal:
        task.path.stat()  # a source that vanished is no verdict
        return Converted(task.name, refusal.reason)
    try:
        recording = with_mask(recording, task.mask)
        clips = cut_clips(recording, task.choice, task.pixels, task.profiles)
    except Rejected as refusal:
        return Converted(task.name, refusal.reason, source_kind=recording.source_kind, thumbnail=_blurred(recording))
    encoded = tuple(_encode(clip, recording, task.codec) for clip in clips)
    return Converted(
        name=task.name,
        clips=encoded,
        source_kind=recording.source_kind,
        patient=recording.patient,
        clip=recording.clip,
        tags=recording.tags,
        is_lossy=recording.is_lossy,
        content=_content(encoded),
        study=recording.study,
        has_patient=recording.has_patient,
    )


def with_mask(recording: Recording, mask: Path | None) -> Recording:
    """The recording with the scan that an image marks by what is not zero; as it is where there is no such image.

    Raises:
        Rejected: `mask_unreadable`, `mask_mismatch`, or `mask_empty`.

    """
    if mask is None:
        return recording
    with path_for_decoders(mask) as place:
        scan = cv2.imread(str(place), cv2.IMREAD_GRAYSCALE)
    if scan is None:
        raise Rejected(Reason.MASK_UNREADABLE)
    if scan.shape != recording.frames.shape[1:]:
        raise Rejected(Reason.MASK_MISMATCH)
    if not scan.any():
        raise Rejected(Reason.MASK_EMPTY)
    return replace(recording, mask=scan > 0)


def _encode(clip: Clip, recording: Recording, codec: Codec) -> EncodedClip:
    times = recording.frame_times_ms
    place = {int(frame_id): row for row, frame_id in enumerate(recording.frame_ids)}
    return EncodedClip(
        frames=tuple(encode_frame(frame, clip.region, codec) for frame in clip.frames),
        region_png=encode_region(clip.region),
        frame_ids=tuple(map(int, clip.frame_ids)),
        times_ms=None if times is None else tuple(round(float(times[place[int(i)]]), 3) for i in clip.frame_ids),
        percentiles=clip.percentiles,
        mm_per_pixel=clip.mm_per_pixel,
        certificate=cast("Certificate", clip.certificate),
        notes={
            "frames_near_identical": clip.num_dropped,
            "frames_inpainted": clip.num_inpainted,
            "frames_colour_overlay": clip.num_refused,
            "clips_truncated": int(recording.is_truncated),
        },
    )


def _content(clips: tuple[EncodedClip, ...]) -> bytes:
    """Equal pixels give equal bytes, of which there are fewer."""
    digest = hashlib.sha256()
    for data in chain.from_iterable((*clip.frames, clip.region_png) for clip in clips):
        digest.update(len(data).to_bytes(8) + data)
    return digest.digest()


def _blurred(recording: Recording) -> bytes:
    middle = recording.frames[len(recording.frames) // 2]
    return bytes(cv2.resize(middle, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA).data)

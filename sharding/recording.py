"""What a source decodes to, and the named reasons for which one is refused."""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

MAX_SIDE = 4096  # pixels
MAX_FRAMES = 20_000
MAX_BYTES = 2**33  # decoded bytes of all frames of a source, as its header claims them
MAX_RATIO = 100  # unpacked over packed bytes
NUM_WITNESSES = 16  # frames that are looked at to find what moves

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, inclusive, as DICOM region locations are


class InputError(ValueError):
    """What the user gave cannot be used. The message says where, what (with the value) and what would be right."""


class Reason(StrEnum):
    """Every outcome of a source other than accepted. The only text about a refusal that leaves the job.

    Attributes:
        meaning: for the report.

    """

    meaning: str

    def __new__(cls, code: str, meaning: str = "") -> "Reason":
        """Equal to its code, and carries its meaning."""
        reason = str.__new__(cls, code)
        reason._value_, reason.meaning = code, meaning
        return reason

    # the file
    NOT_READABLE_KIND = "not_readable_kind", "neither DICOM nor a known video, image or archive"
    UNREADABLE = "unreadable", "the file system would not hand it over"
    ENCRYPTED = "encrypted", "member of an archive with a password"
    UNSAFE_NAME = "unsafe_name", "member of an archive whose name leaves it, or a link or a device"
    NESTED_ARCHIVE = "nested_archive", "archive inside an archive"
    # what it holds
    NOT_IMAGE = "not_image", "DICOM without pixels: report, waveform, directory"
    NOT_ULTRASOUND = "not_ultrasound", "Modality of something else"
    SOP_REFUSED = "sop_refused", "secondary capture and camera pictures: scanned forms, rooms, faces"
    UNSUPPORTED_SOP = "unsupported_sop", "ultrasound, but not a 2-D image or cine"
    # its pixels
    UNSUPPORTED_CODEC = "unsupported_codec", "transfer syntax that no installed decoder takes, or pixels behind a URL"
    UNDECODABLE = "undecodable", "the decoder failed"
    EMPTY = "empty", "no frame, or no picture: every frame has a single grey level"
    TOO_LARGE = "too_large", "above the pixel, frame or byte limit"
    INFLATE_RATIO = "inflate_ratio", "unpacks to more than a hundredfold: a bomb"
    SIZE_MISMATCH = "size_mismatch", "codestream and header disagree about rows and columns"
    MASK_UNREADABLE = "mask_unreadable", "the scan mask that its list names is missing or no picture"
    MASK_MISMATCH = "mask_mismatch", "the scan mask that its list names has other rows and columns"
    MASK_EMPTY = "mask_empty", "the scan mask that its list names marks nothing"
    FRAME_COUNT_MISMATCH = "frame_count_mismatch", "fragments cannot be told apart into the declared frames"
    TIMEOUT = "timeout", "decoding took longer than allowed, twice"
    CRASHED = "crashed", "the decoder died, twice"
    OUT_OF_MEMORY = "out_of_memory", "decoding needed more memory than allowed"
    # what may be kept of them
    NO_CONE = "no_cone", "no single solid sector inside a valid region tag"
    NO_MOTION = "no_motion", "cine without region tag whose sector does not move"
    UNCERTIFIED_STILL = "uncertified_still", "still without a valid region tag or device profile"
    TEXT_IN_REGION = "text_in_region", "letters inside the sector"
    COLOUR_OVERLAY = "colour_overlay", "coloured marks on more than 5 % of every frame"
    COLOUR_CAST = "colour_cast", "tinted throughout: wrongly decoded or no B-mode"
    # beside other recordings
    DUPLICATE = "duplicate", "the same pixels came before it"
    UID_CONFLICT = "uid_conflict", "the same instance identifier came before it, with other pixels"


class Rejected(Exception):  # noqa: N818 - a verdict, not an error
    """A recording that is not to be used.

    Args:
        reason: the code that goes into the outcome.

    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a recording are decoded, and which of these are stored.

    Attributes:
        max_frames: stored frames per clip at most, evenly spaced.
        stride: only every stride-th frame is a candidate.
        with_colour: say how coloured each pixel is; a JPEG's chroma is not decoded otherwise.

    """

    max_frames: int = 32
    stride: int = 1
    with_colour: bool = True

    def stored(self, num_frames: int) -> np.ndarray:
        """(S,) int64 indices of the frames to store, ascending."""
        candidates = np.arange(0, num_frames, self.stride)
        places = np.linspace(0, len(candidates) - 1, min(len(candidates), self.max_frames))
        return candidates[places.round().astype(np.int64)]

    def decoded(self, num_frames: int) -> np.ndarray:
        """(T,) int64 indices of the frames to decode, ascending: the stored ones and those that witness motion."""
        witnesses = np.linspace(0, num_frames - 1, min(num_frames, NUM_WITNESSES)).round().astype(np.int64)
        return np.union1d(self.stored(num_frames), witnesses)


@dataclass(frozen=True)
class Recording:
    """The decoded frames of one source.

    Attributes:
        frames: (T, H, W) uint8, grey: the frames of `FrameChoice.decoded`.
        frame_ids: (T,) int64, index of each in the source.
        source_kind: `dicom`, `video` or `image`.
        patient: identifier of the patient as the source gives it; never stored, only its pseudonym.
        clip: identifier of the recording as the source gives it; never stored, only its pseudonym.
        colour: (T, H, W) uint8, largest minus smallest of R, G and B per pixel; None for a grey source.
        regions: boxes of the 2-D tissue regions that the source declares and that lie inside the image; None when
            it declares none or one of them is invalid.
        excluded: boxes that it declares for something else (grey bar, ECG, spectrum).
        frame_times_ms: (T,) milliseconds since the first frame of the source, None when it does not say.
        mm_per_pixel: one (x, y) spacing per region, None where the source does not say.
        tags: typed, allow-listed facts (manufacturer family, body part); see deidentify.py.
        device: manufacturer and model as the source spells them, to find a device profile; never stored.
        is_lossy: the source's codec loses information; between copies the other one is kept.
        is_truncated: the source ends early; the frames that are whole are here.
        mask: (H, W) bool, the scan as a published set marks it; None when it does not.
        study: identifier of the study as the source gives it, empty where it gives none; never stored.
        has_patient: whether `patient` is that of a patient; else it is the study, or the source itself.

    """

    frames: np.ndarray
    frame_ids: np.ndarray
    source_kind: str
    patient: str
    clip: str
    colour: np.ndarray | None = None
    regions: tuple[Box, ...] | None = None
    excluded: tuple[Box, ...] = ()
    frame_times_ms: np.ndarray | None = None
    mm_per_pixel: tuple[tuple[float, float] | None, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    device: tuple[str, str] = ("", "")
    is_lossy: bool = False
    is_truncated: bool = False
    mask: np.ndarray | None = None
    study: str = ""
    has_patient: bool = False

"""What a source decodes to, and the named reasons for which one is refused."""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

MAX_SIDE = 4096  # pixels
MAX_FRAMES = 20_000
MAX_BYTES = 2**32  # decoded grey bytes of one recording

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, inclusive, as DICOM region locations are


class InputError(ValueError):
    """What the user gave cannot be used. The message says where, what (with the value) and what would be right."""


class Reason(StrEnum):
    """Every outcome of a source other than accepted. The only text about a refusal that leaves the job."""

    NOT_READABLE_KIND = "not_readable_kind"  # neither DICOM nor a known video or image
    NOT_ULTRASOUND = "not_ultrasound"  # Modality or SOP class of something else
    UNSUPPORTED_SOP = "unsupported_sop"  # ultrasound, but not a 2-D image or cine
    UNSUPPORTED_CODEC = "unsupported_codec"  # transfer syntax that no installed decoder takes
    UNDECODABLE = "undecodable"  # the decoder failed
    EMPTY = "empty"  # no frame
    TOO_LARGE = "too_large"  # above the pixel or frame limit
    NO_CONE = "no_cone"  # no single solid sector inside a valid region tag
    NO_MOTION = "no_motion"  # cine without region tag whose sector does not move
    UNCERTIFIED_STILL = "uncertified_still"  # still without a valid region tag
    DUPLICATE = "duplicate"  # a recording with this identifier came before it


class Rejected(Exception):  # noqa: N818 - a verdict, not an error
    """A recording that is not to be used.

    Args:
        reason: the code that goes into the outcome.

    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason


@dataclass(frozen=True)
class Recording:
    """One decoded source.

    Attributes:
        frames: (T, H, W) uint8, grey.
        source_kind: `dicom`, `video` or `image`.
        patient: identifier of the patient as the source gives it; never stored, only its pseudonym.
        clip: identifier of the recording as the source gives it; never stored, only its pseudonym.
        regions: boxes of the 2-D tissue regions that the source declares, None when it declares none.
        excluded: boxes that overlap them and show something else (grey bar, ECG, spectrum).
        frame_times_ms: (T,) milliseconds since the first frame, None when the source does not say.
        mm_per_pixel: one (x, y) spacing per region, None where the source does not say.
        tags: typed, allow-listed facts (manufacturer family, body part); see deidentify.py.

    """

    frames: np.ndarray
    source_kind: str
    patient: str
    clip: str
    regions: tuple[Box, ...] | None = None
    excluded: tuple[Box, ...] = ()
    frame_times_ms: np.ndarray | None = None
    mm_per_pixel: tuple[tuple[float, float] | None, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)

"""Real recordings beside the checkout, in two parts by patient or device, and which of them hold letters.

Looked at by eye, in the region that `--pixels public` finds or that the tag declares.
"""

import csv
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from sharding.marks import remove_marks
from sharding.preprocess import bounding_box
from sharding.recording import FrameChoice, Recording, Rejected
from sharding.region import find_regions
from sharding.sources import read

Part = Literal["chosen on", "judged on"]
HOLD_LETTERS = {
    "dicom/GREYSCALE_CINE_trim4_rle.dcm": "depth of 4.0 beside the ruler, at the lower right",
    "dicom/GREYSCALE_IMAGE.dcm": "depth of 4.0 beside the ruler, at the lower right",
    "pocus_raw_ui/clarius-ocular-short.mp4": "4 cm under the picture, ruler",
    "pocus_raw_ui/interson-image-annotation.jpg": "the region is the toolbar: Calculate, Pointer, Annotate",
}
_SETS = ("dicom", "pocus_ccby", "pocus_raw_ui", "hc18_ccby", "muscle_cc0")


@dataclass(frozen=True)
class RealClip:
    """The region of a real recording, before it is made smaller.

    Attributes:
        name: path below the folder.
        frames: (T, H, W) uint8, coloured marks painted over, cropped to the region's bounding box.
        region: (H, W) bool.

    """

    name: str
    frames: np.ndarray
    region: np.ndarray


def real_clips(folder: Path, part: Part | None = None, letters: bool = False) -> Iterator[RealClip]:
    """Yield what the recordings of a folder show, of one part or of both.

    Args:
        folder: holds labels.csv with the columns path, group and set.
        part: of the two into which the groups (patients, devices) are split.
        letters: those of HOLD_LETTERS instead of the others.

    """
    with (folder / "labels.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["path"].split("/")[0] in _SETS]
    for row in rows:
        is_judged = zlib.crc32(f"{row['set']} {row['group']}".encode()) % 2 == 1
        wanted = part is None or (part == "judged on") == is_judged
        if wanted and (row["path"] in HOLD_LETTERS) == letters:
            yield from clips_of(folder, row["path"])


def clips_of(folder: Path, name: str, choice: FrameChoice | None = None) -> list[RealClip]:
    """Regions of one recording; none where it is refused for another reason than letters."""
    choice = choice or FrameChoice()
    try:
        recording = read(folder / name, "x", choice)
        regions = find_regions(recording, "public")
        stored = np.isin(recording.frame_ids, choice.stored(int(recording.frame_ids[-1]) + 1))
        found = [_clip(name, recording, region.mask, stored) for region in regions]
    except Rejected:
        return []
    return [clip for clip in found if len(clip.frames)]


def _clip(name: str, recording: Recording, mask: np.ndarray, stored: np.ndarray) -> RealClip:
    box = bounding_box(mask)
    frames = recording.frames[:, *box]
    if recording.colour is not None:
        cleaned = remove_marks(frames, recording.colour[:, *box], mask[box])
        frames, stored = cleaned.frames, stored[cleaned.kept]
    return RealClip(name, frames[stored], mask[box])

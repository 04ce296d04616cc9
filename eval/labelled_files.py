"""Labelled pictures and videos in a folder: listed in a labels.csv, or in UltraBench's lists."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from sharding.convert import with_mask
from sharding.labels import Label, describe_labels, is_ultrabench, listed_labels
from sharding.names import path_for_decoders
from sharding.preprocess import Clip, bounding_box, cut_clips, stretch, to_square
from sharding.recording import FrameChoice, InputError, Recording
from sharding.sources import read
from sharding.store import Store
from sharding.tables import COLUMNS, Match, Row, match, normal_name, read_table, refuse_unmatched

_SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Entry:
    """One recording of a set.

    Attributes:
        path: the file.
        name: below the folder of its list.
        label: class, as the list spells it.
        group: patient, or what else belongs together.
        split: `train`, `val` or `test`; None where the set has none.
        scan: image of what is scan; None where the set has none.
        target: image of class ids, such as lesions; None where the set has none.
        value: number to predict besides the class, such as an age; None where the set has none.

    """

    path: Path
    name: str
    label: str
    group: str
    split: str | None = None
    scan: Path | None = None
    target: Path | None = None
    value: float | None = None


class LabelledFrame(NamedTuple):
    """One frame: square (2, S, S) uint8 with frame and region; mask (S, S) uint8 of class ids, 0 outside the scan."""

    square: np.ndarray
    label: str
    group: str
    split: str | None = None
    mask: np.ndarray | None = None
    value: float | None = None


class Listed(NamedTuple):
    """Recordings with a label, and sentences about the lists: classes with their counts, and what is left out."""

    entries: list[Entry]
    lines: list[str]


def list_entries(folder: Path, allow_unmatched: bool = False) -> Listed:
    """What the lists of a folder name, in their order.

    Args:
        folder: in UltraBench's layout, or with a labels.csv in it or beside it, of which the files below it count.
        allow_unmatched: rows without a file are said, and no error.

    Raises:
        InputError: no list, a column or file that is missing, no label, an unknown split, a value that is no number,
            or only some with a split or a value.

    """
    if not folder.is_dir():
        raise InputError(f"labelled set {folder}: no such folder")
    listed = (_of_lists if is_ultrabench(Store(folder)) else _of_table)(folder.resolve(), allow_unmatched)
    for entry in listed.entries:
        for path in (entry.scan, entry.target):
            if path is not None and not path.is_file():
                raise InputError(f"labelled set {folder}: its list names {entry.name}, but there is no file {path}")
    return listed


def read_frames(entry: Entry, choice: FrameChoice, size: int) -> list[LabelledFrame]:
    """The chosen frames of a recording as squares of `size` pixels.

    Raises:
        Rejected: it cannot be read.
        InputError: the mask of classes has another shape than the picture.

    """
    recording = with_mask(read(entry.path, entry.name, choice), entry.scan)
    clips = cut_clips(recording, choice, pixels="public")
    return [
        LabelledFrame(square, entry.label, entry.group, entry.split, mask, entry.value)
        for clip in clips
        for mask in [_target(entry, recording, clip, size)]
        for square in squares_of(clip, size)
    ]


def squares_of(clip: Clip, size: int) -> list[np.ndarray]:
    """The frames of a clip with stretched grey levels, each with its region: (2, size, size) uint8."""
    return [to_square(stretch(frame, clip.region, clip.percentiles), clip.region, size) for frame in clip.frames]


def _target(entry: Entry, recording: Recording, clip: Clip, size: int) -> np.ndarray | None:
    """Class ids on the square of a clip: cut, shrunk and fitted in as its frames were."""
    if entry.target is None or recording.mask is None:
        return None
    with path_for_decoders(entry.target) as place:
        ids = cv2.imread(str(place), cv2.IMREAD_GRAYSCALE)
    if ids is None or ids.shape != recording.mask.shape:
        raise InputError(
            f"mask {entry.target}: {'unreadable' if ids is None else ids.shape}; "
            f"the picture is {recording.mask.shape}, and its mask must be too"
        )
    box = bounding_box(recording.mask)
    small = cv2.resize(ids[box], clip.region.shape[::-1], interpolation=cv2.INTER_NEAREST) * clip.region
    square = np.zeros((size, size), dtype=np.uint8)
    for one in np.unique(small[small > 0]):
        square[to_square(small, small == one, size)[1] > 0] = one
    return square


def _of_lists(folder: Path, allow_unmatched: bool) -> Listed:
    source = Store(folder)
    labels = listed_labels(source)
    said = describe_labels(source, None)
    found = _find_files(str(folder), folder, "images", {name for name, _ in labels})
    said += refuse_unmatched(str(folder), found, str(folder), allow_unmatched)
    return Listed(
        [_of_label(folder, found.sources[name], label) for name, label in labels if name in found.sources], said
    )


def _of_label(folder: Path, name: str, known: Label) -> Entry:
    if known.label is None:
        raise InputError(f"labelled set {folder}: {name} has neither label nor pathology in its list")
    scan, target = (None if part is None else folder / part for part in (known.mask, known.target))
    return Entry(folder / name, name, known.label, known.group or name, known.split, scan, target)


def _of_table(folder: Path, allow_unmatched: bool) -> Listed:
    places = [place for place in (folder, folder.parent) if (place / "labels.csv").is_file()]
    if not places:
        raise InputError(
            f"labelled set {folder}: neither labels.csv in it or beside it (columns: {', '.join(COLUMNS)}; also split "
            "and value), nor images/ with UltraBench's lists, nor manifest.json of a shard directory"
        )
    root, place = places[0], places[0] / "labels.csv"
    below = "" if root == folder else folder.name
    table = read_table(place, str(root)).below(normal_name(below))
    if not table.rows:
        raise InputError(f"{place}: lists nothing in {folder}")
    found = _find_files(str(place), root, below, table.rows)
    said = table.lines() + refuse_unmatched(str(place), found, str(root), allow_unmatched)
    matched = [(row, found.sources[name]) for name, row in table.rows.items() if name in found.sources]
    entries = [_of_row(row, root, name, place) for row, name in matched if row.cells["label"]]
    if not entries:
        raise InputError(f"{place}: none of its {len(table.rows)} rows in {folder} has a file and a label")
    for what in ("split", "value"):
        without = [entry.name for entry in entries if getattr(entry, what) is None]
        if 0 < len(without) < len(entries):
            raise InputError(f"{place}: {without[0]} has no {what}, others have; all or none")
    return Listed(entries, said)


def _find_files(place: str, root: Path, below: str, listed: Collection[str]) -> Match:
    """The file of every row: one that is spelled as in the table, also where a link leads elsewhere, or another one."""
    sources = [name for name, _ in Store(root).entries(below) if root / name != Path(place)]
    known = {*sources}
    return match(place, listed, [*sources, *(name for name in listed if name not in known and _is_file(root, name))])


def _is_file(root: Path, name: str) -> bool:
    return not name.startswith((".", "/")) and (root / name).is_file()


def _of_row(row: Row, root: Path, name: str, place: Path) -> Entry:
    split = row.cells["split"] or None
    if split is not None and split not in _SPLITS:
        raise InputError(f"{place}: {name} has the split {split!r}; one of train, val, test is needed")
    named = None if split is None else _SPLITS[split]
    value = _value(row.cells["value"], name, place)
    return Entry(root / name, name, row.cells["label"], row.cells["group"] or row.name, named, value=value)


def _value(text: str, name: str, place: Path) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{place}: {name} has the value {text!r}; a finite number is needed")
    return value

"""Labelled sets: a folder with a labels.csv of path, label, group. Read through the preprocessing of the shards."""

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from sharding.preprocess import cut_clips, stretch, to_square
from sharding.recording import FrameChoice, InputError, Rejected
from sharding.sources import read

_COLUMNS = ("path", "label", "group")


@dataclass(frozen=True)
class LabelledSet:
    """Frames with labels.

    Attributes:
        name: of the folder.
        squares: (n, 2, S, S) uint8, frame and region (0 or 255).
        labels: (n,) int64 index into classes.
        groups: (n,) patient, as text.
        classes: names, sorted.
        num_refused: recordings that could not be read.
        keys: (n,) unique text, the same for the same frame in any order.

    """

    name: str
    squares: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    classes: tuple[str, ...]
    num_refused: int
    keys: np.ndarray

    @property
    def sha256(self) -> str:
        """Of keys, squares and labels in the order of the keys, hex."""
        digest = hashlib.sha256()
        for row in np.argsort(self.keys):
            digest.update(f"{self.keys[row]} {self.classes[self.labels[row]]}".encode())
            digest.update(self.squares[row].tobytes())
        return digest.hexdigest()


def load_set(spec: str, size: int, frames_per_recording: int = 4) -> LabelledSet:
    """Read the set that a spec names; see load_labelled_set."""
    return load_labelled_set(Path(spec), size, frames_per_recording)


def load_labelled_set(folder: Path, size: int, frames_per_recording: int) -> LabelledSet:
    """Read all recordings that labels.csv lists below a folder.

    Args:
        folder: holds the files; labels.csv lies in it or in its parent.
        size: side S of the squares in pixels.
        frames_per_recording: evenly spaced frames of a cine; each has the label of its recording.

    Raises:
        InputError: no labels.csv, a column or file that is missing, or nothing readable.

    """
    rows, root = _rows(folder)
    choice = FrameChoice(frames_per_recording)
    squares: list[np.ndarray] = []
    labels: list[str] = []
    groups: list[str] = []
    keys: list[str] = []
    num_refused = 0
    for row in track(rows, description=f"read {folder.name}"):
        try:
            clips = cut_clips(read(root / row["path"], row["path"], choice), choice, pixels="public")
        except Rejected:
            num_refused += 1
            continue
        for clip in clips:
            frames = [to_square(stretch(f, clip.region, clip.percentiles), clip.region, size) for f in clip.frames]
            squares += frames
            labels += [row["label"]] * len(frames)
            groups += [row["group"]] * len(frames)
            keys += [f"{row['path']}#{len(keys) + n}" for n in range(len(frames))]
    if not squares:
        raise InputError(f"labelled set {folder}: none of its {len(rows)} recordings can be read")
    classes, indices = np.unique(labels, return_inverse=True)
    named = tuple(map(str, classes))
    return LabelledSet(folder.name, np.stack(squares), indices, np.array(groups), named, num_refused, np.array(keys))


def _rows(folder: Path) -> tuple[list[dict[str, str]], Path]:
    found = [place for place in (folder, folder.parent) if (place / "labels.csv").is_file()]
    if not folder.is_dir() or not found:
        raise InputError(f"labelled set {folder}: no labels.csv in it or beside it; columns: {', '.join(_COLUMNS)}")
    root = found[0]
    with (root / "labels.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        missing = set(_COLUMNS) - set(reader.fieldnames or ())
        if missing:
            raise InputError(f"{root / 'labels.csv'}: no column {sorted(missing)[0]}; columns: {', '.join(_COLUMNS)}")
        rows = [row for row in reader if (root / row["path"]).is_relative_to(folder)]
    absent = [row["path"] for row in rows if not (root / row["path"]).is_file()]
    if absent or not rows:
        raise InputError(
            f"{root / 'labels.csv'}: " + (f"no file {absent[0]}" if absent else f"lists nothing in {folder}")
        )
    return rows, root

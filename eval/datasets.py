"""Labelled sets for probes, wherever their pictures lie, through the preprocessing of the shards."""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from rich.progress import track

from eval.frame_reader import FrameReader
from eval.labelled_files import LabelledFrame, list_entries
from eval.labelled_shards import shard_frames
from eval.ultrabench import BENCH_SETS, BenchSet, bench_set, find_folder
from sharding.child import Fault
from sharding.manifest import MANIFEST
from sharding.names import name_bytes, printable
from sharding.recording import FrameChoice, InputError, Rejected

_KEY_LETTERS = 32
_SHOWN = 5  # recordings that are named when they are left out


@dataclass(frozen=True)
class LabelledSet:
    """Frames with labels.

    Attributes:
        name: of the folder, or of the benchmark's set.
        squares: (n, 2, S, S) uint8, frame and region (0 or 255).
        labels: (n,) int64 index into classes.
        groups: (n,) patient, or what else belongs together, as text.
        classes: names; each has a sample.
        num_refused: recordings that could not be read.
        keys: (n,) unique text made of the content, the same for the same frame in any order.
        splits: (n,) "train", "val" or "test" as published; None: cross-validation by group.
        masks: (n, S, S) uint8 class ids, such as lesions; None unless every sample has one.
        values: (n,) float64 numbers to predict besides the class; None where the set has none.

    """

    name: str
    squares: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    classes: tuple[str, ...]
    num_refused: int
    keys: np.ndarray
    splits: np.ndarray | None = None
    masks: np.ndarray | None = None
    values: np.ndarray | None = None

    @cached_property
    def sha256(self) -> str:
        """Hash of all that a sample has, sample after sample in the order of the keys, hex; reads every pixel once."""
        digest = hashlib.sha256()
        for row in np.argsort(self.keys):
            split = "" if self.splits is None else self.splits[row]
            value = "" if self.values is None else self.values[row]
            known = (self.keys[row], self.classes[self.labels[row]], self.groups[row], split, value)
            digest.update(repr(tuple(map(str, known))).encode())
            digest.update(self.squares[row].tobytes())
            digest.update(b"" if self.masks is None else self.masks[row].tobytes())
        return digest.hexdigest()

    def take(self, rows: np.ndarray) -> "LabelledSet":
        """The samples of some rows: numbers, or (n,) bool. Classes stay, also those without a sample."""
        parts = ("squares", "labels", "groups", "keys", "splits", "masks", "values")
        found = {name: getattr(self, name) for name in parts}
        return replace(self, **{name: values[rows] for name, values in found.items() if values is not None})


def load_set(spec: str, size: int, frames_per_recording: int = 4, allow_unmatched: bool = False) -> LabelledSet:
    """Read a labelled set.

    Args:
        spec: a folder with a labels.csv in it or beside it (path, label, group; split and value where there are some),
            one in UltraBench's layout, or a shard directory of ours that has labels. `KEY=FOLDER` reads one of
            the sets of eval/ultrabench.py from its folder or from the one around it, and names its classes.
        size: side S of the squares in pixels.
        frames_per_recording: evenly spaced frames of a cine; each has the label of its recording.
        allow_unmatched: rows of labels without a file are said, and no error.

    Raises:
        InputError: no such set, lists or labels that cannot be used, or nothing readable; says what would be right.

    """
    folder, known = _find(spec)
    choice = FrameChoice(frames_per_recording)
    if (folder / MANIFEST).is_file():
        frames, num_refused = shard_frames(folder, choice, size), 0
    else:
        frames, num_refused = _read_files(folder, choice, size, allow_unmatched)
    name = printable(folder.name) if known is None else known.name
    return _assemble(name, frames, num_refused, _class_names(frames, known, folder))


def _find(spec: str) -> tuple[Path, BenchSet | None]:
    key, equals, place = spec.partition("=")
    if not equals or Path(spec).exists():
        return Path(spec), None
    known = bench_set(key)
    if known is None:
        keys = ", ".join(one.key for one in BENCH_SETS)
        raise InputError(f"set {spec}: {key} is none of {keys}; a folder of your own needs no name before it")
    return find_folder(known, Path(place)), known


def _read_files(folder: Path, choice: FrameChoice, size: int, allow_unmatched: bool) -> tuple[list[LabelledFrame], int]:
    """Frames, and the number of recordings without any."""
    entries, lines = list_entries(folder, allow_unmatched)
    for line in lines:
        print(line)
    frames: list[LabelledFrame] = []
    refused: list[str] = []
    with FrameReader(entries) as reader:
        for entry in track(entries, description=f"read {folder.name}"):
            try:
                frames += reader.read(entry, choice, size)
            except (Rejected, Fault) as why:
                refused.append(f"{entry.name} ({why})")
    shown = ", ".join(refused[:_SHOWN]) + (", ..." if len(refused) > _SHOWN else "")
    if not frames:
        raise InputError(f"labelled set {folder}: none of its {len(entries)} recordings can be read: {shown}")
    if refused:
        print(f"labelled set {folder}: {len(refused)} of {len(entries)} recordings are left out: {shown}")
    return frames, len(refused)


def _class_names(frames: list[LabelledFrame], known: BenchSet | None, folder: Path) -> dict[str, str]:
    """Name of each label that occurs, in the order of the classes."""
    labels = {frame.label for frame in frames}
    if known is None:
        return {label: label for label in sorted(labels)}
    named = {str(number): name for number, name in enumerate(known.classes)} | {name: name for name in known.classes}
    unknown = sorted(labels - set(named))
    if unknown:
        raise InputError(
            f"labelled set {folder}: label {unknown[0]!r} is none of {known.name}'s: {', '.join(known.classes)}, "
            f"or 0 to {len(known.classes) - 1}"
        )
    return {label: name for label, name in named.items() if label in labels}


def _assemble(name: str, frames: list[LabelledFrame], num_refused: int, names: dict[str, str]) -> LabelledSet:
    classes = tuple(dict.fromkeys(names.values()))
    place = {label: classes.index(title) for label, title in names.items()}
    masks = [frame.mask for frame in frames if frame.mask is not None]
    splits = [frame.split for frame in frames if frame.split is not None]
    values = [frame.value for frame in frames if frame.value is not None]
    return LabelledSet(
        name=name,
        squares=np.stack([frame.square for frame in frames]),
        labels=np.array([place[frame.label] for frame in frames], dtype=np.int64),
        groups=np.array([frame.group for frame in frames]),
        classes=classes,
        num_refused=num_refused,
        keys=_keys(frames),
        splits=np.array(splits) if splits else None,
        masks=np.stack(masks) if len(masks) == len(frames) else None,
        values=np.array(values) if values else None,
    )


def _keys(frames: list[LabelledFrame]) -> np.ndarray:
    """Hashes of content; those that are equal in all but label, split, value or mask are numbered by these."""
    hashes = [hashlib.sha256(name_bytes(frame.group) + b"\0" + frame.square.tobytes()).hexdigest() for frame in frames]
    order = sorted(range(len(frames)), key=lambda row: (hashes[row], _rest(frames[row])))
    seen: Counter[str] = Counter()
    keys = [""] * len(frames)
    for row in order:
        short = hashes[row][:_KEY_LETTERS]
        keys[row] = f"{short}-{seen[short]}"
        seen[short] += 1
    return np.array(keys)


def _rest(frame: LabelledFrame) -> tuple[str, str, str, bytes]:
    return frame.label, frame.split or "", str(frame.value), b"" if frame.mask is None else frame.mask.tobytes()

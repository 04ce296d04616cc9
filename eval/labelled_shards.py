"""Labelled frames in a shard directory of ours: pseudonyms are the groups, and pretraining's split is not a probe's."""

import json
from collections import defaultdict
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from rich.progress import track

from eval.labelled_files import LabelledFrame
from sharding.manifest import load_manifest
from sharding.preprocess import stretch, to_square
from sharding.reader import ShardReader
from sharding.recording import FrameChoice, InputError


class _Place(NamedTuple):
    """Where a sample lies."""

    shard: str
    at: int


def shard_frames(folder: Path, choice: FrameChoice, size: int) -> list[LabelledFrame]:
    """Evenly spaced frames of every labelled clip, as squares of `size` pixels, without splits.

    Raises:
        InputError: unfinished, no labelled sample, or a labelled sample without patient.
        BadSampleError: a sample cannot be read.

    """
    clips = _labelled_clips(folder)
    if not clips:
        raise InputError(f"labelled set {folder}: no sample has a label; make the shards with a table of labels")
    chosen = sorted(place for frames in clips.values() for place in _evenly(frames, choice))
    found: list[LabelledFrame] = []
    shards = [(name, list(places)) for name, places in groupby(chosen, lambda one: one.shard)]
    for shard, places in track(shards, description=f"read {folder.name}"):
        with ShardReader(folder / shard) as reader:
            found += [_frame(reader, place.at, size) for place in places]
    return found


def _labelled_clips(folder: Path) -> dict[str, list[tuple[int, _Place]]]:
    """Frame number and place of every labelled sample, by clip."""
    clips: dict[str, list[tuple[int, _Place]]] = defaultdict(list)
    for info in load_manifest(folder).shards:
        with ShardReader(folder / info.name) as reader:
            for at in range(len(reader)):
                meta = json.loads(reader.raw(at)[1]["json"])
                if "label" in meta:
                    clips[meta["clip"]].append((meta["frame"], _Place(info.name, at)))
    return clips


def _evenly(frames: list[tuple[int, _Place]], choice: FrameChoice) -> list[_Place]:
    in_order = [place for _, place in sorted(frames)]
    return [in_order[row] for row in choice.stored(len(in_order))]


def _frame(reader: ShardReader, at: int, size: int) -> LabelledFrame:
    sample = reader[at]
    known = sample.meta
    if known.label is None or known.patient is None:
        raise InputError(f"sample {sample.key}: has the label {known.label!r} but no patient to group by")
    square = to_square(stretch(sample.frame, sample.region, known.percentiles), sample.region, size)
    return LabelledFrame(square, known.label, known.patient)

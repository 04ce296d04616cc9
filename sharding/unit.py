"""One unit of the job: convert its sources, write its tars, commit its outcomes. A pure function of plan and policy.

Encoded frames wait in a spool, on disk when there are many. Keys are keyed hashes of (clip, frame), so that a tar in
order of key is a random mixture of the unit's clips, and the units are a mixture of the source's folders.
"""

import errno
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from sharding.convert import Converted, EncodedClip, Task
from sharding.deidentify import Pseudonyms, load_key
from sharding.duplicates import find_copies
from sharding.isolate import Converter
from sharding.labels import Label, load_labels
from sharding.manifest import ShardInfo, Split
from sharding.open_files import explain_exhausted, is_exhausted
from sharding.plan import Plan, source_store
from sharding.policy import Job
from sharding.recording import Reason
from sharding.sample import Meta, SourceKind, extensions_of, name_members
from sharding.store import Store
from sharding.writer import member_bytes, tar_bytes, write_shard

_THUMBNAILS = 2  # kept per unit and reason
_SPOOL_BYTES = 16 << 20  # of encoded frames that wait in memory; more wait on disk
OUTCOMES = "outcomes"

Line = dict[str, Any]  # one source: its keyed hash, its outcome, and what tells its copies


@dataclass(frozen=True)
class Progress:
    """What one unit did, for the live table; `resumed` when an earlier run had done it."""

    unit: int
    outcomes: dict[str, int]
    num_frames: int
    resumed: bool = False


class _Frame(NamedTuple):
    """Where one sample waits in the spool."""

    key: str
    split: Split
    source: int  # line of the unit's outcomes
    offset: int
    lengths: tuple[int, ...]  # bytes of its members, in their order


def outcomes_name(unit: int) -> str:
    """Name of the file that commits a unit."""
    return f"{OUTCOMES}/{unit:05d}.jsonl"


def record_name(unit: int) -> str:
    """Name of the file that describes the tars of a unit."""
    return f"{OUTCOMES}/{unit:05d}.shards.json"


def run_unit(job: Job, plan: Plan, number: int) -> Progress:
    """Convert and write one unit; the same job and plan give the same bytes.

    Raises:
        OSError: the disk is full, or a source has gone. Nothing is committed then.

    """
    out = Store(job.out)
    scratch = out.place if out.is_local else None
    with (
        tempfile.TemporaryDirectory(prefix=".unit-", suffix=".tmp", dir=scratch) as folder,
        tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES, dir=folder) as spool,
    ):
        unit = _Unit(job, Path(folder), cast("IO[bytes]", spool))
        with Converter(job.limits, Path(folder)) as converter:
            for name in plan.unit(number):
                unit.add(name, converter)
        shards = unit.write(out, number)
    commit(out, number, shards, unit.thumbnails, unit.lines)
    return unit.progress(number)


def commit(
    out: Store, number: int, shards: list[ShardInfo], thumbnails: dict[str, list[str]], lines: list[Line]
) -> None:
    """Say what a unit holds. The outcomes come last: their presence means that the unit is complete."""
    record = {"shards": [shard.model_dump() for shard in shards], "refused": thumbnails}
    out.write(record_name(number), json.dumps(record, sort_keys=True).encode())
    out.write(outcomes_name(number), "".join(f"{json.dumps(line, sort_keys=True)}\n" for line in lines).encode())


def read_lines(out: Store, number: int) -> list[Line]:
    """Outcomes of a unit: one per source, in the order of the plan."""
    return [json.loads(line) for line in out.read(outcomes_name(number)).splitlines()]


class _Unit:
    """What a unit has gathered so far."""

    def __init__(self, job: Job, folder: Path, spool: IO[bytes]) -> None:
        self.lines: list[Line] = []
        self._job, self._folder = job, folder
        self._source = source_store(job)
        self._labels = load_labels(self._source, job.labels)
        self._pseudonyms = Pseudonyms(load_key(job.key_file))
        self._spool = spool
        self._frames: list[_Frame] = []
        self.thumbnails: dict[str, list[str]] = {}

    def add(self, name: str, converter: Converter) -> None:
        """Convert one source and keep its outcome and its encoded frames."""
        label = self._labels.get(name, Label())
        local = self._source.fetch(name, self._folder / "source")
        mask = None if label.mask is None else self._source.fetch(label.mask, self._folder / "mask")
        policy = self._job.policy
        task = Task(local, name, policy.choice, policy.pixels, policy.profiles, policy.codec, mask)
        for converted in converter.convert(task):
            self._keep(converted, label)

    def _keep(self, converted: Converted, label: Label) -> None:
        line: Line = {"source": self._pseudonyms.of("source", converted.name)}
        if converted.refusal is not None:
            line |= {"outcome": str(converted.refusal)} | ({"fault": converted.fault} if converted.fault else {})
            self._keep_thumbnail(converted.refusal, converted.thumbnail)
        else:
            notes = sum((Counter(clip.notes) for clip in converted.clips), Counter[str]())
            line |= {
                "outcome": "accepted",
                "frames": sum(len(clip.frames) for clip in converted.clips),
                "certificates": Counter(clip.certificate for clip in converted.clips),
                "notes": {name: count for name, count in notes.items() if count},
                "clips": [self._keep_clip(*numbered, converted, label) for numbered in enumerate(converted.clips)],
                "instance": self._pseudonyms.number("instance", converted.clip),
                "content": self._pseudonyms.number("content", converted.content.hex()),
                "lossy": int(converted.is_lossy),
            }
        self.lines.append(line)

    def _keep_thumbnail(self, reason: Reason, thumbnail: bytes) -> None:
        kept = self.thumbnails.setdefault(reason, [])
        if thumbnail and len(kept) < _THUMBNAILS:
            kept.append(thumbnail.hex())

    def _keep_clip(self, number: int, clip: EncodedClip, converted: Converted, label: Label) -> str:
        """Spool the samples of a clip; returns its pseudonym."""
        meta = self._meta(number, clip, converted, label)
        split, codec = self._split(label.group or converted.patient), self._job.policy.codec
        for row, (frame_id, frame) in enumerate(zip(clip.frame_ids, clip.frames, strict=True)):
            time_ms = None if clip.times_ms is None else clip.times_ms[row]
            key = self._pseudonyms.of("frame", f"{meta.clip}-{frame_id}")
            members = name_members(key, replace(meta, frame=frame_id, time_ms=time_ms), frame, clip.region_png, codec)
            lengths = tuple(map(len, members.values()))
            self._frames.append(_Frame(key, split, len(self.lines), self._spool.tell(), lengths))
            self._spool.writelines(members.values())
        return meta.clip

    def _split(self, patient: str) -> Split:
        share = self._pseudonyms.number("split", patient) / 2**64
        return "val" if share < self._job.policy.val_share else "train"

    def _meta(self, number: int, clip: EncodedClip, converted: Converted, label: Label) -> Meta:
        return Meta(
            dataset=self._job.policy.dataset,
            clip=self._pseudonyms.of(f"clip-{number}", converted.clip),
            frame=0,
            percentiles=clip.percentiles,
            source_kind=cast("SourceKind", converted.source_kind),
            certificate=clip.certificate,
            mm_per_pixel=clip.mm_per_pixel,
            manufacturer=converted.tags.get("manufacturer"),
            body_part=converted.tags.get("body_part"),
            patient=self._pseudonyms.of("patient", label.group or converted.patient),
            label=label.label,
        )

    def write(self, out: Store, number: int) -> list[ShardInfo]:
        """Write the tars of this unit, without the copies in it."""
        self._mark_copies()
        kept = {row for row, line in enumerate(self.lines) if line["outcome"] == "accepted"}
        shards: list[ShardInfo] = []
        for split in ("train", "val"):
            frames = sorted(frame for frame in self._frames if frame.source in kept and frame.split == split)
            for part, some in enumerate(_parts(frames, self._job.policy.shard_bytes)):
                name = f"{split}-{number:05d}-{part:03d}.tar"
                num_bytes, sha256 = write_shard(out, name, chain.from_iterable(map(self._members, some)))
                shards.append(
                    ShardInfo(name=name, split=split, num_samples=len(some), num_bytes=num_bytes, sha256=sha256)
                )
        return shards

    def _mark_copies(self) -> None:
        accepted = [row for row, line in enumerate(self.lines) if line["outcome"] == "accepted"]
        columns = [[self.lines[row][name] for row in accepted] for name in ("instance", "content", "lossy")]
        instances, contents, lossy = (np.array(column, dtype=np.uint64) for column in columns)
        for place, reason in find_copies(instances, contents, lossy > 0).items():
            row = accepted[place]
            self.lines[row] = {"source": self.lines[row]["source"], "outcome": str(reason)}

    def _members(self, frame: _Frame) -> Iterator[tuple[str, bytes]]:
        self._spool.seek(frame.offset)
        for extension, length in zip(extensions_of(self._job.policy.codec), frame.lengths, strict=True):
            yield f"{frame.key}.{extension}", self._spool.read(length)

    def progress(self, number: int) -> Progress:
        """Counts of this unit."""
        outcomes = Counter(str(line["outcome"]) for line in self.lines)
        return Progress(number, dict(outcomes), sum(line.get("frames", 0) for line in self.lines))


def _parts(frames: list[_Frame], shard_bytes: int) -> list[list[_Frame]]:
    """Cut frames into as few equal parts as keep each tar within `shard_bytes`; a larger frame has a tar of its own."""
    ends = np.cumsum([0, *(sum(map(member_bytes, frame.lengths)) for frame in frames)])
    for num_parts in range(-(-int(ends[-1]) // shard_bytes), len(frames) + 1):
        cuts = np.arange(num_parts + 1) * len(frames) // num_parts if num_parts else np.zeros(1, dtype=int)
        largest = int(np.diff(ends[cuts]).max(initial=0))
        if tar_bytes(largest) <= shard_bytes or num_parts == len(frames):
            return [frames[start:end] for start, end in pairwise(cuts)]
    return [[frame] for frame in frames]


def explain(error: OSError, job: Job) -> str:
    """Say what a failure of the file system means for a job, without a path below the source."""
    if is_exhausted(error):
        return f"{job.out}: {explain_exhausted(error)}; finished units are kept"
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"{job.out}: no space left; free some and run the same command again, finished units are kept"
    if error.errno in {errno.ENOENT, errno.ESTALE, errno.EIO, errno.ENOTCONN}:
        return (
            f"source {job.source}: a listed file can no longer be read ({error.strerror}); bring the folder back and "
            "run the same command again, finished units are kept"
        )
    return f"{job.out}: {error.strerror or type(error).__name__}; mend it and run the same command again"

"""The job: plan -> units -> one commit per unit -> manifest. `kill -9` at any moment, then the same command.

A unit is a keyed bucket of patients, so that a patient never straddles two writers or two splits. Its outcome
file is its commit marker, written after its tars.
"""

import json
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import cv2

from sharding.deidentify import Pseudonyms
from sharding.manifest import MANIFEST, Manifest, ShardInfo, Split, sha256_of
from sharding.preprocess import Clip, cut_clips
from sharding.recording import InputError, Reason, Recording, Rejected
from sharding.sample import KEY, Meta, Sample
from sharding.sources import read, read_patient
from sharding.writer import write_atomically, write_shard

_SOURCES_PER_UNIT = 8
_MAX_UNITS = 4096
_PLAN = "plan.json"


@dataclass(frozen=True)
class Policy:
    """What decides the bytes of a shard directory, besides the sources and the key.

    Attributes:
        dataset: name written into every sample, [a-z0-9_-]+.
        max_frames: frames kept per clip, evenly spaced.
        val_share: share of patients that go to the val split.
        public: keep pixels without a certificate; the user vouches for them.

    """

    dataset: str
    max_frames: int = 32
    val_share: float = 0.05
    public: bool = False

    def __post_init__(self) -> None:
        if not KEY.fullmatch(self.dataset):
            raise InputError(f"dataset name {self.dataset!r}: only [a-z0-9_-] is allowed")
        if self.max_frames < 1 or not 0 <= self.val_share < 1:
            raise InputError(
                f"max_frames is {self.max_frames} and val_share {self.val_share}; at least 1 and within [0, 1)"
            )


@dataclass(frozen=True)
class Unit:
    """A slice of the job: its number and its sources as (path, name inside the source folder)."""

    number: int
    sources: tuple[tuple[Path, str], ...]


def plan(source: Path, key: bytes) -> list[Unit]:
    """Walk a source and cut it into units.

    Args:
        source: folder, or one file. Hidden files and links are left out.
        key: secret of the pseudonyms.

    Raises:
        InputError: there is no such source or no file in it.

    """
    if not source.exists():
        raise InputError(f"source {source}: no such file or folder")
    root = source if source.is_dir() else source.parent
    paths = sorted(_files(source)) if source.is_dir() else [source]
    if not paths:
        raise InputError(f"source {source}: no file in it; give a folder of DICOM, video or image files")
    pseudonyms = Pseudonyms(key)
    num_units = min(_MAX_UNITS, -(-len(paths) // _SOURCES_PER_UNIT))
    buckets: dict[int, list[tuple[Path, str]]] = {}
    for path in paths:
        name = path.relative_to(root).as_posix()
        number = pseudonyms.number("unit", read_patient(path, name)) % num_units
        buckets.setdefault(number, []).append((path, name))
    return [Unit(number, tuple(sources)) for number, sources in sorted(buckets.items())]


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not path.is_symlink() and not hidden:
            yield path


def run(units: list[Unit], out: Path, policy: Policy, key: bytes, num_workers: int) -> Iterator[Unit]:
    """Run all units that are not committed yet, then write the manifest. Yields each finished unit.

    Raises:
        InputError: `out` holds the shards of another plan.

    """
    (out / "outcomes").mkdir(parents=True, exist_ok=True)
    plan_hash = _claim(units, out, policy, key)
    if not (out / MANIFEST).exists():
        for leftover in out.rglob(".*.tmp"):  # of a killed worker
            leftover.unlink()
    todo = [unit for unit in units if not _outcome_path(out, unit).exists()]
    yield from (unit for unit in units if _outcome_path(out, unit).exists())
    with ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run_unit, unit, out, policy, key): unit for unit in todo}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    _merge(units, out, policy, plan_hash).save(out)


def _claim(units: list[Unit], out: Path, policy: Policy, key: bytes) -> str:
    sizes = [(unit.number, name, path.stat().st_size) for unit in units for path, name in unit.sources]
    plan_hash = Pseudonyms(key).of("plan", json.dumps([sizes, repr(policy)]))
    path = out / _PLAN
    if path.exists() and json.loads(path.read_text())["plan"] != plan_hash:
        raise InputError(
            f"{out}: holds shards of other sources, settings or another key; give a new OUT or delete this one"
        )
    write_atomically(path, json.dumps({"plan": plan_hash}).encode())
    return plan_hash


def _outcome_path(out: Path, unit: Unit) -> Path:
    return out / "outcomes" / f"{unit.number:05d}.jsonl"


def _shards_path(out: Path, unit: Unit) -> Path:
    return out / "outcomes" / f"{unit.number:05d}.shards.json"


def run_unit(unit: Unit, out: Path, policy: Policy, key: bytes) -> None:
    """Decode, cut and write one unit: its tars, then its outcomes, one line per source."""
    cv2.setNumThreads(1)  # the job is parallel over units
    pseudonyms = Pseudonyms(key)
    samples: dict[Split, list[Sample]] = {"train": [], "val": []}
    lines = []
    seen: set[str] = set()  # a patient's copies meet here: one patient is in one unit
    for path, name in unit.sources:
        outcome: dict[str, str | int] = {"source": pseudonyms.of("source", name)}
        try:
            recording = _read_once(path, name, seen)
            split, made = _samples_of(recording, policy, pseudonyms)
            samples[split] += made
            seen.add(recording.clip)
            outcome |= {"outcome": "accepted", "frames": len(made)}
        except Rejected as refusal:
            outcome |= {"outcome": refusal.reason}
        lines.append(json.dumps(outcome, sort_keys=True))
    shards = [_write(out, f"{split}-{unit.number:05d}-000.tar", split, some) for split, some in samples.items() if some]
    write_atomically(_shards_path(out, unit), json.dumps([shard.model_dump() for shard in shards]).encode())
    write_atomically(_outcome_path(out, unit), ("\n".join(lines) + "\n").encode())


def _read_once(path: Path, name: str, seen: set[str]) -> Recording:
    recording = read(path, name)
    if recording.clip in seen:
        raise Rejected(Reason.DUPLICATE)
    return recording


def _samples_of(recording: Recording, policy: Policy, pseudonyms: Pseudonyms) -> tuple[Split, list[Sample]]:
    share = pseudonyms.number("split", recording.patient) / 2**64
    clips = cut_clips(recording, policy.max_frames, policy.public)
    made = [
        sample
        for number, clip in enumerate(clips)
        for sample in _samples_of_clip(recording, clip, policy.dataset, pseudonyms.of(f"clip-{number}", recording.clip))
    ]
    return ("val" if share < policy.val_share else "train"), made


def _samples_of_clip(recording: Recording, clip: Clip, dataset: str, pseudonym: str) -> Iterator[Sample]:
    meta = Meta(
        dataset=dataset,
        clip=pseudonym,
        frame=0,
        percentiles=clip.percentiles,
        source_kind=recording.source_kind,
        certificate=clip.certificate,
        mm_per_pixel=clip.mm_per_pixel,
        manufacturer=recording.tags.get("manufacturer"),
        body_part=recording.tags.get("body_part"),
    )
    times = recording.frame_times_ms
    for frame_id, frame in zip(clip.frame_ids, clip.frames, strict=True):
        time_ms = None if times is None else round(float(times[frame_id]), 3)
        yield Sample(
            key=f"{pseudonym}-{frame_id:05d}",
            frame=frame,
            region=clip.region,
            meta=replace(meta, frame=int(frame_id), time_ms=time_ms),
        )


def _write(out: Path, name: str, split: Split, samples: list[Sample]) -> ShardInfo:
    num_samples = write_shard(out / name, samples)
    size = (out / name).stat().st_size
    return ShardInfo(name=name, split=split, num_samples=num_samples, num_bytes=size, sha256=sha256_of(out / name))


def _merge(units: list[Unit], out: Path, policy: Policy, plan_hash: str) -> Manifest:
    outcomes: Counter[str] = Counter()
    shards = []
    for unit in units:
        lines = _outcome_path(out, unit).read_text().splitlines()
        outcomes.update(json.loads(line)["outcome"] for line in lines)
        shards += [ShardInfo(**info) for info in json.loads(_shards_path(out, unit).read_text())]
    return Manifest(
        dataset=policy.dataset,
        plan=plan_hash,
        public=policy.public,
        outcomes=dict(sorted(outcomes.items())),
        shards=tuple(sorted(shards, key=lambda shard: shard.name)),
    )

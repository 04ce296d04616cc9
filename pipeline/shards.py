"""`us-jepa shards`, `verify` and `preview`: the job with a live table, and what became of every source."""

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.progress import track
from rich.table import Table

from sharding.cache import ShardCache
from sharding.convert import Converted, Task
from sharding.forbidden import load_forbidden
from sharding.isolate import Converter
from sharding.job import Execute, num_missing, on_processes, run, run_slice
from sharding.labels import describe_labels, load_labels
from sharding.manifest import Manifest, load_manifest
from sharding.merge import MANY_STUDIES
from sharding.plan import Plan, make_plan, readable_places, source_store
from sharding.policy import Job
from sharding.recording import InputError
from sharding.report import COLUMNS, TILE, contact_sheet, grid_png, write_report
from sharding.shard_set import find_shards, is_foreign
from sharding.strangers import tiles_of
from sharding.tables import match, normal_name, refuse_unmatched
from sharding.tar_index import cache_folder
from sharding.unit import Progress
from sharding.verify import verify, verify_strangers

_DRY_SOURCES = 24  # looked at to foretell a job
_LINES = 10  # of progress where there is no terminal
_HOUR, _MINUTE = 3600, 60
_CACHE_BYTES = 64 << 30  # for remote tars of strangers


def make_shards(job: Job, num_workers: int, execute: Execute | None = None) -> Manifest:
    """Plan, run and report a sharding job.

    Raises:
        InputError: nothing to read, nothing accepted, or `out` belongs to another job.

    """
    plan = _plan(job)
    watch(run(job, plan, execute or on_processes(num_workers)), plan, plan.num_units)
    return _finish(job)


def make_slice(job: Job, num_workers: int, place: int, num_slices: int) -> None:
    """Run one slice of an array of jobs on the same OUT; the last one to finish writes manifest and report."""
    plan = _plan(job)
    num_units = len(range(place, plan.num_units, num_slices))
    watch(run_slice(job, plan, on_processes(num_workers), place, num_slices), plan, num_units)
    missing = num_missing(job, plan)
    if missing:
        print(f"slice {place}/{num_slices} done; {missing} of {plan.num_units} units of other slices are missing")
    else:
        _finish(job)


def _plan(job: Job) -> Plan:
    with Console().status(f"list {job.source}"):
        plan = make_plan(job)
    _check_labels(job, plan)
    _check_masks(job)
    _warn_of_key(job)
    if plan.num_links:
        print(
            f"source {job.source}: {plan.num_links} symbolic links are not followed, since they lead out of it, in a "
            "circle or nowhere; `cp -rL` copies a folder with what its links lead to"
        )
    print(f"{plan.num_sources} sources, {_size(plan.num_bytes)}, in {plan.num_units} units")
    return plan


def _check_labels(job: Job, plan: Plan) -> None:
    source = source_store(job)
    for line in describe_labels(source, job.labels):
        print(line)
    labels = load_labels(source, job.labels)
    if labels:
        place = str(job.labels or job.source)
        found = match(place, labels, plan.names())
        for line in refuse_unmatched(place, found, source.place, job.allow_unmatched):
            print(line)


def _warn_of_key(job: Job) -> None:
    key = job.key_file.resolve()
    for place in readable_places(job):
        if key.is_relative_to(place.resolve()):
            print(f"warning: key file {key} lies in {place}, which decoders can read; give --key-file one elsewhere")


def _check_masks(job: Job) -> None:
    source = source_store(job)
    masks = [label.mask for label in load_labels(source, job.labels).values() if label.mask is not None]
    folders = {str(Path(mask).parent) for mask in masks}
    present = {f"{folder}/{name}" for folder in folders for name in source.names(folder, "")}
    absent = [mask for mask in masks if mask not in present]
    if absent:
        raise InputError(
            f"lists of {job.source}: {len(absent)} of {len(masks)} scan masks are missing, the first is {absent[0]}; "
            f"put them below {source.place}, or take them out of the lists"
        )


def _finish(job: Job) -> Manifest:
    manifest = load_manifest(job.out)
    report = write_report(job.out)
    num_sources = sum(manifest.outcomes.values())
    Console().print(_outcome_table(manifest.outcomes, num_sources))
    if not manifest.num_samples():
        reasons = ", ".join(f"{name}: {count}" for name, count in manifest.outcomes.items())
        raise InputError(f"source {job.source}: none of its {num_sources} files was accepted ({reasons}); see {report}")
    for line in _about_patients(manifest):
        print(line)
    print(f"{manifest.num_samples()} frames in {len(manifest.shards)} shards: {job.out}\nlook at {report}")
    print(f"key: {job.key_file} (keep it; the same key gives the same pseudonyms)\nnext: us-jepa verify {job.out}")
    return manifest


def _about_patients(manifest: Manifest) -> Iterator[str]:
    """What may spoil the split by patient, and how to put it right."""
    notes = manifest.notes
    if num := notes.get("sources_without_patient"):
        by_study = notes.get("sources_grouped_by_study", 0)
        yield (
            f"{num} sources have no patient identifier: in the split, the study stands for the patient of {by_study}, "
            f"the file itself for that of {num - by_study}; --labels with a column group tells patients"
        )
    if num := notes.get("patients_of_many_studies"):
        yield (
            f"{num} patient identifiers cover more than {MANY_STUDIES} studies, one of them "
            f"{notes['studies_of_one_patient']}: if they are placeholders, --labels with a column group tells patients"
        )


def _outcome_table(outcomes: dict[str, int], num_sources: int) -> Table:
    table = Table("outcome", "sources", title=f"{num_sources} sources")
    for name, count in outcomes.items():
        table.add_row(name, str(count))
    return table


@dataclass
class _Tally:
    """What the live table shows."""

    plan: Plan
    num_units: int
    started: float = field(default_factory=time.monotonic)
    outcomes: Counter[str] = field(default_factory=Counter)
    num_frames: int = 0
    units_done: int = 0
    fresh: Counter[str] = field(default_factory=Counter)  # units, files and frames of this run

    def add(self, progress: Progress) -> None:
        self.outcomes.update(progress.outcomes)
        self.num_frames += progress.num_frames
        self.units_done += 1
        if not progress.resumed:
            self.fresh.update(units=1, files=sum(progress.outcomes.values()), frames=progress.num_frames)

    def cells(self) -> list[tuple[str, str]]:
        seconds = max(time.monotonic() - self.started, 1e-3)
        left = self.num_units - self.units_done
        rate = self.fresh["units"] / seconds
        refused = Counter({name: count for name, count in self.outcomes.items() if name != "accepted"})
        return [
            ("units", f"{self.units_done} of {self.num_units}"),
            ("files/s", f"{self.fresh['files'] / seconds:.1f}"),
            ("frames/s", f"{self.fresh['frames'] / seconds:.0f}"),
            ("accepted", f"{self.outcomes['accepted']} files, {self.num_frames} frames"),
            *((name, str(count)) for name, count in refused.most_common()),
            ("time left", _duration(left / rate) if rate else "?"),
        ]


def watch(progresses: Iterator[Progress], plan: Plan, num_units: int) -> None:
    """Show a live table of a job; a line now and then where there is no terminal."""
    console, tally = Console(), _Tally(plan, num_units)
    if not console.is_terminal:
        every = max(1, num_units // _LINES)
        for progress in progresses:
            tally.add(progress)
            if tally.units_done % every == 0:
                print(", ".join(f"{name}: {value}" for name, value in tally.cells()), flush=True)
        return
    with Live(_table(tally), console=console, transient=True) as live:
        for progress in progresses:
            tally.add(progress)
            live.update(_table(tally))


def _table(tally: _Tally) -> Table:
    table = Table(show_header=False, title=f"shard {tally.plan.num_sources} sources")
    for name, value in tally.cells():
        table.add_row(name, value)
    return table


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), _MINUTE)
    hours, minutes = divmod(minutes, _HOUR // _MINUTE)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:  # noqa: PLR2004 - SI
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def foretell(job: Job, num_workers: int) -> None:
    """Convert a few sources, write nothing, and say what the job would do and how long it would take."""
    plan = _plan(job)
    units = np.unique(np.linspace(0, plan.num_units - 1, _DRY_SOURCES).astype(int))
    per_unit = -(-_DRY_SOURCES // len(units))
    names = [name for unit in units for name in plan.unit(int(unit))[:per_unit]][:_DRY_SOURCES]
    started = time.monotonic()
    results = list(track(_try(job, names), total=len(names), description="try some sources"))
    seconds = (time.monotonic() - started) * plan.num_sources / len(names) / num_workers
    converted = [one for some in results for one in some]
    frames = [jpg for one in converted for clip in one.clips for jpg in clip.frames]
    scale = plan.num_sources / len(names)
    outcomes = Counter("accepted" if one.refusal is None else str(one.refusal) for one in converted)
    Console().print(_outcome_table(dict(sorted(outcomes.items())), len(converted)))
    print(
        f"of {len(names)} sources tried. All {plan.num_sources} would give about "
        f"{round(len(frames) * scale):,} frames, "
        f"{_size(sum(map(len, frames)) * scale)}, in {_duration(seconds)} on {num_workers} processes. "
        "Nothing was written."
    )


def _try(job: Job, names: list[str]) -> Iterator[list[Converted]]:
    source, policy = source_store(job), job.policy
    labels = load_labels(source, job.labels)
    with (
        tempfile.TemporaryDirectory() as folder,
        Converter(job.limits, Path(folder), readable_places(job)) as converter,
    ):
        for name in names:
            label = labels.get(normal_name(name))
            mask = source.fetch(label.mask, Path(folder) / "mask") if label and label.mask else None
            local = source.fetch(name, Path(folder) / "source")
            yield list(
                converter.convert(Task(local, name, policy.choice, policy.pixels, policy.profiles, policy.codec, mask))
            )


def verify_shards(directory: str, forbid: Path | None = None) -> None:
    """Check all shards of a directory, or tars of strangers.

    Raises:
        InputError: names the shard that is not what the manifest says, or the first sample that is wrong.

    """
    forbidden = None if forbid is None else load_forbidden(forbid)
    for line in () if forbidden is None else forbidden.remarks:
        print(line)
    words = "" if forbidden is None else f", and none of the {len(forbidden)} strings of {forbid} occurs"
    if is_foreign(directory):
        checked = [held for _, held in verify_strangers(directory, _cache(), forbidden)]
        print(
            f"{directory}: {sum(held.num_samples for held in checked)} samples in {len(checked)} tars are whole{words}"
        )
        print(_about_strangers(sum(held.num_left_out for held in checked)))
        return
    total = len(load_manifest(directory).shards)
    counts = [count for _, count in track(verify(directory, forbidden), total=total, description="verify")]
    print(f"{directory}: {sum(counts)} samples in {len(counts)} shards are whole{words}")


def _about_strangers(num_left_out: int) -> str:
    text = (
        "there is no manifest, so nothing says that these are the bytes that were written, or where they come from; "
        "letters in the pictures were not looked for"
    )
    if not num_left_out:
        return text
    return f"{num_left_out} members belong to no sample: their names have no extension or begin with a dot\n{text}"


def preview(directory: str, to: Path, num_frames: int) -> None:
    """Draw the contact sheet of a finished shard directory, or of tars of strangers, into a PNG.

    Raises:
        InputError: it holds no frame.

    """
    if is_foreign(directory):
        _preview_strangers(directory, to, num_frames)
        return
    if not load_manifest(directory).num_samples():
        raise InputError(f"shards {directory}: no frame in it; its report.html says what was refused")
    to.write_bytes(contact_sheet(directory, num_frames))
    print(f"{num_frames} frames of {directory}: {to}")


def _preview_strangers(place: str, to: Path, num_frames: int) -> None:
    cache = _cache()
    tiles, bad = tiles_of(find_shards(place, cache).shards, cache, num_frames, TILE)
    if not tiles:
        raise InputError(
            f"shards {place}: none of the {len(bad)} samples that were tried can be shown; the first: {bad[0]}"
        )
    to.write_bytes(grid_png(tiles, COLUMNS))
    print(f"{len(tiles)} frames of {place}: {to}")
    if bad:
        print(f"{len(bad)} samples cannot be read, the first: {bad[0]}")


def _cache() -> ShardCache:
    return ShardCache(cache_folder() / "shards", _CACHE_BYTES)

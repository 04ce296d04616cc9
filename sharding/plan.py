"""The plan: a listing of all sources, cut into units. Memory stays below a hundred bytes per file at 10^7 files.

The listing holds paths, and paths hold names: it lies beside the key, readable by its owner alone, never in OUT.
"""

import hashlib
import mmap
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from sharding.deidentify import Pseudonyms, load_key
from sharding.labels import listed_names
from sharding.names import name_bytes
from sharding.policy import Job
from sharding.recording import InputError
from sharding.store import Store
from sharding.tables import normal_name

_UNIT_BYTES = 1 << 30  # of sources: minutes of work, a few shards
_MIN_SOURCES, _MIN_UNITS = 16, 64  # small jobs are cut finer, so that all processes have work and bars move
_MAX_UNITS = 99_999


@dataclass(frozen=True)
class Plan:
    """A listing on disk.

    Attributes:
        path: lines of bytes, tab, name below the source.
        num_sources: lines.
        num_bytes: of all sources.
        sha256: of the listing.
        num_units: units of work. Unit u holds every num_units-th source from u on, so neighbours in a folder part.
        num_links: symbolic links that were not followed.

    """

    path: Path
    num_sources: int
    num_bytes: int
    sha256: str
    num_units: int
    num_links: int = 0

    def unit(self, number: int) -> list[str]:
        """Names of the sources of one unit."""
        content, ends = _lines(self.path, self.sha256)
        mine = np.arange(number, self.num_sources, self.num_units)
        starts = np.where(mine > 0, ends[mine - 1] + 1, 0)
        return [_name(content[start:end]) for start, end in zip(starts.tolist(), ends[mine].tolist(), strict=True)]

    def names(self) -> Iterator[str]:
        """Names of all sources, unit by unit."""
        for number in range(self.num_units):
            yield from self.unit(number)


def write_plan(entries: Iterable[tuple[str, int]], path: Path) -> Plan:
    """Write a listing of (name, bytes) and return it as a plan."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(
        f".{path.name}.{secrets.token_hex(4)}.tmp"
    )  # not the pid: tasks on other nodes may share it
    digest, num_sources, num_bytes = hashlib.sha256(), 0, 0
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        for name, size in entries:
            line = _line(name, size)
            digest.update(line)
            file.write(line)
            num_sources += 1
            num_bytes += size
    temporary.replace(path)
    return Plan(path, num_sources, num_bytes, digest.hexdigest(), num_units(num_sources, num_bytes))


def num_units(num_sources: int, num_bytes: int) -> int:
    """Into how many units sources of so many bytes are cut."""
    small = min(-(-num_sources // _MIN_SOURCES), _MIN_UNITS)
    return min(max(small, -(-num_bytes // _UNIT_BYTES)), _MAX_UNITS)


def make_plan(job: Job) -> Plan:
    """List the sources of a job.

    Raises:
        InputError: there is no such source, or no file in it.

    """
    source = Store(job.source)
    if not source.exists():
        raise InputError(f"source {job.source}: no such file or folder")
    path = job.key_file.parent / "plans" / f"{Pseudonyms(load_key(job.key_file)).of('out', job.out)}.txt"
    links: Counter[str] = Counter()
    plan = write_plan(_entries(source, job, links), path)
    if not plan.num_sources:
        but = f" but {links.total()} symbolic links that lead out of it or nowhere" if links else ""
        raise InputError(
            f"source {job.source}: no file in it{but}; give a folder of DICOM, video, image or archive files"
        )
    return replace(plan, num_links=links.total())


def source_store(job: Job) -> Store:
    """The folder that names in the plan refer to."""
    is_file = "://" not in job.source and Path(job.source).is_file()
    return Store(Path(job.source).parent if is_file else job.source)


def readable_places(job: Job) -> list[Path]:
    """Local files and folders that decoders must read: a remote source is fetched first."""
    source = source_store(job)
    if not source.is_local:
        return []
    is_alone = Path(job.source).is_file() and job.labels is None
    return [Path(job.source) if is_alone else source.path()]


def _entries(source: Store, job: Job, links: Counter[str]) -> Iterable[tuple[str, int]]:
    if source.is_local and source.path().is_file():
        return [(source.path().name, source.path().stat().st_size)]
    skipped = {job.labels.resolve()} if job.labels else set()
    listed = listed_names(source)  # a benchmark that lists its own images
    return (
        (name, size)
        for name, size in source.entries(links=links)
        if (listed is None or normal_name(name) in listed) and not (skipped and source.path(name).resolve() in skipped)
    )


def _line(name: str, size: int) -> bytes:
    if "%" in name or "\n" in name:
        name = name.replace("%", "%25").replace("\n", "%0A")
    return name_bytes(f"{size}\t{name}\n")


def _name(line: bytes) -> str:
    name = line.partition(b"\t")[2].decode(errors="surrogateescape")
    return name.replace("%0A", "\n").replace("%25", "%") if "%" in name else name


@lru_cache(maxsize=1)
def _lines(path: Path, sha256: str) -> tuple[mmap.mmap, np.ndarray]:
    """The listing, and where each of its lines ends. `sha256` only tells a new listing from an old one."""
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    ends = [
        start + np.flatnonzero(np.frombuffer(content, np.uint8, min(_CHUNK, len(content) - start), start) == _NEWLINE)
        for start in range(0, len(content), _CHUNK)
    ]
    return content, np.concatenate(ends)


_CHUNK = 1 << 26  # bytes that are searched for line ends at a time
_NEWLINE = ord("\n")

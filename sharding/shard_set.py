"""What a data set is made of: our finished shard directories, or tars that somebody else wrote."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import braceexpand
from rich.progress import track

from sharding.cache import ShardCache
from sharding.manifest import MANIFEST, load_manifest
from sharding.names import name_bytes
from sharding.open_files import explain_reading
from sharding.recording import InputError
from sharding.shard import Shard
from sharding.store import Store
from sharding.tar_index import cache_folder, load_index

_MANY = 100  # tars, to show a bar
_Place = TypeVar("_Place", str, Path)


@dataclass(frozen=True)
class ShardSet:
    """One data set.

    Attributes:
        place: as the user gave it.
        shards: that hold training samples.
        sha256: identity of the data.
        val_shards: that hold samples of the val split; tars of strangers have none.
        is_foreign: tars of strangers, without a manifest.

    """

    place: str
    shards: tuple[Shard, ...]
    sha256: str
    val_shards: tuple[Shard, ...] = ()
    is_foreign: bool = False

    @property
    def num_samples(self) -> int:
        """Training samples."""
        return sum(shard.num_samples for shard in self.shards)

    def held_out(self) -> "ShardSet":
        """The val split as a data set of its own."""
        return ShardSet(self.place, self.val_shards, self.sha256)


def find_shards(place: str, cache: ShardCache) -> ShardSet:
    """List the training shards of a place.

    Args:
        place: a finished shard directory, local or a URL; a local folder of tars that somebody else wrote; or the
            tars themselves, `https://host/set-{000..099}.tar`, `pipe:COMMAND`. Tars without a manifest are counted by
            one scan, whose result is kept.
        cache: for remote tars without a manifest.

    Raises:
        InputError: there is none, it is unfinished, or without a training sample.

    """
    if _is_tars(place):
        found = _foreign(place, [_counted(url, cache) for url in _bar(list(braceexpand.braceexpand(place)))])
    elif is_foreign(place):
        paths = sorted(Path(place).glob("*.tar"))
        found = _foreign(place, [_scanned(path) for path in _bar(paths)])
    else:
        manifest = load_manifest(place)
        train, val = (
            tuple(
                Shard(f"{place.rstrip('/')}/{info.name}", info.num_samples, info.num_bytes, info.sha256)
                for info in manifest.shards
                if info.split == split
            )
            for split in ("train", "val")
        )
        found = ShardSet(place, train, manifest.sha256(), val)
    if not found.num_samples:
        raise InputError(f"shards: {_why_empty(found)}")
    return found


def _why_empty(found: ShardSet) -> str:
    if found.is_foreign:
        return f"no sample in the {len(found.shards)} tars of {found.place}: no member has a name like key.jpg"
    return f"no training sample in {found.place}; us-jepa shards' report.html says what was refused"


def is_foreign(place: str) -> bool:
    """Whether find_shards takes a place for tars that somebody else wrote.

    Tars that are named, or a local folder with tars but without manifest that is not one of our unfinished jobs.
    """
    if _is_tars(place) or "://" in place:
        return _is_tars(place)
    folder = Path(place)
    return not (folder / MANIFEST).exists() and not (folder / "outcomes").exists() and any(folder.glob("*.tar"))


def _is_tars(place: str) -> bool:
    return place.startswith("pipe:") or place.endswith(".tar")


def _bar(places: list[_Place]) -> Iterable[_Place]:
    return track(places, description="count samples", transient=True) if len(places) >= _MANY else places


def _foreign(place: str, shards: list[Shard]) -> ShardSet:
    identity = json.dumps([vars(shard) for shard in shards])
    return ShardSet(place, tuple(shards), hashlib.sha256(identity.encode()).hexdigest(), is_foreign=True)


def _scanned(path: Path) -> Shard:
    try:
        return Shard(str(path), len(load_index(path)), path.stat().st_size)
    except OSError as error:
        raise InputError(f"shard {path}: {explain_reading(error)}") from error


def _counted(url: str, cache: ShardCache) -> Shard:
    """A remote tar: fetched once to count it; from then on it must stay the same."""
    if "://" not in url and not url.startswith("pipe:"):
        return _scanned(Path(url))
    known = Store(cache_folder() / "remote")
    name = f"{hashlib.sha256(name_bytes(url)).hexdigest()[:32]}.json"
    with known.locked(name, wait=True):
        if not known.exists(name):
            with cache.identified(url) as found:
                shard = replace(found, num_samples=len(load_index(cache.path_of(found), found.sha256)))
            known.write(name, json.dumps(asdict(shard)).encode())
    return Shard(**json.loads(known.read(name)))

"""Tars that somebody else wrote: what can be checked of them without a manifest, and what they show."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sharding.cache import ShardCache
from sharding.preprocess import stretch, to_square
from sharding.reader import BadSampleError, ShardReader
from sharding.recording import InputError
from sharding.shard import Shard
from sharding.tar_members import key_of, members_of


class Checked(NamedTuple):
    """What a tar holds: samples, and members of none, because their names have no extension or begin with a dot."""

    num_samples: int
    num_left_out: int


@contextmanager
def local(shard: Shard, cache: ShardCache) -> Iterator[Path]:
    """Path of a tar, fetched where it is remote, which stays while the block runs.

    Raises:
        InputError: it cannot be had.

    """
    with ExitStack() as stack:
        if shard.is_remote:
            stack.enter_context(cache.pin(shard))
        yield cache.path_of(shard)


def check_tar(path: Path, identity: str = "") -> Checked:
    """Check a tar: its end, that members of a sample are neighbours, that keys occur once, that every sample decodes.

    Args:
        path: the tar.
        identity: of its content; see tar_index.load_index.

    Raises:
        InputError: names the tar, the first sample that is wrong, and why.

    """
    members = members_of(path)
    keys = [known[0] if (known := key_of(member.name)) else None for member in members]
    _check_neighbours(path, [member.name for member in members], keys)
    try:
        with ShardReader(path, identity) as reader:
            for _ in reader:
                pass
            return Checked(len(reader), keys.count(None))
    except BadSampleError as bad:
        raise InputError(str(bad)) from bad


def _check_neighbours(path: Path, names: list[str], keys: list[str | None]) -> None:
    first: dict[str, int] = {}
    known = [(number, key) for number, key in enumerate(keys) if key is not None]
    for key, run in groupby(known, key=lambda pair: pair[1]):
        number = next(run)[0]
        if key in first:
            raise InputError(
                f"shard {path}: members of sample {key!r} do not lie side by side: {names[first[key]]!r} is member "
                f"{first[key] + 1}, {names[number]!r} member {number + 1}; readers take them for two samples. "
                "Make the tar again in order of name (`tar --sort=name`), each name once"
            )
        first[key] = number


def tiles_of(shards: tuple[Shard, ...], cache: ShardCache, num: int, side: int) -> tuple[list[np.ndarray], list[str]]:
    """Pictures (side, side) uint8 from all over some tars, as the encoder will see them, and why others are missing.

    Raises:
        InputError: a tar cannot be had.

    """
    tiles: list[np.ndarray] = []
    bad: list[str] = []
    ends = np.cumsum([shard.num_samples for shard in shards])
    chosen = np.unique(np.linspace(0, ends[-1] - 1, num).round().astype(int))
    numbers = np.searchsorted(ends, chosen, side="right")
    for number in np.unique(numbers).tolist():
        shard = shards[number]
        indices = chosen[numbers == number] - (ends[number] - shard.num_samples)
        with local(shard, cache) as path, ShardReader(path, shard.sha256) as reader:
            for index in indices.tolist():
                try:
                    sample = reader[index]
                except BadSampleError as error:
                    bad.append(str(error))
                    continue
                frame = stretch(sample.frame, sample.region, sample.meta.percentiles)
                tiles.append(to_square(frame, sample.region, side)[0])
    return tiles, bad

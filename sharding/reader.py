"""The samples of one tar by index, ours or anybody's."""

import mmap
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from sharding.cache import ShardCache
from sharding.sample import Meta, Sample, decode, decode_grey
from sharding.shard import Shard
from sharding.tar_index import extension_of, load_index

_PICTURES = {"jpg", "jpeg", "png", "bmp", "tif", "tiff", "webp"}
_SHOWN = 3  # members named in a message


class BadSampleError(ValueError):
    """A sample cannot be read.

    Args:
        cause: `missing` or `undecodable`: what a run counts.
        message: where and what.

    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class ShardReader:
    """The samples of one tar, with one file open. Close it, or use it as a context.

    Args:
        path: the tar.
        identity: of its content; see tar_index.load_index.

    Raises:
        InputError: not a whole tar.
        OSError: it is not there, or too many files are open.

    """

    def __init__(self, path: Path, identity: str = "") -> None:
        self._path = path
        self._index = load_index(path, identity)
        names = self._index.dtype.names or ()
        self._fields = [(extension_of(names[at]), at) for at in range(1, len(names), 2)]  # and place of the first byte
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._inode = os.fstat(file.fileno()).st_ino

    def __len__(self) -> int:
        return len(self._index)

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._bytes.close()

    def is_deleted(self) -> bool:
        """Whether the file is not under its name any more."""
        try:
            return self._path.stat().st_ino != self._inode
        except FileNotFoundError:
            return True

    def raw(self, index: int) -> tuple[str, dict[str, bytes]]:
        """Key and members by extension, as they lie in the tar.

        Raises:
            BadSampleError: the index is beyond the tar.

        """
        if index >= len(self._index):
            raise BadSampleError("missing", f"shard {self._path}: sample {index} of {len(self._index)}")
        row = self._index.item(index)
        key = row[0].decode(errors="surrogateescape")
        return key, {name: self._bytes[row[at] : row[at + 1]] for name, at in self._fields if row[at]}

    def __getitem__(self, index: int) -> Sample:
        """A decoded sample.

        Raises:
            BadSampleError: it cannot be read.

        """
        key, members = self.raw(index)
        try:
            if "region.png" in members:
                return decode(key, members)
            return _decode_picture(key, members)
        except (ValueError, TypeError) as error:  # TypeError: json with other fields than ours
            raise BadSampleError("undecodable", f"shard {self._path}: {error}{self._elsewhere(index)}") from error

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def _elsewhere(self, index: int) -> str:
        """What is to be said of a bad sample whose key others have, too."""
        keys = self._index["key"]
        others = np.flatnonzero(keys == keys[index]).tolist()
        others.remove(index)
        if not others:
            return ""
        return f"; sample {others[0]} has the same key: the members of a sample must lie side by side"


def _decode_picture(key: str, members: dict[str, bytes]) -> Sample:
    """A picture of a stranger's shard: kept whole, its grey levels as they are."""
    extension = min(members.keys() & _PICTURES, default="")
    if not extension:
        raise ValueError(f"sample {key}: {_no_picture(members)}")
    frame = decode_grey(key, extension, members[extension])
    meta = Meta("unknown", key, 0, (0, 255), source_kind="image", certificate="public")
    return Sample(key, frame, _everywhere(frame.shape), meta)


def _no_picture(members: dict[str, bytes]) -> str:
    names = sorted(members)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    text = f"no picture; it has {names[:_SHOWN]}{more}, known are {sorted(_PICTURES)}"
    if any(name.rpartition(".")[2] in _PICTURES for name in names):
        return f"{text}; a key ends at the first dot of a name, so name a picture with one dot"
    return text


@lru_cache(maxsize=64)
def _everywhere(shape: tuple[int, ...]) -> np.ndarray:
    region = np.ones(shape, dtype=bool)
    region.setflags(write=False)
    return region


def open_shard(shard: Shard, cache: ShardCache) -> ShardReader:
    """Reader of a shard, which is fetched first where it is remote.

    Raises:
        InputError: it cannot be had, or is no whole tar.
        OSError: a local one is not there, or too many files are open.

    """
    if not shard.is_remote:
        return ShardReader(cache.path_of(shard))
    with cache.pin(shard):
        return ShardReader(cache.path_of(shard), identity=shard.sha256)

"""The samples of one tar by index, ours or anybody's."""

import mmap
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from sharding.sample import Meta, Sample, decode, decode_grey
from sharding.tar_index import load_index

_PICTURES = {"jpg", "jpeg", "png", "bmp", "tif", "tiff", "webp"}


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
    """The samples of one tar. Close it, or use it as a context.

    Args:
        path: the tar.
        identity: of its content; see tar_index.load_index.

    Raises:
        InputError: not a tar.

    """

    def __init__(self, path: Path, identity: str = "") -> None:
        self._path = path
        self._index = load_index(path, identity)
        names = self._index.dtype.names or ()
        self._fields = [(names[at], at) for at in range(1, len(names), 2)]  # extension, place of its first byte
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
        return row[0].decode(), {name: self._bytes[row[at] : row[at + 1]] for name, at in self._fields if row[at]}

    def __getitem__(self, index: int) -> Sample:
        """A decoded sample.

        Raises:
            BadSampleError: it cannot be read.

        """
        key, members = self.raw(index)
        try:
            return decode(key, members) if "region.png" in members else _decode_picture(key, members)
        except (ValueError, TypeError) as error:  # TypeError: json with other fields than ours
            raise BadSampleError("undecodable", f"shard {self._path}: {error}") from error

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def _decode_picture(key: str, members: dict[str, bytes]) -> Sample:
    """A picture of a stranger's shard: kept whole, its grey levels as they are."""
    extension = min(members.keys() & _PICTURES, default="")
    if not extension:
        raise ValueError(f"sample {key}: no picture; it has {sorted(members)}, known are {sorted(_PICTURES)}")
    frame = decode_grey(key, extension, members[extension])
    meta = Meta("unknown", key, 0, (0, 255), source_kind="image", certificate="public")
    return Sample(key, frame, _everywhere(frame.shape), meta)


@lru_cache(maxsize=64)
def _everywhere(shape: tuple[int, ...]) -> np.ndarray:
    region = np.ones(shape, dtype=bool)
    region.setflags(write=False)
    return region

"""The samples of one tar by index, ours or anybody's."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sharding.sample import Meta, Sample, decode, decode_grey
from sharding.tar_index import load_index

_PICTURES = ("jpg", "jpeg", "png", "bmp", "tif", "tiff", "webp")


class BadSampleError(ValueError):
    """A sample cannot be read.

    Args:
        cause: `missing`, `truncated` or `undecodable`: what a run counts.
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
        self._extensions = (self._index.dtype.names or ())[3::2]
        # Read, not mapped: a file that is cut short under way would kill the process.
        self._file = os.open(path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self._index)

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def is_deleted(self) -> bool:
        """Whether the file has no name any more."""
        return os.fstat(self._file).st_nlink == 0

    def raw(self, index: int) -> tuple[str, dict[str, bytes]]:
        """Key and members by extension, as they lie in the tar, with one read.

        Raises:
            BadSampleError: the index is beyond the tar, or the file ends early.

        """
        if index >= len(self._index):
            raise BadSampleError("missing", f"shard {self._path}: sample {index} of {len(self._index)}")
        key, base, end, *edges = self._index[index].item()
        data = os.pread(self._file, end - base, base)
        if len(data) < end - base:
            raise BadSampleError("truncated", f"shard {self._path}: ends inside sample {key.decode()}")
        spans = zip(self._extensions, edges[0::2], edges[1::2], strict=True)
        return key.decode(), {name: data[start - base : stop - base] for name, start, stop in spans if start}

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
    extension = next((name for name in _PICTURES if name in members), None)
    if extension is None:
        raise ValueError(f"sample {key}: no picture; it has {sorted(members)}, known are {', '.join(_PICTURES)}")
    frame = decode_grey(key, extension, members[extension])
    meta = Meta("unknown", key, 0, (0, 255), source_kind="image", certificate="public")
    return Sample(key, frame, np.broadcast_to(np.True_, frame.shape), meta)

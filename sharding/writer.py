"""Deterministic tars, and writes that are whole or absent."""

import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

from sharding.sample import Sample, encode


def write_shard(path: Path, samples: Iterable[Sample]) -> int:
    """Write samples to a tar in order of key; the same samples give the same bytes. Returns their number.

    webdataset's own writer is not used: it stamps the time and the user, accepts keys with dots, and leaves a
    whole-looking tar after a crash.
    """
    buffer = io.BytesIO()
    num_samples = 0
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in sorted(samples, key=lambda sample: sample.key):
            for name, data in encode(sample).items():
                info = tarfile.TarInfo(name)  # mtime, uid and gid are 0, the names of user and group empty
                info.size, info.mode = len(data), 0o444
                tar.addfile(info, io.BytesIO(data))
            num_samples += 1
    write_atomically(path, buffer.getvalue())
    return num_samples


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

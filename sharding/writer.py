"""Deterministic tars: USTAR, no time, no user; the same members give the same bytes.

webdataset's own writer is not used: it stamps the time and the user, accepts keys with dots, and leaves a whole-looking
tar after a crash.
"""

import hashlib
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from sharding.store import Store


def write_shard(out: Store, name: str, members: Iterable[tuple[str, bytes]]) -> tuple[int, str]:
    """Write members (file name, content) to a tar in the order given, through a file that is whole or absent.

    Returns:
        its size in bytes and its sha256.

    """
    if out.is_local:
        with out.writing(name) as file:
            return _write_tar(file, members)
    with tempfile.NamedTemporaryFile() as local:
        written = _write_tar(local, members)
        local.flush()
        out.upload(Path(local.name), name)
    return written


def _write_tar(file: IO[bytes], members: Iterable[tuple[str, bytes]]) -> tuple[int, str]:
    hashed = _Hashed(file)
    for name, data in members:
        info = tarfile.TarInfo(name)  # mtime, uid and gid are 0, the names of user and group empty
        info.size, info.mode = len(data), 0o444
        # TarFile.addfile copies the header and the data once more, which is slower than all of the rest
        hashed.write(info.tobuf(tarfile.USTAR_FORMAT))
        hashed.write(data)
        hashed.write(bytes(-len(data) % tarfile.BLOCKSIZE))
    hashed.write(bytes(2 * tarfile.BLOCKSIZE))
    hashed.write(bytes(-hashed.num_bytes % tarfile.RECORDSIZE))
    return hashed.num_bytes, hashed.sha256.hexdigest()


class _Hashed:
    """A file that hashes what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes) -> None:
        self.sha256.update(data)
        self.num_bytes += len(data)
        self._file.write(data)

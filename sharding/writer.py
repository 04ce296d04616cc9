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


def member_bytes(num_bytes: int) -> int:
    """Bytes that a member of `num_bytes` takes in a tar: header, content, padding."""
    return tarfile.BLOCKSIZE + num_bytes + -num_bytes % tarfile.BLOCKSIZE


def tar_bytes(members: int) -> int:
    """Bytes of a tar whose members take `members` bytes: with its end, filled up to whole records."""
    num_bytes = members + 2 * tarfile.BLOCKSIZE
    return num_bytes + -num_bytes % tarfile.RECORDSIZE


def _write_tar(file: IO[bytes], members: Iterable[tuple[str, bytes]]) -> tuple[int, str]:
    hashed = _Hashed(file)
    for name, data in members:
        # TarFile.addfile formats a dozen constant fields and copies the data, which is slower than all of the rest
        hashed.write(_header(name, len(data)))
        hashed.write(data)
        hashed.write(bytes(-len(data) % tarfile.BLOCKSIZE))
    hashed.write(bytes(2 * tarfile.BLOCKSIZE))
    hashed.write(bytes(-hashed.num_bytes % tarfile.RECORDSIZE))
    return hashed.num_bytes, hashed.sha256.hexdigest()


def _blank_header() -> bytes:
    info = tarfile.TarInfo("")  # mtime, uid and gid are 0, the names of user and group empty
    info.mode = 0o444
    return info.tobuf(tarfile.USTAR_FORMAT)


_BLANK = _blank_header()
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)  # fields of a USTAR header


def _header(name: str, num_bytes: int) -> bytes:
    """The header of one member: name, size and checksum put into a blank one.

    Raises:
        ValueError: the name is longer than its field, or the member too large.

    """
    fields = name.encode(), b"%011o\0" % num_bytes
    if len(fields[0]) > _NAME.stop or len(fields[1]) > _SIZE.stop - _SIZE.start:
        raise ValueError(f"member {name!r} of {num_bytes} bytes: USTAR holds names of 100 bytes and sizes below 8 GiB")
    header = bytearray(_BLANK)
    header[_NAME] = fields[0].ljust(_NAME.stop, b"\0")
    header[_SIZE] = fields[1]
    header[_CHECKSUM] = b" " * 8
    header[_CHECKSUM] = b"%06o\0 " % sum(header)
    return bytes(header)


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

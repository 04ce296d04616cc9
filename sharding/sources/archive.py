"""Archives of recordings: zip, tar, tar.gz, tar.bz2, tar.xz. One member at a time lies on the disk, named by us."""

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, BinaryIO

from sharding.recording import MAX_RATIO, Reason, Rejected
from sharding.sources import kind_of

_MAX_MEMBER = 4 << 30  # bytes
_MAX_MEMBERS = 1_000_000
_MIN_UNPACKED = 1 << 20  # bytes below which a ratio means nothing
_CHUNK = 1 << 20
_ENCRYPTED = 0x1 | 0x40 | 0x2000  # flag bits
_LOCAL_HEADER = 30  # bytes

_Found = Path | Reason


def members(path: Path, name: str, folder: Path) -> Iterator[tuple[str, _Found]]:
    """Unpack one member of an archive after the other.

    Directories and hidden members are skipped. Names of members are never used as paths.

    Args:
        path: zip or tar.
        name: of the archive below the source.
        folder: for one member at a time, deleted before the next is yielded.

    Yields:
        `<name>!<member>`, as stored and in that order, with its file or the reason for which it is refused.

    Raises:
        Rejected: `undecodable`, `inflate_ratio`, `too_large`, `empty`: of the archive itself, also after members.
        OSError: the disk is full.

    """
    target = folder / "member"
    try:
        for member, found in _zip_members(path, target) if _is_zip(path) else _tar_members(path, target):
            yield f"{name}!{member}", _verdict(found)
            target.unlink(missing_ok=True)
    except Rejected:
        raise
    except MemoryError:
        raise Rejected(Reason.OUT_OF_MEMORY) from None
    except Exception as error:  # the parsers raise anything on hostile bytes
        if isinstance(error, OSError) and error.errno:  # they raise OSError too, but only the system numbers it
            raise
        raise Rejected(Reason.UNDECODABLE) from None
    finally:
        target.unlink(missing_ok=True)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _verdict(found: _Found) -> _Found:
    if isinstance(found, Reason):
        return found
    try:
        return Reason.NESTED_ARCHIVE if kind_of(found) == "archive" else found
    except Rejected as refusal:
        return refusal.reason


def _is_unsafe(name: str) -> bool:
    is_rooted = name.startswith("/") or (len(name) > 1 and name[1] == ":")
    return not name or is_rooted or "\\" in name or "\0" in name or ".." in name.split("/")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part != "." for part in name.split("/")) or name.startswith("__MACOSX/")


def _zip_members(path: Path, target: Path) -> Iterator[tuple[str, _Found]]:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        _refuse_bombs(infos)
        for info in infos:
            name = info.orig_filename
            if _is_unsafe(name):
                yield name, Reason.UNSAFE_NAME
            elif not info.is_dir() and not _is_hidden(name):
                yield name, _zip_member(archive, info, target)


def _refuse_bombs(infos: list[zipfile.ZipInfo]) -> None:
    """Refuse archives whose members share bytes: kilobytes that unpack to terabytes."""
    if len(infos) > _MAX_MEMBERS:
        raise Rejected(Reason.TOO_LARGE)
    places = sorted((info.header_offset, info.header_offset + _LOCAL_HEADER + info.compress_size) for info in infos)
    if any(end > start for (_, end), (start, _) in pairwise(places)):
        raise Rejected(Reason.INFLATE_RATIO)


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> _Found:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in {0, stat.S_IFREG}:
        return Reason.UNSAFE_NAME
    if info.flag_bits & _ENCRYPTED:
        return Reason.ENCRYPTED
    if info.file_size > _MAX_MEMBER:
        return Reason.TOO_LARGE
    try:
        with archive.open(info) as packed:
            return _copy(packed, target, max(_MIN_UNPACKED, MAX_RATIO * info.compress_size))
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError):
        return Reason.UNDECODABLE  # the others may still be whole


def _copy(packed: IO[bytes], target: Path, limit: int) -> _Found:
    """Copy at most so many bytes."""
    num_bytes = 0
    with target.open("wb") as file:
        while chunk := packed.read(_CHUNK):
            num_bytes += len(chunk)
            if num_bytes > limit:
                return Reason.INFLATE_RATIO
            if num_bytes > _MAX_MEMBER:
                return Reason.TOO_LARGE
            file.write(chunk)
    return target


class _Unpacked:
    """Stream of an archive that refuses to grow out of proportion, also while members are skipped."""

    def __init__(self, packed: BinaryIO, stream: IO[bytes]) -> None:
        self._packed, self._stream, self._num_bytes = packed, stream, 0

    def read(self, size: int) -> bytes:
        """At most so many bytes."""
        data = self._stream.read(size)
        self._num_bytes += len(data)
        if self._num_bytes > max(_MIN_UNPACKED, MAX_RATIO * self._packed.tell()):
            raise Rejected(Reason.INFLATE_RATIO)
        return data


def _unpack(packed: BinaryIO) -> IO[bytes]:
    magic = packed.read(6)
    packed.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=packed)  # type: ignore[return-value]
    if magic.startswith(b"BZh"):
        return bz2.BZ2File(packed)
    return lzma.LZMAFile(packed) if magic.startswith(b"\xfd7zXZ") else packed


def _tar_members(path: Path, target: Path) -> Iterator[tuple[str, _Found]]:
    with path.open("rb") as packed:
        stream = _Unpacked(packed, _unpack(packed))
        archive = tarfile.open(fileobj=stream, mode="r|")  # type: ignore[call-overload]  # noqa: SIM115 - closes below
        with archive:
            number = 0
            while (info := archive.next()) is not None:
                number += 1
                if number > _MAX_MEMBERS:
                    raise Rejected(Reason.TOO_LARGE)
                archive.members.clear()  # else every name stays in memory
                if _is_unsafe(info.name):
                    yield info.name, Reason.UNSAFE_NAME
                elif not info.isdir() and not _is_hidden(info.name):
                    yield info.name, _tar_member(archive, info, target)
        while stream.read(_CHUNK):  # the check sum of what was unpacked comes last
            pass


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo, target: Path) -> _Found:
    if not info.isreg():
        return Reason.UNSAFE_NAME
    if info.issparse():  # holes cost nothing to claim
        return Reason.INFLATE_RATIO
    if info.size > _MAX_MEMBER:
        return Reason.TOO_LARGE
    content = archive.extractfile(info)
    return Reason.UNDECODABLE if content is None else _copy(content, target, _MAX_MEMBER)

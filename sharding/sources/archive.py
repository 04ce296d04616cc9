"""Archives of recordings: zip, tar, tar.gz, tar.bz2, tar.xz. One member at a time lies on the disk, named by us."""

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, Self

from sharding.recording import MAX_RATIO, Reason, Rejected
from sharding.sources import kind_of

_MAX_MEMBER = 4 << 30  # bytes
_MAX_MEMBERS = 1_000_000
_MIN_UNPACKED = 1 << 20  # bytes below which a ratio means nothing
_CHUNK = 1 << 20
_ENCRYPTED = 0x1 | 0x40 | 0x2000  # flag bits
_LOCAL_HEADER = 30  # bytes

_END: Any = tarfile.EOFHeaderError  # type: ignore[attr-defined]
_HEADER_ERROR: Any = tarfile.HeaderError
MEMBER = "member"  # name of the file in which a member lies


@dataclass(frozen=True)
class Member:
    """A member that is not unpacked yet.

    Attributes:
        name: `<archive>!<member>`, as stored; bytes that are no text are surrogates.
        unpack: writes it to a path and returns None, or why it is refused; must be called before the next member is
            asked for, if at all. Raises Rejected, of the archive itself, and OSError, as members() does.

    """

    name: str
    unpack: Callable[[Path], Reason | None]


class Step(NamedTuple):
    """What unpack() tells: it begins with a member, or is done with it.

    Attributes:
        number: of the member in the archive.
        name: `<archive>!<member>`; None for what is left out: folders, hidden files, members before the start.
        is_done: the member lies in the folder, or is refused.
        refusal: why.

    """

    number: int
    name: str | None
    is_done: bool
    refusal: Reason | None = None


def unpack(path: Path, name: str, folder: Path, start: int) -> Iterator[Step]:
    """Unpack one member of an archive after the other.

    Args:
        path: zip or tar.
        name: of the archive below the source.
        folder: for one member at a time, as `MEMBER`, deleted when the next step is asked for.
        start: number of the first member that is unpacked; those before are passed over.

    Yields:
        two steps for each member, one for what is left out.

    Raises:
        Rejected: see members().
        OSError: the disk is full.

    """
    target = folder / MEMBER
    try:
        for number, member in enumerate(members(path, name)):
            if member is None or number < start:
                yield Step(number, None, is_done=True)
                continue
            yield Step(number, member.name, is_done=False)
            yield Step(number, member.name, is_done=True, refusal=member.unpack(target))
            target.unlink(missing_ok=True)
    finally:
        target.unlink(missing_ok=True)


def members(path: Path, name: str) -> Iterator[Member | None]:
    """Go through an archive: its members as stored and in that order, None for folders and hidden files.

    Names of members are never used as paths.

    Args:
        path: zip or tar.
        name: of the archive below the source.

    Raises:
        Rejected: `undecodable`, `inflate_ratio`, `too_large`, `out_of_memory`: of the archive itself, also after
            members.
        OSError: the source has gone.

    """
    with _refusing():
        for member in _zip_members(path) if _is_zip(path) else _tar_members(path):
            yield None if member is None else Member(f"{name}!{member.name}", partial(_unpack_member, member))


def _unpack_member(member: Member, target: Path) -> Reason | None:
    with _refusing():
        return member.unpack(target) or _verdict(target)


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except Rejected:
        raise
    except MemoryError:
        raise Rejected(Reason.OUT_OF_MEMORY) from None
    except Exception as error:  # the parsers raise anything on hostile bytes
        if isinstance(error, OSError) and error.errno:  # they raise OSError too, but only the system numbers it
            raise
        raise Rejected(Reason.UNDECODABLE) from None


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _verdict(path: Path) -> Reason | None:
    try:
        return Reason.NESTED_ARCHIVE if kind_of(path) == "archive" else None
    except Rejected as refusal:
        return refusal.reason


def _is_unsafe(name: str) -> bool:
    is_rooted = name.startswith("/") or (len(name) > 1 and name[1] == ":")
    return not name or is_rooted or "\\" in name or "\0" in name or ".." in name.split("/")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part != "." for part in name.split("/")) or name.startswith("__MACOSX/")


def _member(name: str, is_folder: bool, unpack: Callable[[Path], Reason | None]) -> Member | None:
    if _is_unsafe(name):
        return Member(name, lambda _: Reason.UNSAFE_NAME)
    return None if is_folder or _is_hidden(name) else Member(name, unpack)


def _zip_members(path: Path) -> Iterator[Member | None]:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        _refuse_bombs(infos)
        for info in infos:
            yield _member(info.orig_filename, info.is_dir(), partial(_zip_member, archive, info))


def _refuse_bombs(infos: list[zipfile.ZipInfo]) -> None:
    """Refuse archives whose members share bytes: kilobytes that unpack to terabytes."""
    if len(infos) > _MAX_MEMBERS:
        raise Rejected(Reason.TOO_LARGE)
    places = sorted((info.header_offset, info.header_offset + _LOCAL_HEADER + info.compress_size) for info in infos)
    if any(end > start for (_, end), (start, _) in pairwise(places)):
        raise Rejected(Reason.INFLATE_RATIO)


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> Reason | None:
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
    except MemoryError:
        return Reason.OUT_OF_MEMORY


def _copy(packed: IO[bytes], target: Path, limit: int) -> Reason | None:
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
    return None


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


class _TarInfo(tarfile.TarInfo):
    """A header that must be whole: tarfile takes a missing, cut or damaged one behind the first for the end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        """The next header.

        Raises:
            Rejected: `undecodable`: there is neither a header nor the block of zeros that ends a tar.
            tarfile.EOFHeaderError: the end.

        """
        try:
            return super().fromtarfile(tarfile)
        except _END:
            raise
        except _HEADER_ERROR:
            raise Rejected(Reason.UNDECODABLE) from None


def _tar_members(path: Path) -> Iterator[Member | None]:
    with path.open("rb") as packed:
        stream = _Unpacked(packed, _unpack(packed))
        archive = tarfile.open(fileobj=stream, mode="r|", tarinfo=_TarInfo)  # type: ignore[call-overload]  # noqa: SIM115 - closes below
        with archive:
            number = 0
            while (info := archive.next()) is not None:
                number += 1
                if number > _MAX_MEMBERS:
                    raise Rejected(Reason.TOO_LARGE)
                archive.members.clear()  # else every name stays in memory
                yield _member(info.name, info.isdir(), partial(_tar_member, archive, info))
        while stream.read(_CHUNK):  # the check sum of what was unpacked comes last
            pass


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo, target: Path) -> Reason | None:
    if not info.isreg():
        return Reason.UNSAFE_NAME
    if info.issparse():  # holes cost nothing to claim
        return Reason.INFLATE_RATIO
    if info.size > _MAX_MEMBER:
        return Reason.TOO_LARGE
    content = archive.extractfile(info)
    return Reason.UNDECODABLE if content is None else _copy(content, target, _MAX_MEMBER)

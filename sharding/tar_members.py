"""Where each file of a tar lies, and whether the tar is whole: nothing of it is left out without a word.

Names are bytes; those that are no UTF-8 are kept as surrogates, as Python keeps names of files.
"""

import os
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sharding.recording import InputError

_BLOCK = tarfile.BLOCKSIZE
_MAGIC = np.frombuffer(b"ustar", np.uint8)
_NAME, _SIZE, _TYPE, _MAGIC_AT, _PREFIX = slice(0, 100), slice(124, 135), 156, slice(257, 262), slice(345, 500)
_PLAIN_FILE = {0, ord("0")}  # types of header
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}


class Member(NamedTuple):
    """One file of a tar: name, first byte, byte after the last."""

    name: str
    start: int
    end: int


def key_of(name: str) -> tuple[str, str] | None:
    """Key and extension of a member, None if it belongs to no sample: the key ends at the first dot of the file name.

    As in WebDataset. A name without a dot, or one that begins with it, belongs to none.
    """
    folder, slash, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    return (folder + slash + stem, extension.lower()) if dot and stem else None


def members_of(path: Path) -> list[Member]:
    """Files of a tar in its order; a link to a file in it has that file's bytes.

    Raises:
        InputError: not an uncompressed tar, one that stops before its end, or one with a member that cannot be read.

    """
    members = _plain_members(path)
    return _any_members(path) if members is None else members


def _plain_members(path: Path) -> list[Member] | None:
    """Members of a tar of plain files with short names, by one look at every block; None for any other tar.

    Blocks of data can look like headers: each header must end where the next begins.
    """
    num_blocks = path.stat().st_size // _BLOCK
    if num_blocks == 0:
        return None
    blocks = np.memmap(path, np.uint8, "r", shape=(num_blocks, _BLOCK))
    found = np.flatnonzero((blocks[:, _MAGIC_AT] == _MAGIC).all(axis=1))
    heads = blocks[found]
    digits = heads[:, _SIZE].astype(np.int64) - ord("0")
    if not len(found) or found[0] or (digits < 0).any() or (digits > 7).any():  # noqa: PLR2004 - octal
        return None
    sizes = digits @ (8 ** np.arange(digits.shape[1])[::-1])
    after = found + 1 + -(-sizes // _BLOCK)
    follows = (after[:-1] == found[1:]).all() and after[-1] < num_blocks and not blocks[after[-1]].any()
    if not follows or heads[:, _PREFIX].any() or not np.isin(heads[:, _TYPE], list(_PLAIN_FILE)).all():
        return None
    names = np.ascontiguousarray(heads[:, _NAME]).view("S100")[:, 0].tolist()
    starts = (found + 1) * _BLOCK
    spans = zip(starts.tolist(), (starts + sizes).tolist(), strict=True)
    return [Member(name.decode(errors="surrogateescape"), *span) for name, span in zip(names, spans, strict=True)]


def _any_members(path: Path) -> list[Member]:
    """Members of any tar. Python's tarfile takes whatever is no header for the end, so the end is looked at here."""
    members: list[Member] = []
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            members.extend(_files(path, tar))  # those before an error stay
            end = tar.offset
    except InputError:
        raise
    except (tarfile.TarError, ValueError, OverflowError) as error:
        if members:
            raise InputError(_cut(path, f"in the data after {members[-1].name!r} ({error})", len(members))) from error
        raise InputError(f"shard {path}: not an uncompressed tar ({_kind(path) or error}); make it again") from error
    _check_end(path, end, len(members))
    return members


def _files(path: Path, tar: tarfile.TarFile) -> Iterator[Member]:
    spans: dict[str, tuple[int, int]] = {}
    for info in tar:
        if info.size < 0:
            raise tarfile.ReadError(f"member {info.name!r} has {info.size} bytes")
        if info.isdir():
            continue
        span = (info.offset_data, info.offset_data + info.size)
        if not info.isfile() or info.issparse():
            linked = _linked(info, spans)
            if linked is None:
                if key_of(info.name) is not None:
                    raise InputError(f"shard {path}: member {info.name!r} is {_what(info)}")
                continue
            span = linked
        spans[posixpath.normpath(info.name)] = span
        yield Member(info.name, *span)


def _linked(info: tarfile.TarInfo, spans: dict[str, tuple[int, int]]) -> tuple[int, int] | None:
    """Where the bytes of a link lie; None where they are not in the tar before it."""
    if info.islnk():
        return spans.get(posixpath.normpath(info.linkname))
    if info.issym():
        return spans.get(posixpath.normpath(posixpath.join(posixpath.dirname(info.name), info.linkname)))
    return None


def _what(info: tarfile.TarInfo) -> str:
    if info.islnk() or info.issym():
        return (
            f"a link to {info.linkname!r}, which is not in the tar before it; make the tar again with "
            "`tar --dereference --hard-dereference`"
        )
    if info.issparse():
        return "a sparse file, whose bytes do not lie in one piece; make the tar again without `--sparse`"
    return "no file; make the tar again without it"


def _check_end(path: Path, end: int, num_members: int) -> None:
    """Raise unless a block of zeros ends the members, and no other tar follows it."""
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(_BLOCK)
        if len(block) < _BLOCK:
            raise InputError(_cut(path, "inside a header" if block else "at a header", num_members))
        if any(block):
            raise InputError(
                f"shard {path}: damaged: no header at byte {end}, after {num_members} members; get it again"
            )
        while block := file.read(_BLOCK):
            if block[_MAGIC_AT] == _MAGIC.tobytes():
                at = file.tell() - _BLOCK
                raise InputError(
                    f"shard {path}: another tar follows its end at byte {at}; give each as a file of its own"
                )


def _cut(path: Path, where: str, num_members: int) -> str:
    size = os.stat(path).st_size  # noqa: PTH116
    return (
        f"shard {path}: cut short: it stops {where}, at byte {size}, after {num_members} members, and the end of a tar "
        "is missing; get it again"
    )


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(8)
    named = next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), "")
    return f"it is compressed with {named}" if named else ""

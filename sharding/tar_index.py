"""Where each sample of a tar lies: one scan over the headers, kept on disk for all workers and later runs."""

import hashlib
import os
import secrets
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np

from sharding.names import name_bytes
from sharding.open_files import is_exhausted
from sharding.recording import InputError
from sharding.tar_members import Member, key_of, members_of

_FORMAT = 2  # of the files; another number is another scan
_MAX_HEADER = 1 << 30  # characters; numpy refuses the names of some hundred extensions otherwise

_Part = tuple[str, str, Member]  # key, extension


def cache_folder() -> Path:
    """Where indices and fetched shards are kept: $US_JEPA_CACHE, else below ~/.cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("US_JEPA_CACHE", base / "us-jepa"))


def load_index(path: Path, identity: str = "") -> np.ndarray:
    """Index of a tar, from the cache when the file is the one that was scanned.

    Args:
        path: the tar.
        identity: of its content, where it is certain; else path, size and time tell.

    Returns:
        (n,) structured, one row per sample in the order of the tar: `key` (bytes), then first and last byte of each
        member, `.<extension>` and `.<extension>/end`; both are 0 where a sample lacks it. In memory, and of no open
        file. An extension that is no ASCII stands as its bytes in Latin-1; see extension_of.

    Raises:
        InputError: not a whole tar, or the cache cannot be written.
        OSError: the tar is not there, or too many files are open.

    """
    status = os.stat(path)  # noqa: PTH116 - a resume opens many shards, and pathlib takes several times as long
    place = f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}"  # noqa: PTH100
    return _load(path, f"{_FORMAT}\0{identity or place}")


@lru_cache(maxsize=256)  # counted, then opened
def _load(path: Path, identity: str) -> np.ndarray:
    kept = cache_folder() / "index" / f"{hashlib.sha256(name_bytes(identity)).hexdigest()[:32]}.npy"
    if not kept.exists():
        _save(scan(path), kept)
    # not mapped: every mapping would hold a file open, and shards are many
    index: np.ndarray = np.load(kept, max_header_size=_MAX_HEADER)
    index.setflags(write=False)
    return index


def _save(index: np.ndarray, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, index)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if is_exhausted(error):
            raise
        raise InputError(
            f"cache {path.parent}: {error.strerror}; set US_JEPA_CACHE to a folder that can be written"
        ) from error


def scan(path: Path) -> np.ndarray:
    """Index of a tar; see load_index.

    Raises:
        InputError: not a whole tar, or two members of a sample have one extension.
        OSError: the tar is not there, or too many files are open.

    """
    parts = [(*known, member) for member in members_of(path) if (known := key_of(member.name)) is not None]
    samples = [(key, list(some)) for key, some in groupby(parts, key=lambda part: part[0])]
    extensions = sorted({extension for _, extension, _ in parts})
    width = max((len(_bytes(key)) for key, _ in samples), default=1)
    fields = [(name, np.int64) for extension in extensions for name in (_field(extension), f"{_field(extension)}/end")]
    index = np.zeros(len(samples), dtype=[("key", f"S{width}"), *fields])
    for row, (key, some) in enumerate(samples):
        spans = _spans(path, some)
        edges = (edge for extension in extensions for edge in spans.get(extension, (0, 0)))
        index[row] = (_bytes(key), *edges)
    return index


def _spans(path: Path, parts: list[_Part]) -> dict[str, tuple[int, int]]:
    spans: dict[str, tuple[int, int]] = {}
    for key, extension, member in parts:
        if extension in spans:
            raise InputError(
                f"shard {path}: sample {key!r} has two members .{extension}, the second is {member.name!r}; "
                "readers would lose one of them"
            )
        spans[extension] = member.start, member.end
    return spans


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogateescape")


def _field(extension: str) -> str:
    """Name of a field: numpy cannot keep surrogates in it, nor a field `key` twice."""
    return f".{_bytes(extension).decode('latin-1')}"


def extension_of(field: str) -> str:
    """Extension of the members whose first byte a field of an index holds."""
    return field.removeprefix(".").encode("latin-1").decode(errors="surrogateescape")

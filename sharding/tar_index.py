"""Where each member of a tar lies: one scan over the headers, kept on disk for all workers and later runs."""

import hashlib
import os
import secrets
import tarfile
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np

from sharding.names import name_bytes
from sharding.recording import InputError

_BLOCK = tarfile.BLOCKSIZE
_MAGIC = np.frombuffer(b"ustar", np.uint8)
_NAME, _SIZE, _TYPE, _MAGIC_AT, _PREFIX = slice(0, 100), slice(124, 135), 156, slice(257, 262), slice(345, 500)
_PLAIN_FILE = {0, ord("0")}  # types of header
_Member = tuple[str, int, int]  # name, first byte, byte after the last


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
        member, `<extension>` and `<extension> end`; both are 0 where a sample lacks it. Mapped from disk.

    Raises:
        InputError: not a tar, or the cache cannot be written.

    """
    status = os.stat(path)  # noqa: PTH116 - a resume opens many shards, and pathlib takes several times as long
    place = f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}"  # noqa: PTH100
    return _load(path, identity or place)


@lru_cache(maxsize=256)  # counted, then opened
def _load(path: Path, identity: str) -> np.ndarray:
    kept = cache_folder() / "index" / f"{hashlib.sha256(name_bytes(identity)).hexdigest()[:32]}.npy"
    if not kept.exists():
        _save(scan(path), kept)
    return np.asarray(np.load(kept, mmap_mode="r"))  # memmap's own indexing is slow


def _save(index: np.ndarray, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, index)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"cache {path.parent}: {error.strerror}; set US_JEPA_CACHE to a folder that can be written"
        ) from error


def scan(path: Path) -> np.ndarray:
    """Index of a tar; see load_index.

    Raises:
        InputError: not a tar.

    """
    members = _plain_members(path)
    named = _with_keys(_any_members(path) if members is None else members)
    samples = [(key, list(some)) for key, some in groupby(named, key=lambda member: member[0])]
    extensions = sorted({extension for _, some in samples for _, extension, _, _ in some})
    width = max((len(key.encode()) for key, _ in samples), default=1)
    fields = [(name, np.int64) for extension in extensions for name in (extension, f"{extension} end")]
    index = np.zeros(len(samples), dtype=[("key", f"S{width}"), *fields])
    for row, (key, some) in enumerate(samples):
        spans = {extension: (start, end) for _, extension, start, end in some}
        edges = (edge for extension in extensions for edge in spans.get(extension, (0, 0)))
        index[row] = (key.encode(), *edges)
    return index


def _with_keys(members: list[_Member]) -> list[tuple[str, str, int, int]]:
    """(key, extension, start, end): the key ends at the first dot of the file name, as in WebDataset."""
    found = []
    for name, start, end in members:
        folder, slash, file = name.rpartition("/")
        stem, dot, extension = file.partition(".")
        if dot and stem:
            found.append((folder + slash + stem, extension.lower(), start, end))
    return found


def _plain_members(path: Path) -> list[_Member] | None:
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
    return list(zip((name.decode() for name in names), starts.tolist(), (starts + sizes).tolist(), strict=True))


def _any_members(path: Path) -> list[_Member]:
    try:
        with tarfile.open(path, "r:") as tar:
            return [(m.name, m.offset_data, m.offset_data + m.size) for m in tar if m.isfile()]
    except tarfile.TarError as error:
        raise InputError(f"shard {path}: not an uncompressed tar ({error}); make it again") from error

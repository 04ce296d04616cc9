"""A folder of files, local or remote (`s3://`, anything fsspec knows), in which every write is whole or absent."""

import fcntl
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, cast

import fsspec

from sharding.lease import lease
from sharding.recording import InputError


class Store:
    """One folder.

    Args:
        place: path, or URL such as `s3://bucket/prefix` (credentials as the environment gives them).

    """

    def __init__(self, place: str | Path) -> None:
        self.place = str(place).rstrip("/")
        self.is_local = "://" not in self.place
        self._fs: Any
        self._fs, self._root = (None, "") if self.is_local else _remote(self.place)

    def __truediv__(self, name: str) -> str:
        return f"{self.place}/{name}"

    def path(self, name: str = "") -> Path:
        """Local path of a file; only of a local folder."""
        if not self.is_local:
            raise InputError(f"{self.place}: must be a local folder here; copy it first")
        return Path(self.place) / name

    def exists(self, name: str = "") -> bool:
        """Whether a file, or the folder itself, is there."""
        if self.is_local:
            return self.path(name).exists()
        return bool(self._fs.exists(f"{self._root}/{name}".rstrip("/")))

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading."""
        return self.path(name).open("rb") if self.is_local else cast("IO[bytes]", self._fs.open(f"{self._root}/{name}"))

    def read(self, name: str) -> bytes:
        """Content of a file."""
        with self.open(name) as file:
            return file.read()

    def fetch(self, name: str, target: Path) -> Path:
        """Path of a local copy: the file itself where the folder is local."""
        if self.is_local:
            return self.path(name)
        self._fs.get_file(f"{self._root}/{name}", str(target))
        return target

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that a crash at any moment leaves the old one or the new one, never a part."""
        if self.is_local:
            with self.writing(name) as file:
                file.write(data)
        else:
            self._fs.pipe_file(f"{self._root}/{name}", data)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file of a local folder for writing; it appears under its name when the block ends without error."""
        path = self.path(name)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)

    def upload(self, local: Path, name: str) -> None:
        """Copy a finished local file into this folder."""
        if not self.is_local:
            self._fs.put_file(str(local), f"{self._root}/{name}")
            return
        with local.open("rb") as source, self.writing(name) as copy:
            shutil.copyfileobj(source, copy)

    def names(self, folder: str, suffix: str) -> list[str]:
        """Names of the files directly in a folder that end in `suffix`, sorted."""
        if self.is_local:
            place = self.path(folder)
            found = [p.name for p in place.iterdir() if p.is_file()] if place.is_dir() else []
        else:
            place_name = f"{self._root}/{folder}".rstrip("/")
            found = [Path(p).name for p in self._fs.ls(place_name, detail=False)] if self._fs.exists(place_name) else []
        return sorted(name for name in found if name.endswith(suffix))

    def entries(self, folder: str = "", links: Counter[str] | None = None) -> Iterator[tuple[str, int]]:
        """Every file below a folder as (name, bytes), folder by folder in order of name; hidden ones are left out.

        A link is followed where it leads to a file or folder below this store, so that nothing outside is read.

        Args:
            folder: where to begin.
            links: counts those that are not followed: `outside`, `broken`, `circular`.

        """
        yield from self._entries(folder, Counter() if links is None else links, is_linked=False)

    def _entries(self, folder: str, links: Counter[str], is_linked: bool) -> Iterator[tuple[str, int]]:
        for name, size, is_folder, is_link in self._list(folder):
            if is_link and (why := self._why_not(name, is_folder, is_linked)):
                links[why] += 1
            elif is_folder:
                yield from self._entries(name, links, is_linked or is_link)
            else:
                yield name, size

    def _why_not(self, name: str, is_folder: bool, is_linked: bool) -> str:
        """The reason for which a link is not followed; empty when it is."""
        path = self.path(name)
        if not (is_folder or path.is_file()):  # nor is what a circle of links leads to
            return "broken"
        target, root = path.resolve(), self.path().resolve()
        if not target.is_relative_to(root):
            return "outside"
        # a folder that is linked inside a linked folder may lead back to the first
        return "circular" if is_folder and (is_linked or path.parent.resolve().is_relative_to(target)) else ""

    def _list(self, folder: str) -> list[tuple[str, int, bool, bool]]:
        """Name, bytes, whether it is a folder and whether a link, of all that is directly in a folder."""
        prefix = f"{folder}/" if folder else ""
        if not self.is_local:
            place = f"{self._root}/{folder}".rstrip("/")
            found = [
                (Path(i["name"]).name, int(i["size"] or 0), i["type"] == "directory", False) for i in self._ls(place)
            ]
        else:
            with os.scandir(self.path(folder)) as listing:
                found = [_entry(item) for item in listing if item.is_symlink() or item.is_file() or item.is_dir()]
        return [(prefix + name, *facts) for name, *facts in sorted(found) if not name.startswith(".")]

    def _ls(self, place: str) -> list[dict[str, Any]]:
        return [item for item in self._fs.ls(place, detail=True) if item["name"].rstrip("/") != place]

    def delete(self, name: str) -> None:
        """Remove a file."""
        if self.is_local:
            self.path(name).unlink()
        else:
            self._fs.rm_file(f"{self._root}/{name}")

    @contextmanager
    def locked(self, name: str, shared: bool = False, wait: bool = False) -> Iterator[Callable[[], None]]:
        """Hold a lock of the folder; a killed holder loses it, in a remote folder after a minute (see lease.py).

        Yields:
            what raises InputError if the lock was lost meanwhile, which only a remote one can be.

        Raises:
            InputError: another process holds it, and `wait` is false; or a remote one is to be shared or waited for.

        """
        if not self.is_local:
            if shared or wait:
                raise InputError(f"{self.place}: must be a local folder here: locks of a remote one cannot be shared")
            with lease(self._fs, self._root, name, self.place) as check:
                yield check
            return
        self.path().mkdir(parents=True, exist_ok=True)
        how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        with self.path(f".{name}.lock").open("w") as file:
            try:
                fcntl.flock(file, how)
            except BlockingIOError:
                raise InputError(
                    f"{self.place}: another job is writing here; wait until it has ended, or give another OUT"
                ) from None
            yield lambda: None


def _entry(item: os.DirEntry[str]) -> tuple[str, int, bool, bool]:
    try:
        is_folder = item.is_dir()
        size = item.stat().st_size if item.is_file() else 0
    except OSError:  # a circle of links, or one to where nobody may look
        is_folder, size = False, 0
    return item.name, size, is_folder, item.is_symlink()


@lru_cache(maxsize=8)
def _remote(place: str) -> tuple[Any, str]:
    # a listing that is cached would hide what another job wrote
    options = {"use_listings_cache": False} if place.startswith("s3://") else {}
    fs, root = fsspec.core.url_to_fs(place, **options)
    return fs, root


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

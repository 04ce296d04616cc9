"""Remote shards on local disk: fetched whole, checked, bounded, shared by all processes of a node.

Everything is said with files and their locks, which a killed process loses: a locked `.part` is being fetched, a locked
tar is about to be read. What nobody locks may go, the longest unused first.
"""

import fcntl
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import fsspec

from sharding.names import name_bytes
from sharding.open_files import explain_exhausted, is_exhausted
from sharding.recording import InputError
from sharding.shard import Shard

_CHUNK = 1 << 20
_BLOCK = 16 << 20  # bytes of one request
_TRIES = 6
_FIRST_PAUSE = 0.2  # seconds, doubled after each try
_POLL = 0.05  # seconds between looks at a lock


class ShardCache:
    """Shards of anywhere as local files.

    Args:
        folder: shared by the processes of a node.
        max_bytes: of all files in it.
        seconds: after which a shard that does not come is an error.

    """

    def __init__(self, folder: Path, max_bytes: int, seconds: float = 600) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._seconds = seconds

    def path_of(self, shard: Shard) -> Path:
        """Where the shard lies, or will lie when it has been fetched."""
        if not shard.is_remote:
            return Path(shard.place)
        identity = shard.sha256 or hashlib.sha256(name_bytes(shard.place)).hexdigest()
        return self.folder / f"{identity}.tar"

    def fetch(self, shard: Shard) -> Path:
        """Local path of a shard; waits for it where another process fetches it.

        Raises:
            InputError: it cannot be had, is not what the manifest says, or the disk is full.

        """
        path = self.path_of(shard)
        if path.exists() or not shard.is_remote:
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked(path.with_suffix(".lock"), shard):
            if not path.exists():
                self._download(shard, path)
        return path

    def pin(self, shard: Shard) -> IO[bytes]:
        """Fetch a shard and keep it from going until the file that is returned is closed.

        Raises:
            InputError: see fetch.

        """
        while True:
            try:
                file = self.fetch(shard).open("rb")
            except FileNotFoundError:  # another process has just removed it: fetch it again
                continue
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.fstat(file.fileno()).st_nlink:
                os.utime(file.fileno(), ns=(time.time_ns(), os.fstat(file.fileno()).st_mtime_ns))
                return file
            file.close()  # it went before the lock was ours

    @contextmanager
    def identified(self, place: str) -> Iterator[Shard]:
        """Fetch a shard of which nothing is known; it stays while the block runs, as what its bytes say it is.

        It lies under the name that it has from then on, so that it is not fetched again. One process at a time may do
        this with a place.

        Raises:
            InputError: see fetch.

        """
        unknown = Shard(place, 0, 0)
        path = self.path_of(unknown)
        with self.pin(unknown):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            shard = Shard(place, 0, path.stat().st_size, digest)
            path.replace(self.path_of(shard))
            yield shard

    def _download(self, shard: Shard, path: Path) -> None:
        part = path.with_suffix(".part")
        failure = ""
        for number in range(_TRIES):
            if number:
                time.sleep(_FIRST_PAUSE * 2 ** (number - 1))
            with part.open("wb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    self._make_room(shard, file)
                    digest = _copy(shard.place, file, shard.num_bytes)
                    if not shard.sha256 or digest == shard.sha256:
                        os.fsync(file.fileno())
                        part.replace(path)
                        return
                    failure = f"sha256 is {digest[:12]}..., the manifest says {shard.sha256[:12]}..."
                except InputError:
                    part.unlink()
                    raise
                except Exception as error:
                    if isinstance(error, OSError) and is_exhausted(error):
                        raise InputError(f"shard {shard.place}: {explain_exhausted(error)}") from error
                    failure = _sentence(error)
        part.unlink()
        raise InputError(f"shard {shard.place}: not fetched in {_TRIES} tries ({failure}); see whether it is there")

    def _make_room(self, shard: Shard, file: IO[bytes]) -> None:
        """Reserve the bytes of a shard by the length of its file, under one lock of the folder."""
        if shard.num_bytes > self.max_bytes:
            raise InputError(f"cache {self.folder}: {self.max_bytes} bytes are less than shard {shard.place}")
        deadline = time.monotonic() + self._seconds
        while True:
            with self._locked(self.folder / "room.lock", shard):
                if self._evict(shard.num_bytes):
                    os.truncate(file.fileno(), shard.num_bytes)
                    return
            if time.monotonic() > deadline:
                raise InputError(
                    f"cache {self.folder}: all of its {self.max_bytes} bytes are in use, none for shard {shard.place} "
                    f"after {self._seconds:.0f} s; enlarge run.cache_gib or set a smaller data.window"
                )
            time.sleep(_POLL)

    def _evict(self, num_bytes: int) -> bool:
        """Delete what nobody needs until so many bytes fit."""
        files = list(self._files())
        used = sum(status.st_size for status, _ in files)
        for status, path in sorted(files, key=lambda found: found[0].st_atime_ns):
            if used + num_bytes <= self.max_bytes:
                break
            if _delete_if_free(path):
                used -= status.st_size
        return used + num_bytes <= self.max_bytes

    def _files(self) -> Iterator[tuple[os.stat_result, Path]]:
        for path in self.folder.iterdir():
            if path.suffix in {".tar", ".part"}:
                with suppress(FileNotFoundError):  # complete since, under its other name
                    yield path.stat(), path

    @contextmanager
    def _locked(self, path: Path, shard: Shard) -> Iterator[None]:
        deadline = time.monotonic() + self._seconds
        with path.open("w") as file:
            while not _try(file, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise InputError(f"shard {shard.place}: another process has fetched it for {self._seconds:.0f} s")
                time.sleep(_POLL)
            yield


def _try(file: IO[str] | IO[bytes], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _delete_if_free(path: Path) -> bool:
    try:
        file = path.open("rb")
    except FileNotFoundError:  # complete since, under its other name
        return False
    with file:
        if not _try(file, fcntl.LOCK_EX):
            return False
        path.unlink(missing_ok=True)
    return True


def _copy(place: str, target: IO[bytes], num_bytes: int) -> str:
    """Copy a shard; returns its sha256."""
    digest, copied = hashlib.sha256(), 0
    with _open(place) as source:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            target.write(chunk)
            copied += len(chunk)
    target.flush()
    if num_bytes and copied != num_bytes:
        raise OSError(f"{copied} bytes came, the manifest says {num_bytes}")
    return digest.hexdigest()


@contextmanager
def _open(place: str) -> Iterator[IO[bytes]]:
    if not place.startswith("pipe:"):
        fs, name = fsspec.core.url_to_fs(place)
        with fs.open(name, "rb", block_size=_BLOCK, cache_type="readahead") as file:
            yield file
        return
    command = place.removeprefix("pipe:")
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.stdout
    if process.returncode:
        raise OSError(f"exit code {process.returncode}")


def _sentence(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"{error}; install the package that speaks this protocol"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

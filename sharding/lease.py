"""A lock in a remote folder, where no system gives it back when its holder is killed: one small object, kept fresh.

The holder of lock n writes its object again every few seconds. Whoever wants it when it is free, or no longer fresh,
makes object n + 1, which the store lets one of them do (`If-None-Match` on S3). Object n stays until then, so that
nobody deletes a lock that is another's by now.
"""

import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from sharding.recording import InputError

_BEAT = 10.0  # seconds between two writings of a lock that is held
_LEASE = 60.0  # seconds without one after which its holder is taken for dead

Json = dict[str, Any]


class _Lock(NamedTuple):
    number: int
    content: Json


class _Folder:
    """The objects of one lock.

    Args:
        fs: file system of fsspec.
        root: folder in it.
        name: of the lock.
        place: the folder as the user knows it, for messages.

    """

    def __init__(self, fs: Any, root: str, name: str, place: str) -> None:  # noqa: ANN401 - fsspec has no types
        self._fs, self._folder, self._name, self.place = fs, f"{root}/.locks", name, place

    def newest(self) -> _Lock | None:
        """The lock with the highest number."""
        numbers = self._numbers()
        if not numbers:
            return None
        try:
            return _Lock(numbers[-1], json.loads(self._fs.cat_file(self._path(numbers[-1]))))
        except FileNotFoundError:  # another has just taken the next one and deleted this
            return self.newest()

    def create(self, number: int, content: Json) -> bool:
        """Make a lock; False if it exists."""
        try:
            self._fs.pipe_file(self._path(number), json.dumps(content).encode(), mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            raise InputError(f"{self.place}: cannot be written ({error}); see its address and your rights") from error
        for older in self._numbers():
            if older < number:
                self._fs.rm_file(self._path(older))
        return True

    def write(self, number: int, content: Json) -> None:
        """Write a lock that is ours."""
        self._fs.pipe_file(self._path(number), json.dumps(content).encode())

    def _path(self, number: int) -> str:
        return f"{self._folder}/{self._name}-{number:09}"

    def _numbers(self) -> list[int]:
        try:
            names = [Path(path).name for path in self._fs.ls(self._folder, detail=False)]
        except FileNotFoundError:
            return []
        found = [name.rpartition("-") for name in names]
        return sorted(int(number) for name, _, number in found if name == self._name and number.isdigit())


@contextmanager
def lease(fs: Any, root: str, name: str, place: str) -> Iterator[Callable[[], None]]:  # noqa: ANN401 - as above
    """Hold a lock of a remote folder while the block runs.

    Args:
        fs: file system of fsspec.
        root: folder in it.
        name: of the lock.
        place: the folder as the user knows it, for messages.

    Yields:
        what raises InputError if another process has taken the lock meanwhile.

    Raises:
        InputError: another process holds it.

    """
    folder = _Folder(fs, root, name, place)
    held = _Held(folder, _take(folder))
    try:
        yield held.check
    finally:
        held.release()


def _take(folder: _Folder) -> _Lock:
    newest = folder.newest()
    if newest is not None and not _is_over(folder, newest):
        raise InputError(_refusal(folder.place))
    mine = _Lock(1 if newest is None else newest.number + 1, _this_process())
    if not folder.create(*mine):
        raise InputError(_refusal(folder.place))
    return mine


def _refusal(place: str) -> str:
    return f"{place}: another job is writing here; wait until it has ended, or give another OUT"


def _this_process() -> Json:
    """Who holds a lock. Process numbers say something only within one boot and one container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {
        "holder": secrets.token_hex(8),
        "machine": f"{boot} {os.readlink('/proc/self/ns/pid')}",  # noqa: PTH115 - no path of a file
        "process": os.getpid(),
        "started": psutil.Process().create_time(),
        "beat": 0,
    }


def _is_over(folder: _Folder, lock: _Lock) -> bool:
    """Whether a lock was given back, or its holder has died; the clocks of two machines are not compared."""
    if lock.content.get("is_free") or _is_dead_here(lock.content):
        return True
    print(f"{folder.place}: see for up to {_LEASE:.0f} s whether the job that held it is alive", file=sys.stderr)
    deadline = time.monotonic() + _LEASE
    while time.monotonic() < deadline:
        time.sleep(min(1.0, _BEAT))
        if folder.newest() != lock:
            return False
    return True


def _is_dead_here(content: Json) -> bool:
    """Whether the holder ran on this machine and does not any more."""
    if content["machine"] != _this_process()["machine"]:
        return False
    try:
        return bool(psutil.Process(content["process"]).create_time() != content["started"])
    except psutil.NoSuchProcess:
        return True


class _Held:
    """A lock that is ours, and the thread that keeps it fresh."""

    def __init__(self, folder: _Folder, lock: _Lock) -> None:
        self._folder, self._lock = folder, lock
        self._is_lost = False
        self._confirmed = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")
        self._thread.start()

    def check(self) -> None:
        """Raise InputError if another process has taken the lock; look at it if that was not done for a while."""
        if not self._is_lost and time.monotonic() - self._confirmed > _LEASE / 2:
            self._confirm()
        if self._is_lost:
            raise InputError(
                f"{self._folder.place}: another job has taken over, because this one was silent for {_LEASE:.0f} s; "
                "let the other one finish"
            )

    def release(self) -> None:
        """Give the lock back."""
        self._ended.set()
        self._thread.join()
        if self._is_lost:
            return
        try:
            self._folder.write(self._lock.number, self._lock.content | {"is_free": True})
        except Exception as error:  # must not hide why the job ended; the lock is free when it is no longer fresh
            print(f"{self._folder.place}: its lock could not be given back ({error})", file=sys.stderr)

    def _renew(self) -> None:
        beat = 0
        while not self._ended.wait(_BEAT) and not self._is_lost:
            beat += 1
            try:
                self._confirm()
                if not self._is_lost:
                    self._folder.write(self._lock.number, self._lock.content | {"beat": beat})
            except Exception as error:  # whatever a network raises: check() tries again, and raises it if it lasts
                print(f"{self._folder.place}: its lock could not be renewed ({error})", file=sys.stderr)

    def _confirm(self) -> None:
        newest = self._folder.newest()
        self._is_lost = newest is None or newest.content["holder"] != self._lock.content["holder"]
        self._confirmed = time.monotonic()

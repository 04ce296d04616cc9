"""Killable children, forked from a warm server: a bomb, a hang or a crash of a decoder costs one file.

A child converts up to 32 files, then another takes its place. When it dies or hangs, the file in its hands is tried
once more in a fresh child, so that an earlier file cannot spoil a later one, and then has its outcome.
"""

import ctypes
import multiprocessing
import os
import resource
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

import cv2

from sharding.convert import Converted, Task, convert
from sharding.policy import Limits
from sharding.recording import Reason, Rejected
from sharding.sources import kind_of

_FILES_PER_CHILD = 32
_NUM_TRIES = 2
_MAX_FAULTS = 3  # members of an archive that fail in a row before the rest of it is given up
_MAX_OPEN_FILES = 256
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_DONE = None
_starting = threading.Lock()  # of threads that start children: one main module is hidden at a time

Message = Converted | OSError | None


class Converter:
    """A child at a time.

    Args:
        limits: of one file.
        folder: where children may put members of archives on their way.

    """

    def __init__(self, limits: Limits, folder: Path) -> None:
        self._limits, self._folder = limits, folder
        self._context = fork_server()
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the present child."""
        return None if self._child is None else self._child.pid

    def __enter__(self) -> "Converter":
        return self

    def __exit__(self, *unused: object) -> None:
        self._replace_child()

    def convert(self, task: Task) -> Iterator[Converted]:
        """Convert a file, or the members of an archive, each exactly once, whatever happens to the child.

        Raises:
            OSError: the source has gone or the disk is full.

        """
        num_done = num_faults = 0
        while num_faults < _MAX_FAULTS:
            fault = None
            for _ in range(_NUM_TRIES):
                fault = None
                for message in self._ask(replace(task, start=num_done)):
                    if isinstance(message, Reason):
                        fault = message
                    else:
                        num_done, num_faults = num_done + 1, 0
                        yield message
                if fault is None:
                    return
            assert fault is not None
            yield Converted(task.name if num_done == 0 else f"{task.name}!{num_done}", fault)
            num_done, num_faults = num_done + 1, num_faults + 1
            if not _is_archive(task.path):
                return

    def _ask(self, task: Task) -> Iterator[Converted | Reason]:
        """What a child says about a task; a Reason when it failed."""
        child = self._ready()
        child.connection.send(task)
        while True:
            if not child.connection.poll(self._limits.seconds):
                self._replace_child()
                yield Reason.TIMEOUT
                return
            try:
                message: Message = child.connection.recv()
            except (EOFError, ConnectionResetError):
                self._replace_child()
                yield Reason.CRASHED
                return
            if message is _DONE:
                return
            if isinstance(message, OSError):
                raise message
            yield message

    def _ready(self) -> "_Child":
        if self._child is not None and self._child.num_files == _FILES_PER_CHILD:
            self._replace_child()
        if self._child is None:
            self._child = _Child(self._context, self._limits, self._folder)
        self._child.num_files += 1
        return self._child

    def _replace_child(self) -> None:
        if self._child is not None:
            self._child.kill()
        self._child = None


def _is_archive(path: Path) -> bool:
    try:
        return kind_of(path) == "archive"
    except Rejected:
        return False


def fork_server() -> multiprocessing.context.ForkServerContext:
    """The warm server: it has imported everything; workers and their children are forked from the same one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class _Child:
    """A process and the pipe to it."""

    def __init__(self, context: multiprocessing.context.ForkServerContext, limits: Limits, folder: Path) -> None:
        self.num_files = 0
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, limits, folder), daemon=True)
        with without_main():
            self._process.start()
        self.pid = self._process.pid
        theirs.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


@contextmanager
def without_main() -> Iterator[None]:
    """Hide the main module while a process is started: it would be imported anew there, torch and all."""
    with _starting:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _serve(connection: Connection, limits: Limits, folder: Path) -> None:
    """Life of a child: convert until the pipe closes."""
    _confine(limits)
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        _allow_seconds(limits.seconds)
        try:
            for converted in convert(task, folder):
                connection.send(converted)
        except OSError as error:
            connection.send(OSError(error.errno, os.strerror(error.errno or 0)))  # without its path: paths hold names
            continue
        except Exception as error:  # a fault of ours; the text would echo values, the place does not
            last = traceback.extract_tb(error.__traceback__)[-1]
            fault = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
            connection.send(Converted(task.name, Reason.CRASHED, fault=fault))
        connection.send(_DONE)


def _confine(limits: Limits) -> None:
    cv2.setNumThreads(1)  # the job is parallel over units
    _keep_memory()
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)  # decoders print what they find in a file
    os.dup2(silent, 2)
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_OPEN_FILES, _MAX_OPEN_FILES))


def _keep_memory() -> None:
    """Let the allocator keep what a clip frees for the next one: fresh pages cost a quarter of the whole time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc has it, musl has not
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def _allow_seconds(seconds: float) -> None:
    """Processor time until the next file: ends an endless loop even when the parent is gone."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = int(used.ru_utime + used.ru_stime + 2 * seconds) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, hard))

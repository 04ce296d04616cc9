"""Killable, confined child processes, forked from a warm server: a bomb, a hang or a crash costs what is in hand.

A child calls functions that touch hostile bytes and hands their values back one by one; it goes on when the parent asks
for more. After 32 calls another takes its place. What it sends is not trusted: only plain values and the named classes
are built of it, never code.
"""

import ctypes
import inspect
import io
import multiprocessing
import os
import pickle
import resource
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, reduction
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2

from sharding.confine import Confinement, bare_environment, confine
from sharding.policy import Limits
from sharding.recording import InputError, Reason, Rejected

DESCRIPTOR = Path("/proc/self/fd/100")  # where a child finds the descriptor that is handed to it
_CALLS_PER_CHILD = 32
_NUM_TRIES = 2
_MAX_OPEN_FILES = 256
_START_SECONDS = 120  # of a child, with the server's imports on a cold disk
_STALL_SECONDS = 60  # in the middle of an answer
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_PRELOADED = "sharding.isolate"
_PLAIN = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
}
_starting = threading.Lock()  # of threads that start children: one main module is hidden at a time


class Fault(Exception):  # noqa: N818 - what happened to a child, not an error of ours
    """A child that died, hung or met a fault of our code.

    Args:
        reason: `crashed` or `timeout`.
        place: exception and line of our own code when it failed, never a text from the file.

    """

    def __init__(self, reason: Reason, place: str = "") -> None:
        super().__init__(f"{reason}: {place}" if place else str(reason))
        self.reason, self.place = reason, place


@dataclass(frozen=True)
class Access:
    """What a child may reach beside the interpreter and its packages.

    Attributes:
        readable: files, and folders with all below.
        writable: folders.

    """

    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()


class Children:
    """One child at a time.

    Args:
        limits: from one value to the next.
        access: to files.
        answers: classes that the functions return, beside plain values and arrays. A child imports their modules
            before it is confined: the functions must come from these, or from what isolate.py imports.

    """

    def __init__(self, limits: Limits, access: Access, answers: Iterable[type]) -> None:
        self._limits, self._access = limits, access
        self._answers = frozenset({*answers, Reason, Confinement})
        self._context = fork_server()
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the present child."""
        return None if self._child is None else self._child.pid

    def attempt(self, function: Callable[..., Any], *args: object, descriptor: int | None = None) -> object:
        """Call a function in a child; once more in a fresh one when that fails, as an earlier file may be why.

        Args:
            function: can be imported by its name.
            args: of it.
            descriptor: of a file that the function finds at `DESCRIPTOR`.

        Raises:
            Fault: the child failed twice, or the function raised what it should not.
            Rejected: by the function; so are OSError and InputError.

        """
        for last in (False,) * (_NUM_TRIES - 1) + (True,):
            try:
                (value,) = self.run(function, *args, descriptor=descriptor)
            except Fault as fault:
                if last or fault.place:
                    raise
            else:
                return value
        raise AssertionError

    def run(self, function: Callable[..., Any], *args: object, descriptor: int | None = None) -> Iterator[Any]:
        """Values of a generator function, or the one of another; the function goes on when the next one is asked for.

        Raises:
            Fault: the child failed.
            Rejected: by the function; so are OSError and InputError.

        """
        child = self._send((function, args, descriptor is not None))
        try:
            if descriptor is not None:
                child.hand_over(descriptor)
            yield from child.values()
        finally:
            if child.is_busy:
                self.replace()

    def replace(self) -> None:
        """End the present child."""
        if self._child is not None:
            self._child.kill()
        self._child = None

    def confinement(self) -> Confinement:
        """What the kernel takes from a child, as it says itself.

        Raises:
            Fault: no child starts.

        """
        return self._ready().confinement

    def _send(self, call: tuple[Callable[..., Any], tuple[object, ...], bool]) -> "_Child":
        child = self._ready()
        while True:
            try:
                child.send(call)
            except (BrokenPipeError, ConnectionResetError):
                self.replace()
                if child.num_calls == 1:  # it had no time to be idle
                    raise Fault(Reason.CRASHED) from None
                child = self._ready()
            else:
                return child

    def _ready(self) -> "_Child":
        """A child that waits for work: one that died while it was idle costs nothing."""
        if self._child is not None and (self._child.num_calls >= _CALLS_PER_CHILD or not self._child.is_idle()):
            self.replace()
        if self._child is None:
            self._child = _Child(self._context, self._limits, self._access, self._answers)
        return self._child


def fork_server() -> multiprocessing.context.ForkServerContext:
    """The warm server: it has imported everything, and knows nothing of this process's environment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_PRELOADED])
    with without_main(), bare_environment():
        forkserver.ensure_running()
    return context


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


class _Child:
    """A process and the pipe to it, from the parent's side."""

    def __init__(
        self,
        context: multiprocessing.context.ForkServerContext,
        limits: Limits,
        access: Access,
        answers: frozenset[type],
    ) -> None:
        self.num_calls, self.is_busy = 0, False
        self._limits, self._answers = limits, answers
        self.connection, theirs = context.Pipe()
        _end_stalls(self.connection)
        self._process = context.Process(target=_serve, args=(theirs, limits, access, answers), daemon=True)
        with without_main():
            self._process.start()
        self.pid = self._process.pid
        theirs.close()
        try:
            self.confinement: Confinement = self._hear(_START_SECONDS)[1]
        except Fault:
            self.kill()
            raise

    def is_idle(self) -> bool:
        """Whether it waits for work: a dead one has closed its end, and a good one says nothing unasked."""
        return not self.connection.poll(0)

    def send(self, call: tuple[Callable[..., Any], tuple[object, ...], bool]) -> None:
        """Begin a call."""
        self.num_calls, self.is_busy = self.num_calls + 1, True
        self.connection.send(call)

    def hand_over(self, descriptor: int) -> None:
        """Give it an open file."""
        try:
            reduction.send_handle(self.connection, descriptor, self.pid)
        except OSError:
            raise Fault(Reason.CRASHED) from None

    def values(self) -> Iterator[Any]:
        """What the call returns; see Children.run."""
        while True:
            kind, value = self._hear(self._limits.seconds)
            if kind == "value":
                yield value
                self._go_on()
                continue
            self.is_busy = False
            if kind == "done":
                return
            raise _as_error(kind, value)

    def kill(self) -> None:
        """End it and wait for its end."""
        self._process.kill()
        self._process.join()
        self.connection.close()

    def _go_on(self) -> None:
        try:
            self.connection.send_bytes(b"")
        except OSError:
            raise Fault(Reason.CRASHED) from None

    def _hear(self, seconds: float) -> tuple[str, Any]:
        try:
            if not self.connection.poll(seconds):
                raise Fault(Reason.TIMEOUT)
            data = self.connection.recv_bytes(self._limits.memory)
        except BlockingIOError:
            raise Fault(Reason.TIMEOUT) from None
        except (EOFError, OSError):
            raise Fault(Reason.CRASHED) from None
        return _loads(data, self._answers)


def _end_stalls(connection: Connection) -> None:
    """Let no half of an answer block the parent for ever."""
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _STALL_SECONDS, 0))


def _as_error(kind: str, value: object) -> Exception:
    if kind == "rejected" and isinstance(value, Reason):
        return Rejected(value)
    if kind == "system" and isinstance(value, int):
        return OSError(value, os.strerror(value))  # without its path: paths hold names
    if kind == "input":
        return InputError(str(value))
    return Fault(Reason.CRASHED, str(value))


class _Answers(pickle.Unpickler):
    """Builds plain values and what is on its list: a decoder that was taken over cannot name functions to call."""

    def __init__(self, data: bytes, classes: frozenset[type]) -> None:
        super().__init__(io.BytesIO(data))
        self._classes = {(one.__module__, one.__qualname__): one for one in classes}

    def find_class(self, module: str, name: str) -> object:
        """The class that a name stands for."""
        if (module, name) in _PLAIN:
            return super().find_class(module, name)
        if (module, name) not in self._classes:
            raise pickle.UnpicklingError
        return self._classes[module, name]


def _loads(data: bytes, classes: frozenset[type]) -> tuple[str, Any]:
    try:
        kind, value = _Answers(data, classes).load()
    except Exception:  # hostile bytes raise anything
        raise Fault(Reason.CRASHED) from None
    return str(kind), value


def _serve(connection: Connection, limits: Limits, access: Access, _answers: frozenset[type]) -> None:
    """Life of a child: answer calls until the pipe closes. The modules of the answers are imported by now."""
    _close_others(connection.fileno())
    _limit(limits)
    _tell(connection, "value", confine(access.readable, access.writable))
    while True:
        try:
            function, args, has_descriptor = connection.recv()
            if has_descriptor:
                _take_over(connection)
        except EOFError:
            return
        ending = _answer(connection, function, args, limits.seconds)
        if has_descriptor:
            os.close(int(DESCRIPTOR.name))
        _tell(connection, *ending)


def _answer(
    connection: Connection, function: Callable[..., Any], args: tuple[object, ...], seconds: float
) -> tuple[str, Any]:
    """Send all values of a call; returns how it ended."""
    try:
        _allow_seconds(seconds)
        for value in _values(function, args):
            _tell(connection, "value", value)
            connection.recv_bytes()
            _allow_seconds(seconds)
    except Rejected as refusal:
        return "rejected", refusal.reason
    except MemoryError:
        return "rejected", Reason.OUT_OF_MEMORY
    except InputError as error:
        return "input", str(error)
    except OSError as error:
        return "system", error.errno or 0
    except Exception as error:  # a fault of ours; the text would echo values, the place does not
        last = traceback.extract_tb(error.__traceback__)[-1]
        return "fault", f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
    return "done", None


def _values(function: Callable[..., Any], args: tuple[object, ...]) -> Iterator[Any]:
    if inspect.isgeneratorfunction(function):
        yield from function(*args)
    else:
        yield function(*args)


def _tell(connection: Connection, kind: str, value: object) -> None:
    connection.send_bytes(pickle.dumps((kind, value), protocol=5))


def _take_over(connection: Connection) -> None:
    """Put the file that comes where `DESCRIPTOR` says."""
    descriptor = reduction.recv_handle(connection)
    os.dup2(descriptor, int(DESCRIPTOR.name))
    os.close(descriptor)


def _close_others(descriptor: int) -> None:
    """Close what the fork server left open, pipes to other processes among it."""
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, os.sysconf("SC_OPEN_MAX"))


def _limit(limits: Limits) -> None:
    cv2.setNumThreads(1)  # the job is parallel over units
    _keep_memory()
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)  # decoders print what they find in a file
    os.dup2(silent, 2)
    os.close(silent)
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
    """Processor time until the next value: ends an endless loop even when the parent is gone."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = int(used.ru_utime + used.ru_stime + 2 * seconds) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, hard))

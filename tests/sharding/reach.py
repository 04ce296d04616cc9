"""Calls that a decoder never makes, for a child that is confined: what each of them is answered."""

import ctypes
import errno
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from sharding.child import DESCRIPTOR
from sharding.recording import InputError, Reason, Rejected

SECRET = "AWS_SECRET_ACCESS_KEY"


class Outside:
    """What an answer may not be: it names a function to call in the parent."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("made-by-a-child",)


class Known:
    """Its module is this one: a child imports it before it is confined, and can call what is here."""


def error_of(action: Callable[[], object]) -> str:
    """Name of the error that the system answers with; empty where it allows the action."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def read(path: Path) -> str:
    return error_of(path.read_bytes)


def write(path: Path) -> str:
    return error_of(lambda: path.write_bytes(b"x"))


def names(folder: Path) -> str:
    return error_of(lambda: list(folder.iterdir()))


def connect(family: int, address: tuple[str, int] | str) -> str:
    return error_of(lambda: socket.socket(family).connect(address))


def start_program() -> str:
    return error_of(lambda: subprocess.run(["/bin/true"], check=True))


def signal_parent() -> str:
    return error_of(lambda: os.kill(os.getppid(), 0))


def environment() -> tuple[list[str], bool, bool]:
    """Names for Python; whether C has the secret; whether the block has it with which the process began."""
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    begin, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[47:49])
    return (
        sorted(os.environ),
        getenv(SECRET.encode()) is not None,
        SECRET.encode() in ctypes.string_at(begin, end - begin),
    )


def privileges() -> list[str]:
    """Lines of the kernel about this process."""
    return [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(("Cap", "NoNew"))]


def read_descriptor() -> bytes:
    return DESCRIPTOR.read_bytes()


def harmful() -> Outside:
    return Outside()


def refused() -> None:
    raise Rejected(Reason.EMPTY)


def misused() -> None:
    raise InputError("no such thing")


def broken() -> None:
    raise KeyError("Name^Of^A^Patient")

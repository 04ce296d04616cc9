"""Names of files are bytes. Python keeps those that are no UTF-8 as lone surrogates, which not every tool takes."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def name_bytes(name: str) -> bytes:
    """The bytes of a name, also of one that is no UTF-8; any other text as UTF-8."""
    return name.encode(errors="surrogateescape")


def is_text(name: str) -> bool:
    """Whether a name is UTF-8, so that every library takes it."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def printable(name: str) -> str:
    r"""The name as text that can be written anywhere: a byte that is no UTF-8 reads `\udcfc`."""
    return name.encode(errors="backslashreplace").decode()


def print_any_name() -> None:
    r"""Print names as they are where the terminal can show them, and never raise: what it cannot reads `\udcfc`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def path_for_decoders(path: Path) -> Iterator[Path]:
    """The path, or one that leads to the same file and is text: OpenCV aborts on a name that is no UTF-8.

    Raises:
        OSError: the file cannot be opened.

    """
    if is_text(str(path)):
        yield path
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)

"""Words of a command line to values: numbers have bounds, and `~` is the home directory, as in a config."""

import math
from argparse import ArgumentTypeError
from pathlib import Path

from train.places import written_out


def count(word: str) -> int:
    """A whole number, at least 1."""
    return int(_at_least(int(word), 1))


def count_from_0(word: str) -> int:
    """A whole number, at least 0."""
    return int(_at_least(int(word), 0))


def positive(word: str) -> float:
    """A finite number above 0."""
    number = float(word)
    if not (math.isfinite(number) and number > 0):
        raise ArgumentTypeError(f"must be a number above 0, not {word}")
    return number


def positive_or_0(word: str) -> float:
    """A finite number, at least 0."""
    number = float(word)
    if not math.isfinite(number):
        raise ArgumentTypeError(f"must be a finite number, not {word}")
    return _at_least(number, 0)


def local_path(word: str) -> Path:
    """A path; a shell leaves the `~` of `--out=~/here` as it is."""
    return Path(place(word))


def place(word: str) -> str:
    """A path or a URL, likewise."""
    try:
        return str(written_out(word)) if word.startswith("~") else word
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _at_least(number: float, least: int) -> float:
    if number < least:
        raise ArgumentTypeError(f"must be at least {least}, not {number}")
    return number

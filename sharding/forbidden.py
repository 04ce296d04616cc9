"""Names and numbers that must not occur in shards: what a list of them means, and where one occurs.

A line is looked for in any byte, in any letter case, in composed and decomposed letters, as UTF-8, as Latin-1 and as
JSON escapes them. A line of several cells, or a name as DICOM writes it (`Mueller^Anna`), is looked for by its parts:
those of 6 letters or more in any byte, of 4 or 5 as whole words of text, since so few letters meet by chance in every
few MB of compressed pixels and in pseudonyms. Shorter parts are not looked for, and counted.
"""

import csv
import io
import json
import re
import tarfile
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sharding.recording import InputError
from sharding.tables import decode_text, trim

_MIN_PART, _MIN_ANYWHERE = 4, 6  # letters of a part: to be looked for at all, and in any byte
_PREFIX = 3  # bytes by which candidates are found
_LAST_CASED = 0x1F000  # no letter from there on has another case
_CHUNK = 1 << 18  # bytes that are searched at a time: what lies in a cache is searched faster
_SEPARATORS = re.compile(r"[,;\t|]")
_PICTURES = (".jpg", ".jpeg", ".png", ".zst", ".webp", ".tif", ".tiff", ".bmp", ".gif")
_APOSTROPHES = ("\u2019", "&#x27;", "&#39;")  # for the one of ASCII


class Hit(NamedTuple):
    """The first place where a forbidden string occurs: first byte, number of bytes, line of the list."""

    start: int
    num_bytes: int
    line: int


@dataclass(frozen=True)
class Forbidden:
    """What must not occur.

    Attributes:
        place: the list.
        anywhere: line of the list by string, folded; looked for in any byte.
        words: line of the list by short part, folded; looked for as a whole word of text.
        remarks: sentences about lines that are not looked for as they are.

    """

    place: Path
    anywhere: dict[str, int]
    words: dict[str, int]
    remarks: tuple[str, ...] = ()
    _search: "_Search" = field(init=False, repr=False)
    _search_words: "_Search" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_search", _Search(self.anywhere))
        object.__setattr__(self, "_search_words", _Search(self.words, whole=True))

    def __len__(self) -> int:
        return len(self.anywhere) + len(self.words)

    def find(self, name: str, data: bytes) -> Hit | None:
        """First forbidden string in a file; None where there is none.

        Args:
            name: of the file; of a tar, the pictures in it are not searched for short words.
            data: content.

        """
        hit = self._search.find(data)
        if hit is not None or not self.words:
            return hit
        texts = _texts_of_tar(data) if name.endswith(".tar") else iter([(0, data)])
        hits = ((start, self._search_words.find(text)) for start, text in texts)
        return next((one._replace(start=start + one.start) for start, one in hits if one), None)


def load_forbidden(path: Path) -> Forbidden:
    """Read a list of names and numbers, one per line.

    Raises:
        InputError: no such file, nothing in it to look for, or text in another encoding than UTF-8 or UTF-16.

    """
    if not path.is_file():
        raise InputError(f"forbid {path}: no such file; give one name or number per line")
    lines = decode_text(path.read_bytes(), f"forbid {path}").splitlines()
    read = [(number, *_parts_of(line)) for number, line in enumerate(lines, 1) if trim(line)]
    anywhere: dict[str, int] = {}
    words: dict[str, int] = {}
    for number, whole, parts in read:
        for one in filter(None, map(_folded, [whole, *parts])):
            if one == _folded(whole) or len(one) >= _MIN_ANYWHERE:
                anywhere.setdefault(one, number)
            elif len(one) >= _MIN_PART:
                words.setdefault(one, number)
    if not anywhere and not words:
        what = "no line in it" if not read else f"no line of it has a part of {_MIN_PART} letters or more"
        raise InputError(f"forbid {path}: {what}; give one name or number per line")
    return Forbidden(path, anywhere, words, tuple(_remarks(path, read)))


def _parts_of(line: str) -> tuple[str, list[str]]:
    """The string that a line is, empty when it is a row of several; and the parts that it is looked for by."""
    if _SEPARATORS.search(line) or trim(line).startswith('"'):
        separator = max(",;\t|", key=line.count)
        reader = csv.reader(io.StringIO(line), delimiter=separator, skipinitialspace=True)
        cells = [cell for cell in map(trim, next(reader, [])) if cell]
        whole, parts = (cells[0], []) if len(cells) == 1 else ("", cells)
    else:
        whole, parts = trim(line), []
    names = [one for one in (whole, *parts) if re.search(r"[\^=]", one)]
    return whole, [*parts, *(part for name in names for part in re.split(r"[\^=\s]+", name) if part)]


def _folded(text: str) -> str:
    """One spelling of all letter cases, blanks and ways to compose letters."""
    return unicodedata.normalize("NFC", " ".join(trim(text).casefold().split()))


def _remarks(path: Path, read: list[tuple[int, str, list[str]]]) -> Iterator[str]:
    rows = [number for number, whole, _ in read if not whole]
    if rows:
        yield (
            f"forbid {path}: {len(rows)} lines hold several cells, the first is line {rows[0]}; each cell is looked "
            f"for on its own; give one name or number per line to look for it as it is"
        )
    names = [number for number, whole, parts in read if whole and parts]
    if names:
        yield f"forbid {path}: {len(names)} names with ^ are looked for as they are, and by their parts"
    short = {_folded(part) for _, _, parts in read for part in parts if len(_folded(part)) < _MIN_PART}
    if short - {""}:
        yield f"forbid {path}: {len(short - {''})} parts of fewer than {_MIN_PART} letters are not looked for"
    few = {whole for _, whole, _ in read if 0 < len(_folded(whole)) < _MIN_PART}
    if few:
        yield (
            f"forbid {path}: {len(few)} lines of fewer than {_MIN_PART} letters will be found in any large shard, "
            "because so few letters meet in compressed pixels by chance"
        )


class _Search:
    """Finds many strings in bytes: candidates by their first three bytes in a table, then the whole of each.

    Args:
        strings: folded, with the line of each.
        whole: no letter or digit may come before or after.

    """

    def __init__(self, strings: dict[str, int], whole: bool = False) -> None:
        self._table = np.zeros(256**_PREFIX, bool)
        self._by_prefix: dict[bytes, list[str]] = defaultdict(list)
        self._lines, self._whole, self._margin = strings, whole, 1
        self._patterns: dict[str, re.Pattern[bytes]] = {}  # of strings whose first bytes have occurred
        for string in strings:
            spellings = _spellings(string)
            self._margin = max(self._margin, sum(len(some[0]) for some in spellings) + 1)
            for prefix in _prefixes(spellings):
                self._by_prefix[prefix].append(string)
        for prefix in self._by_prefix:
            first = int.from_bytes(prefix) << 8 * (_PREFIX - len(prefix))
            self._table[first : first + 256 ** (_PREFIX - len(prefix))] = True
        self._pairs: np.ndarray = self._table.reshape(-1, 256).max(axis=1)

    def find(self, data: bytes) -> Hit | None:
        """The first of the strings in bytes."""
        for start in range(0, len(data), _CHUNK):
            begin = max(0, start - 1)  # a letter before
            chunk = data[begin : start + _CHUNK + self._margin].lower()  # ASCII alone: it leaves all other bytes
            for at in self._candidates(chunk):
                if hit := self._match(chunk, at):
                    return hit._replace(start=begin + hit.start)
        return None

    def _candidates(self, chunk: bytes) -> list[int]:
        padded = np.frombuffer(chunk + bytes(_PREFIX - 1), np.uint8)
        pairs = padded[:-2].astype(np.uint16) << 8
        pairs |= padded[1:-1]
        rows = np.flatnonzero(self._pairs[pairs])  # few are left for the table that no cache holds
        codes = pairs[rows].astype(np.int32) << 8 | padded[rows + 2]
        found: list[int] = rows[self._table[codes]].tolist()
        return found

    def _match(self, chunk: bytes, at: int) -> Hit | None:
        for length in range(1, _PREFIX + 1):
            for string in self._by_prefix.get(chunk[at : at + length], ()):
                if found := self._pattern(string).match(chunk, at):
                    return Hit(at, found.end() - at, self._lines[string])
        return None

    def _pattern(self, string: str) -> re.Pattern[bytes]:
        if string not in self._patterns:
            body = b"".join(b"(?:" + b"|".join(map(re.escape, some)) + b")" for some in _spellings(string))
            before, after = (rb"(?<![a-z0-9])", rb"(?![a-z0-9])") if self._whole else (b"", b"")
            self._patterns[string] = re.compile(before + body + after)
        return self._patterns[string]


def _spellings(string: str) -> list[list[bytes]]:
    """For each letter of a folded string, the bytes that may stand for it where ASCII is in lower case."""
    return [_bytes_of(letters) for letters in _pieces().findall(string)]


@lru_cache
def _pieces() -> re.Pattern[str]:
    """Splits a folded string into letters, and into those that one letter folds to, such as ss for ß."""
    several = sorted((key for key in _unfolded() if len(key) > 1), key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, several), "."]), re.DOTALL)


@lru_cache
def _unfolded() -> dict[str, list[str]]:
    """Letters that fold to a string, other than itself."""
    found: dict[str, list[str]] = defaultdict(list)
    for letter in map(chr, range(_LAST_CASED)):
        if (folded := unicodedata.normalize("NFC", letter.casefold())) != letter:
            found[folded].append(letter)
    found["'"] += _APOSTROPHES
    return found


@lru_cache(maxsize=4096)
def _bytes_of(letters: str) -> list[bytes]:
    """Longest first."""
    forms = {form for one in (letters, *_unfolded().get(letters, ())) for form in (one, one.upper(), one.title())}
    forms |= {unicodedata.normalize(how, form) for form in forms for how in ("NFC", "NFD")}
    found = {form.encode().lower() for form in forms}
    for form in forms:
        if not form.isascii():
            found.add(json.dumps(form)[1:-1].lower().encode())
            found |= {form.encode("latin-1").lower()} if max(form) <= "\xff" else set()
    if len(letters) > 1:
        found |= {b"".join(some) for some in product(*map(_bytes_of, letters))}
    return sorted(found, key=len, reverse=True)


def _prefixes(spellings: list[list[bytes]]) -> set[bytes]:
    """The first three bytes of every spelling, fewer of a string that has fewer."""
    found = {b""}
    for some in spellings:
        if all(len(one) >= _PREFIX for one in found):
            break
        found = {(begin + one)[:_PREFIX] for begin, one in product(found, some)}
    return found


def _texts_of_tar(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Start and bytes of what is text in a tar: names of members, and the members that are no pictures."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                yield member.offset, data[member.offset : member.offset_data]
                if not member.name.lower().endswith(_PICTURES):
                    yield member.offset_data, data[member.offset_data : member.offset_data + member.size]
    except tarfile.TarError:
        yield 0, data

"""Tables and lists that people make, as Excel, Notepad, pandas and shells leave them: one text for all their spellings.

A table of labels has a row per source: path, label, group (the patient), and more columns where it has them.
"""

import codecs
import csv
import io
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from sharding.names import is_text, printable
from sharding.recording import InputError

COLUMNS = ("path", "label", "group")  # needed; `split` and `value` are read where they are
_MORE = ("split", "value")
_MARKS = (  # UTF-32's begins like UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SEPARATORS = (",", ";", "\t")
_EXCEL_SEPARATOR = re.compile(r"\s*sep=(.)\s*?(?:\r\n|\r|\n)")  # a first line that only Excel understands
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u200e\u200f\u2060"
_BLANKS = _INVISIBLE + "".join(letter for letter in map(chr, range(0x3001)) if letter.isspace())
_NAN = "nan"  # as pandas writes an empty cell of text
_CLASS = re.compile(r"[A-Za-z0-9 ._+-]{1,64}")  # no sentence
_NUMBER = re.compile(r"(\d+)\.0+")


def trim(cell: str) -> str:
    """The cell without blanks around it, whichever there are in Unicode, and in composed letters (NFC)."""
    return unicodedata.normalize("NFC", cell.strip(_BLANKS))


def normal_name(name: str, root: str = "") -> str:
    r"""One spelling of a path below `root`: `.\a\x.png`, `a//x.png`, `b/../a/x.png` and `root/a/x.png` are `a/x.png`.

    Two names are the same source when their normal names are equal. What does not lie below the root stays absolute,
    or begins with `..`.
    """
    plain = _normal(name)
    return plain.removeprefix(f"{_normal(root)}/") if root else plain


def _normal(name: str) -> str:
    plain = trim(name).replace("\\", "/")
    scheme, colon, rest = plain.rpartition("://")  # a URL keeps its two slashes
    return scheme + colon + posixpath.normpath(rest).removeprefix("/" if rest.startswith("//") else "")


def decode_text(data: bytes, place: str) -> str:
    """Text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark, without that mark.

    Args:
        data: content of the file.
        place: names the file in errors.

    Raises:
        InputError: another encoding; says which it seems to be, and how to save the file.

    """
    text = _decode(data, place)
    if not is_text(text):
        raise InputError(_not_utf8(data, place))
    return text


def _decode(data: bytes, place: str) -> str:
    """As decode_text, but bytes that are no UTF-8 stay as names of files have them."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return data.removeprefix(mark).decode(encoding)
            except UnicodeDecodeError as error:
                raise InputError(f"{place}: its byte order mark is that of {encoding}, but {error.reason}") from error
    if b"\0" in data:
        raise InputError(
            f"{place}: holds zero bytes, as UTF-16 without a byte order mark does; "
            "save the file as UTF-8 (in Excel: CSV UTF-8)"
        )
    return data.decode(errors="surrogateescape")


def _not_utf8(data: bytes, place: str) -> str:
    number, line = next((at, one) for at, one in enumerate(data.splitlines(), 1) if not _is_utf8(one))
    shown = line.decode("cp1252", errors="replace")
    word = next((word for word in shown.split() if not word.isascii()), shown)[:40]
    return (
        f"{place}: line {number} is not UTF-8; it seems to be Windows-1252, in which it has {word!r}; "
        "save the file as UTF-8 (in Excel: CSV UTF-8)"
    )


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        number: line of the file, from 1.
        name: normal name of its path.
        cells: by column, trimmed; empty where there is none.

    """

    number: int
    name: str
    cells: dict[str, str]


@dataclass
class Table:
    """A table of labels, each path once.

    Attributes:
        place: file.
        rows: by normal name, in the order of the file.
        counts: rows that were `repeated` or `short`, or had a cell `nan`.

    """

    place: Path
    rows: dict[str, Row] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def below(self, folder: str) -> "Table":
        """The rows of what lies below a folder, given by its normal name: all of them below `.`."""
        rows = {name: row for name, row in self.rows.items() if folder == "." or name.startswith(f"{folder}/")}
        return replace(self, rows=rows)

    def lines(self) -> list[str]:
        """What is said before any work: classes with their counts, and what is odd about the rows."""
        return lines_about(str(self.place), [row.cells["label"] or None for row in self.rows.values()], self.counts)


def read_table(place: Path, root: str) -> Table:
    """Read a table of labels.

    Args:
        place: file; comma, semicolon or tab between cells, a row with the names of the columns first.
        root: folder or URL that its paths are relative to; absolute paths below it will do, too.

    Raises:
        InputError: names the file, the row and what would be right.

    """
    if not place.is_file():
        raise InputError(f"labels {place}: no such file; columns: {', '.join(COLUMNS)}")
    data = place.read_bytes()
    text = _decode(data, f"labels {place}")
    header, rows = _split(text, f"labels {place}")
    table = Table(place)
    for number, cells in rows:
        if not is_text("".join(cell for name, cell in zip(header, cells, strict=False) if name != "path")):
            raise InputError(_not_utf8(data, f"labels {place}"))
        _add(table, _row(number, header, cells, table, root))
    if not table.rows:
        raise InputError(f"labels {place}: no row in it; one per source is needed: {', '.join(COLUMNS)}")
    return table


def _split(text: str, place: str) -> tuple[list[str], Iterable[tuple[int, list[str]]]]:
    """Names of the columns in lower case, and (line, trimmed cells) of every other row."""
    excel = _EXCEL_SEPARATOR.match(text)
    text, first = (text[excel.end() :], 2) if excel else (text, 1)
    separators = (excel[1],) if excel else _SEPARATORS
    headers = {separator: _header(text, separator, place) for separator in separators}
    separator = max(separators, key=lambda one: len({*COLUMNS} & {*headers[one]}) * 100 + len(headers[one]))
    header = headers[separator]
    if missing := [name for name in COLUMNS if name not in header]:
        raise InputError(f"{place}: no column {missing[0]}; columns: {', '.join(COLUMNS)}")
    if double := [name for name in (*COLUMNS, *_MORE) if header.count(name) > 1]:
        raise InputError(f"{place}: column {double[0]} is there twice; each column once is needed")
    return header, list(_rows(text, separator, place, first))[1:]


def _header(text: str, separator: str, place: str) -> list[str]:
    """Names of the columns, none where the first row cannot be split by this separator."""
    try:
        return [cell.casefold() for cell in next((cells for _, cells in _rows(text, separator, place, 1)), [])]
    except InputError:
        return []


def _rows(text: str, separator: str, place: str, first: int) -> Iterable[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    number = first
    try:
        for cells in reader:
            trimmed = list(map(trim, cells))
            if any(trimmed):
                yield number, trimmed
            number = first + reader.line_num
    except csv.Error as error:
        raise InputError(
            f"{place}: line {number}: {error}; close every quotation mark, and double those in a cell"
        ) from error


def _row(number: int, header: list[str], cells: list[str], table: Table, root: str) -> Row:
    place = f"labels {table.place}: line {number}"
    if any(cells[len(header) :]):
        raise InputError(
            f'{place} has {len(cells)} cells, the first line {len(header)}; put " around what has a comma in it'
        )
    table.counts["short"] += len(cells) < len(header)
    known = dict(zip(header, cells, strict=False))
    found = {name: known.get(name, "") for name in (*COLUMNS, *_MORE)}
    empty = [name for name, cell in found.items() if name != "path" and cell.casefold() == _NAN]
    table.counts["nan"] += bool(empty)
    found |= dict.fromkeys(empty, "")
    if not found["path"]:
        raise InputError(f"{place} has no path; it has {', '.join(cell for cell in cells if cell)!r}")
    found["label"] = class_name(found["label"], place) or ""
    return Row(number, _below(found["path"], root), found)


def _below(path: str, root: str) -> str:
    """Normal name of a path; of an absolute one that reaches the root through another link, too."""
    name = normal_name(path, root)
    if not name.startswith("/"):
        return name
    folder, _, file = name.rpartition("/")
    return normal_name(f"{os.path.realpath(folder)}/{file}", os.path.realpath(root))


def class_name(label: str, place: str) -> str | None:
    """The class that a label names, None where it names none.

    Args:
        label: trimmed.
        place: names the row or the list in errors.

    Raises:
        InputError: it is a sentence: labels go into the shards, and free text would take names of patients there.

    """
    if not label or label.casefold() == _NAN:
        return None
    if not _CLASS.fullmatch(label):
        raise InputError(f"{place}: label {printable(label)!r} is not a class name of up to 64 [A-Za-z0-9 ._+-]")
    return label


def _add(table: Table, row: Row) -> None:
    known = table.rows.setdefault(row.name, row)
    if known is row:
        return
    for name in (*COLUMNS[1:], *_MORE):
        if known.cells[name] != row.cells[name]:
            raise InputError(
                f"labels {table.place}: lines {known.number} and {row.number} both name {row.name}, with {name} "
                f"{known.cells[name]!r} and {row.cells[name]!r}; leave one of them"
            )
    table.counts["repeated"] += 1


class Match(NamedTuple):
    """Which row is whose: sources by the name of their row, rows without a source, number of sources without a row."""

    sources: dict[str, str]
    unmatched: list[str]
    num_unlisted: int


def match(place: str, listed: Collection[str], sources: Iterable[str]) -> Match:
    """Find the source of every row.

    Args:
        place: file of the table.
        listed: normal names of its rows.
        sources: names below the root, read once.

    Raises:
        InputError: a row could mean two sources, or the table is in another encoding than UTF-8.

    """
    found: dict[str, str] = {}
    num_unlisted = 0
    for source in sources:
        name = normal_name(source)
        if name not in listed:
            num_unlisted += 1
        elif name in found:
            raise InputError(f"labels {place}: {name} could be {found[name]!r} or {source!r}; rename one of the files")
        else:
            found[name] = source
    unmatched = [name for name in listed if name not in found]
    if any(not is_text(name) for name in unmatched):  # as bytes it would have to be the name of a file
        raise InputError(_not_utf8(Path(place).read_bytes(), f"labels {place}"))
    return Match(found, unmatched, num_unlisted)


def refuse_unmatched(place: str, found: Match, root: str, allow_unmatched: bool) -> list[str]:
    """Sentences about rows without a source and sources without a row.

    Raises:
        InputError: there are such rows, and they are not allowed.

    """
    num_rows = len(found.sources) + len(found.unmatched)
    said = []
    if found.unmatched:
        line = f"labels {place}: {len(found.unmatched)} of {num_rows} rows match no source, the first is "
        line += f"{found.unmatched[0]}; paths are relative to {root}"
        if not allow_unmatched:
            raise InputError(f"{line}; correct them, or give --allow-unmatched")
        said.append(line)
    return said + [f"labels {place}: {found.num_unlisted} sources have no row"] * (found.num_unlisted > 0)


def lines_about(place: str, labels: list[str | None], counts: Counter[str]) -> list[str]:
    """Sentences about the labels of a set, its classes first.

    Args:
        place: names the table or the lists.
        labels: of every source, None where it has none.
        counts: see Table.

    """
    classes = Counter(label for label in labels if label is not None)
    named = ", ".join(f"{name} {count}" for name, count in sorted(classes.items())) or "none"
    found = [f"labels {place}: {len(labels)} listed sources; classes: {named}"]
    said = {
        "nan": "with a cell `nan`, which is read as empty",
        "short": "with fewer cells than the first line; the missing ones are read as empty",
        "repeated": "that say the same again",
    }
    if num_without := labels.count(None):
        found.append(f"labels {place}: {num_without} sources without a label, which is no class of its own")
    found += [f"labels {place}: {counts[key]} rows {words}" for key, words in said.items() if counts[key]]
    return found + [f"labels {place}: {line}" for line in _look_alikes(classes)]


def _look_alikes(classes: Counter[str]) -> list[str]:
    """Classes that differ in letter case, in blanks or in `.0` alone: likely one, but read as they are written."""
    alike: dict[str, list[str]] = {}
    for name in sorted(classes):
        alike.setdefault(_NUMBER.sub(r"\1", " ".join(name.casefold().split())), []).append(name)
    return [
        f"classes {', '.join(some)} differ only in letter case, blanks or `.0`; if they are one class, write them alike"
        for some in alike.values()
        if len(some) > 1
    ]

"""A labels.csv in the ways that spreadsheets and Windows users leave it, each for the same folder of stills.

Public reports: orange3 #7000, Snowfakery PR 516, mailmerge #93 (byte order mark); steinbock #28, Giskard ai-inspector
#15 (semicolon); PFERD PR 141 (decomposed letters of macOS); ultralytics/yolov3 #1026 (paths spelled another way); flair
PR 2068, scikit-activeml #6 (rows without a label).
"""

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from tests.cases.scans import cine

NUM = 24
NAMES = tuple(f"a/im{number:02}.png" for number in range(NUM))
ACCENTED = tuple(f"Müller/im{number:02}.png" for number in range(NUM))
HEADER = ("path", "label", "group")
_CLASSES = ("benign", "malignant")

Rows = list[list[str]]


def write_pictures(folder: Path, names: Sequence[str] = NAMES) -> None:
    """Write a still per name; those of odd number show a bright disc."""
    rng = np.random.default_rng(1)
    for number, name in enumerate(names):
        frame = cine(1, 96, 128, seed=number)[0]
        if number % 2:
            cv2.circle(frame, (64, 50), 12, 230, -1)
        noisy = np.clip(frame + rng.normal(0, 3, frame.shape), 0, 255).astype(np.uint8)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", noisy)[1].tobytes())


def rows(names: Sequence[str] = NAMES) -> Rows:
    """Path, label and group of every picture, two pictures a group."""
    return [[name, _CLASSES[number % 2], f"p{number // 2}"] for number, name in enumerate(names)]


def text(table: Rows, header: Sequence[str] = HEADER, separator: str = ",", end: str = "\r\n") -> str:
    """The table as a spreadsheet writes it."""

    def cell(value: str) -> str:
        return f'"{value}"' if separator in value else value

    return "".join(separator.join(map(cell, row)) + end for row in [list(header), *table])


def _paths(change: Callable[[str], str], names: Sequence[str] = NAMES) -> bytes:
    return text([[change(path), label, group] for path, label, group in rows(names)]).encode()


def _labels(change: Callable[[int, str], str]) -> bytes:
    return text([[path, change(number, label), group] for number, (path, label, group) in enumerate(rows())]).encode()


def variants(folder: Path) -> dict[str, tuple[tuple[str, ...], bytes]]:
    """Names of the pictures and content of labels.csv, by kind of table. `folder` is where the pictures will lie."""
    plain = rows()
    return {
        "plain": (NAMES, text(plain).encode()),
        "bom": (NAMES, text(plain).encode("utf-8-sig")),
        "semicolon": (NAMES, text(plain, separator=";").encode()),
        "semicolon_bom": (NAMES, text(plain, separator=";").encode("utf-8-sig")),
        "excel_separator": (NAMES, ("sep=;\r\n" + text(plain, separator=";")).encode()),
        "utf16_tab": (NAMES, text(plain, separator="\t").encode("utf-16")),
        "cp1252": (NAMES, text([[path, label, f"Müller{group}"] for path, label, group in plain]).encode("cp1252")),
        "backslash": (NAMES, _paths(lambda path: path.replace("/", "\\"))),
        "dotslash": (NAMES, _paths(lambda path: f"./{path}")),
        "nfd": (ACCENTED, _paths(lambda path: unicodedata.normalize("NFD", path), ACCENTED)),
        "case": (NAMES, _paths(lambda path: path.replace(".png", ".PNG"))),
        "conflict": (NAMES, text([*plain, [NAMES[0], "malignant", "p0"]]).encode()),
        "duplicate": (NAMES, text([*plain, *plain]).encode()),
        "missing_label": (NAMES, _labels(lambda number, label: label if number % 6 else "")),
        "nan_label": (NAMES, _labels(lambda number, label: label if number % 6 else "NaN")),
        "space_label": (NAMES, _labels(lambda number, label: label + " " * (number % 4 == 0))),
        "float_label": (NAMES, _labels(lambda number, _: str(number % 2) + ".0" * (number > 11))),
        "blank_rows": (NAMES, text([*plain, ["", "", ""], ["", "", ""]]).encode()),
        "short_row": (NAMES, text([*plain[:-1], [NAMES[-1]]]).encode()),
        "capital_header": (NAMES, text(plain, header=("Path", "Label", "Group")).encode()),
        "space_header": (NAMES, text(plain, header=("path", " label", " group\u00a0")).encode()),
        "comma_label": (NAMES, _labels(lambda _, label: f"{label}, simple")),
        "subset": (NAMES, text(plain[:12]).encode()),
        "absolute": (NAMES, _paths(lambda path: str((folder / path).resolve()))),
        "double_slash": (NAMES, _paths(lambda path: path.replace("/", "//"))),
        "updown": (NAMES, _paths(lambda path: f"a/../{path}")),
        "wrong_root": (NAMES, _paths(lambda path: f"images/{path}")),
    }

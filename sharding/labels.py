"""Labels and groups that come with a source: a labels.csv, or UltraBench's lists."""

import csv
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sharding.recording import InputError
from sharding.store import Store

_COLUMNS = ("path", "label", "group")
_LABEL = re.compile(r"[A-Za-z0-9 ._+-]{1,64}")  # a class name, no sentence
_LISTS = ("train.json", "validation.json", "test.json", "train_val.json")  # UltraBench v1.0.x and HEAD


@dataclass(frozen=True)
class Label:
    """What is known about one source beforehand.

    Attributes:
        label: class, None when unlabelled.
        group: patient, None to take the source's own.
        mask: name of an image that is non-zero inside the scan, None when there is none.

    """

    label: str | None = None
    group: str | None = None
    mask: str | None = None


def load_labels(source: Store, table: Path | None) -> dict[str, Label]:
    """Labels by name below the source; empty when it has none.

    Raises:
        InputError: names the file, the row and what would be right.

    """
    if table is not None:
        return _read_table(table)
    return _read_ultrabench(source) if is_ultrabench(source) else {}


def is_ultrabench(source: Store) -> bool:
    """Whether a folder is one data set in UltraBench's layout: images/ and lists of records (v1.0.x and HEAD)."""
    return source.exists("images") and any(source.exists(name) for name in _LISTS)


def listed_names(source: Store) -> set[str] | None:
    """Names of the images that an UltraBench folder lists; None for any other folder."""
    return set(_read_ultrabench(source)) if is_ultrabench(source) else None


@lru_cache(maxsize=4)
def _read_table(table: Path) -> dict[str, Label]:
    if not table.is_file():
        raise InputError(f"labels {table}: no such file; columns: {', '.join(_COLUMNS)}")
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = set(_COLUMNS) - set(reader.fieldnames or ())
        if missing:
            raise InputError(f"labels {table}: no column {sorted(missing)[0]}; columns: {', '.join(_COLUMNS)}")
        rows = list(reader)
    return {row["path"]: Label(_class_name(row["label"], table), row["group"] or None) for row in rows}


def _class_name(label: str, table: Path) -> str | None:
    if label and not _LABEL.fullmatch(label):
        raise InputError(f"labels {table}: label {label!r} is not a class name of up to 64 [A-Za-z0-9 ._+-]")
    return label or None


def _read_ultrabench(source: Store) -> dict[str, Label]:
    labels = {}
    for name in _LISTS:
        for record in json.loads(source.read(name)) if source.exists(name) else []:
            value = record.get("label", record.get("pathology"))
            group = record.get("patient")
            labels[_below(record["image"], "images")] = Label(
                label=None if value is None else _class_name(str(value), Path(source / name)),
                group=None if group is None else str(group),
                mask=_below(record["scan_mask"], "masks/scan") if record.get("scan_mask") else None,
            )
    return labels


def _below(name: str, folder: str) -> str:
    """Lists name files with or without their folder."""
    return name if name.startswith(f"{folder}/") else f"{folder}/{name}"

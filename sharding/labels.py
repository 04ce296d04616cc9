"""Labels and groups that come with a source: a labels.csv, or UltraBench's lists."""

import csv
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from sharding.recording import InputError
from sharding.store import Store

_COLUMNS = ("path", "label", "group")
_LABEL = re.compile(r"[A-Za-z0-9 ._+-]{1,64}")  # a class name, no sentence
Split = Literal["train", "val", "test"]
_LISTS: dict[str, Split] = {  # of UltraBench v1.0.x, and of its later versions, which leave the cut of val to the user
    "train.json": "train",
    "validation.json": "val",
    "test.json": "test",
    "train_val.json": "train",
}
_TARGETS = {"mass_mask": "masks/mass", "tumor_mask_multiclass": "masks/tumor"}


@dataclass(frozen=True)
class Label:
    """What is known about one source beforehand.

    Attributes:
        label: class, None when unlabelled.
        group: patient, None to take the source's own.
        mask: name of an image that is non-zero inside the scan, None when there is none.
        split: of the published list that names it, None when there is none. Pretraining has splits of its own.
        target: name of an image whose grey levels are class ids (lesions), None when there is none.

    """

    label: str | None = None
    group: str | None = None
    mask: str | None = None
    split: Split | None = None
    target: str | None = None


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
    return dict(listed_labels(source))


def listed_labels(source: Store) -> list[tuple[str, Label]]:
    """Images of an UltraBench folder with what its lists say, list by list; one that is listed twice is here twice.

    Raises:
        InputError: a label that is not a class name, or a list that is not one of records with an image.

    """
    return [
        (_below(record["image"], "images"), _label_of(record, split, Path(source / name)))
        for name, split in _LISTS.items()
        for record in _records(source, name)
    ]


def _records(source: Store, name: str) -> list[dict[str, Any]]:
    if not source.exists(name):
        return []
    try:
        found = json.loads(source.read(name))
    except ValueError as error:
        raise InputError(f"{source / name}: not JSON ({error})") from error
    if not isinstance(found, list) or not all(isinstance(one, dict) and "image" in one for one in found):
        raise InputError(f"{source / name}: not a list of records with an image each")
    return found


def _label_of(record: dict[str, Any], split: Split, place: Path) -> Label:
    value = record.get("label", record.get("pathology"))
    group = record.get("patient", record.get("source"))  # where patients are unknown, frames name their video
    targets = [_below(record[name], folder) for name, folder in _TARGETS.items() if record.get(name)]
    return Label(
        label=None if value is None else _class_name(str(value), place),
        group=None if group is None else str(group),
        mask=_below(record["scan_mask"], "masks/scan") if record.get("scan_mask") else None,
        split=split,
        target=targets[0] if targets else None,
    )


def _below(name: str, folder: str) -> str:
    """Lists name files with or without their folder."""
    return name if name.startswith(f"{folder}/") else f"{folder}/{name}"

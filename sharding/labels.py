"""Labels and groups that come with a source: a labels.csv, or UltraBench's lists."""

import json
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from sharding.names import is_text
from sharding.recording import InputError
from sharding.store import Store
from sharding.tables import Table, class_name, lines_about, normal_name, read_table, trim

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
    """Labels by normal name below the source (see tables.normal_name); empty when it has none.

    Raises:
        InputError: names the file, the row and what would be right.

    """
    if table is not None:
        rows = _table(source, table).rows
        return {name: Label(row.cells["label"] or None, row.cells["group"] or None) for name, row in rows.items()}
    return _read_ultrabench(source) if is_ultrabench(source) else {}


def describe_labels(source: Store, table: Path | None) -> list[str]:
    """Sentences about the labels of a source, its classes with their counts first; none when it has no labels."""
    if table is not None:
        return _table(source, table).lines()
    labels = load_labels(source, None)
    return lines_about(source.place, [one.label for one in labels.values()], Counter()) if labels else []


def is_ultrabench(source: Store) -> bool:
    """Whether a folder is one data set in UltraBench's layout: images/ and lists of records (v1.0.x and HEAD)."""
    return source.exists("images") and any(source.exists(name) for name in _LISTS)


def listed_names(source: Store) -> set[str] | None:
    """Normal names of the images that an UltraBench folder lists; None for any other folder."""
    return set(_read_ultrabench(source)) if is_ultrabench(source) else None


def _table(source: Store, table: Path) -> Table:
    written = table.stat() if table.is_file() else None
    return _read_once(table, source.place, None if written is None else (written.st_mtime_ns, written.st_size))


@lru_cache(maxsize=4)
def _read_once(table: Path, root: str, written: tuple[int, int] | None) -> Table:
    """`written` only tells a new file from an old one."""
    return read_table(table, root)


def _read_ultrabench(source: Store) -> dict[str, Label]:
    found: dict[str, Label] = {}
    for name, label in listed_labels(source):
        known = found.setdefault(name, label)
        if known.label != label.label:
            raise InputError(
                f"source {source.place}: its lists name {name} twice, with label {known.label!r} and {label.label!r}; "
                "leave one of them"
            )
    return found


def listed_labels(source: Store) -> list[tuple[str, Label]]:
    """Images of an UltraBench folder with what its lists say, list by list; one that is listed twice is here twice.

    Raises:
        InputError: a label that is not a class name, or a list that is not one of records with an image.

    """
    return [
        (_below(normal_name(record["image"]), "images"), _label_of(record, split, source / name))
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
    if not isinstance(found, list) or not all(isinstance(one, dict) and _is_name(one.get("image")) for one in found):
        raise InputError(f"{source / name}: not a list of records with an image each")
    return found


def _label_of(record: dict[str, Any], split: Split, place: str) -> Label:
    value = record.get("label", record.get("pathology"))
    group = record.get("patient", record.get("source"))  # where patients are unknown, frames name their video
    targets = [_below(record[name], folder) for name, folder in _TARGETS.items() if record.get(name)]
    return Label(
        label=None if value is None else class_name(trim(str(value)), f"labels {place}"),
        group=None if group is None else trim(str(group)) or None,
        mask=_below(record["scan_mask"], "masks/scan") if record.get("scan_mask") else None,
        split=split,
        target=targets[0] if targets else None,
    )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and is_text(value)


def _below(name: str, folder: str) -> str:
    """Lists name files with or without their folder."""
    return name if name.startswith(f"{folder}/") else f"{folder}/{name}"

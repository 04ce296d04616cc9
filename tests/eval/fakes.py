"""Fakes of the eight sets of US-JEPA's comparison in UltraBench's layouts: right names and lists, few pictures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from eval.ultrabench import BenchSet

Layout = Literal["v1.0.1", "head"]
HEIGHT, WIDTH = 60, 80
_LISTS: dict[Layout, tuple[str, ...]] = {
    "v1.0.1": ("train.json", "validation.json", "test.json"),
    "head": ("train_val.json", "test.json"),
}
_SHARE = 40  # a fake has a 40th of the pictures, and at least a few of each class in each split
_PER_UNIT = 2  # pictures of one patient or video
_PATHOLOGY = {"aul", "fatty_liver", "gbcu", "pocus"}  # sets whose lists have the class in words, too


def write_fake(one: BenchSet, layout: Layout, place: Path) -> Path:
    """Write a fake of a set into a folder named like UltraBench's; equal arguments give equal bytes."""
    folder = place / f"{one.folder}_{'v1.0.1' if layout == 'v1.0.1' else 'v2.0.0'}"
    for part in ("images", "masks/scan", "masks/mass", "masks/tumor"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(len(one.classes) * 100 + len(one.key))
    expected = one.expected(has_val=layout == "v1.0.1")
    for split, name in zip(expected, _LISTS[layout], strict=True):
        records = list(_records(one, split, scaled(expected[split], len(one.classes)), folder, rng))
        (folder / name).write_text(json.dumps(records))
    return folder


def scaled(num_real: int, num_classes: int) -> int:
    """Pictures in a split of a fake, the same number of each class."""
    per_class = min(6, max(4, num_real // _SHARE // num_classes))
    return num_classes * per_class


def _records(
    one: BenchSet, split: str, number: int, folder: Path, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    for at in range(number):
        label, unit = at % len(one.classes), f"{split}{at // len(one.classes) // _PER_UNIT}-{at % len(one.classes)}"
        name = f"{split}_{at}.png"
        frame, scan, lesion = draw(label / len(one.classes), rng)
        _write(folder / "images" / name, frame)
        _write(folder / "masks" / "scan" / name, scan.astype(np.uint8))
        yield {"image": f"images/{name}", "scan_mask": f"masks/scan/{name}", "label": label} | _more(
            one, label, unit, folder, name, lesion
        )


def _more(one: BenchSet, label: int, unit: str, folder: Path, name: str, lesion: np.ndarray) -> dict[str, Any]:
    """What the lists of this set have beside image, scan and label."""
    more: dict[str, Any] = {"pathology": one.classes[label]} if one.key in _PATHOLOGY else {}
    if one.unit != "image":
        more["patient" if one.unit == "patient" else "source"] = unit
    if one.key == "aul":
        _write(folder / "masks" / "mass" / name, lesion.astype(np.uint8))
        more["mass_mask"] = f"masks/mass/{name}"
    if one.key == "mmotu":
        _write(folder / "masks" / "tumor" / name, lesion * np.uint8(label + 1))
        more["tumor_mask_multiclass"] = f"masks/tumor/{name}"
    return more


def draw(grain: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Speckle (h, w) uint8 whose grain (0..1) tells its class, in a fan (h, w) bool, and a dark lesion in it."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    scan = (np.abs(columns - WIDTH / 2) < 12 + 0.5 * rows) & (rows > 2) & (rows < HEIGHT - 3)
    noise = cv2.GaussianBlur(rng.standard_normal((HEIGHT, WIDTH)), (0, 0), 0.6 + 2.4 * grain)
    centre = rng.uniform((20, 30), (40, 50))
    lesion = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < rng.uniform(6, 10) ** 2) & scan
    level = np.where(lesion, 60, 120) + 35 * noise / noise.std()
    return (level.clip(5, 250) * scan).astype(np.uint8), scan, lesion


def _write(path: Path, picture: np.ndarray) -> None:
    if not cv2.imwrite(str(path), picture):
        raise RuntimeError(f"OpenCV could not write {path}")

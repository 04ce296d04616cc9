"""What a comparison knows of a labelled set before an encoder has seen it: facts, leaks, the floor of its scores."""

import hashlib
from dataclasses import asdict
from pathlib import Path

import numpy as np

from eval.cells import Cells, Json
from eval.comparison_probes import majority_cell_of
from eval.datasets import LabelledSet
from eval.leaks import find_leaks
from eval.partition import SPLITS, folds_of
from eval.probe import ProbeConfig

VERSION = 3  # of what the cells hold


def set_cell(dataset: LabelledSet, cfg: ProbeConfig, out: Path) -> Json:
    """What results need to know of a set; groups as numbers, so that no name of a patient is copied.

    Raises:
        InputError: a set that no probe could be fitted on; what `folds_of` raises.

    """
    folds_of(dataset.labels, dataset.groups, cfg, dataset.splits)  # before hours of features, rather than after

    def make() -> Json:
        return {
            "name": dataset.name,
            "sha256": dataset.sha256,
            "classes": list(dataset.classes),
            "labels": dataset.labels.tolist(),
            "groups": np.unique(dataset.groups, return_inverse=True)[1].tolist(),
            "splits": _counts(dataset),
            "num_refused": dataset.num_refused,
            "remarks": find_leaks(dataset).lines(),
        }

    key = {"kind": "set", "version": VERSION, "set": set_identity(dataset), "refused": dataset.num_refused}
    return Cells(out / "cells").get(key | {"name": dataset.name}, make)


def _counts(dataset: LabelledSet) -> dict[str, int] | None:
    """Samples by published split; None where the set is cross-validated."""
    splits = dataset.splits
    return None if splits is None else {word: int((splits == word).sum()) for word in SPLITS if word in splits}


def majority_cell(dataset: LabelledSet, cfg: ProbeConfig, out: Path) -> Json:
    """The floor that needs no encoder, on the samples that a probe reports."""
    key = {"kind": "majority", "version": VERSION, "set": set_identity(dataset), "probe": asdict(cfg)}
    return Cells(out / "cells").get(key, lambda: majority_cell_of(dataset, cfg))


def set_identity(dataset: LabelledSet) -> str:
    """sha256 over everything of a set that changes a number, in its own order."""
    digest = hashlib.sha256(dataset.sha256.encode())
    for values in (dataset.keys, dataset.labels, dataset.groups):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()

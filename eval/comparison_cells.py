"""What a comparison computes: one encoder on one labelled set, in pieces that are kept as cells.

Dimensions: n samples, m samples that are reported, D features, C classes.
"""

import base64
import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from eval.cells import Cells, Json
from eval.datasets import LabelledSet
from eval.encoders import FrozenEncoder, open_encoder
from eval.features import Pooling, extract, pooled
from eval.label_free import label_free
from eval.metrics import scores
from eval.probe import (
    ProbeConfig,
    ProbeResult,
    fit_and_predict,
    fold_of_each,
    linear_probe,
    majority_probabilities,
)
from eval.probe_pictures import errors_png, neighbours_png, patches_png
from eval.robustness import KINDS, SEVERITIES, Kind, degrade

Protocol = Literal["fair"]
_VERSION = 1  # of what the cells hold


@dataclass(frozen=True)
class Contender:
    """An encoder as the command line names it, and what is known of it.

    Attributes:
        spec, weights: see eval/encoders.py.
        name: in the tables; unique.
        identity: sha256 over weights and preprocessing.
        note, grid, width: see FrozenEncoder.

    """

    spec: str
    weights: Path | None
    name: str
    identity: str
    note: str
    grid: int
    width: int

    @property
    def run_dir(self) -> Path | None:
        """The pretraining that it comes from, as student, teacher or start."""
        path = Path(self.spec.removeprefix("teacher:").removeprefix("init:"))
        return path if (path / "run.json").is_file() else None

    def facts(self) -> Json:
        """What a page says of it."""
        return {key: getattr(self, key) for key in ("name", "identity", "note", "grid", "width")}


class Pieces:
    """All that is computed of one encoder on one set; weights and features come when the first piece needs them.

    Args:
        contender: the encoder.
        dataset: the set.
        pooling: of its patches.
        probe: settings of the probes.
        out: folder of the comparison, for cells and features.

    """

    def __init__(
        self, contender: Contender, dataset: LabelledSet, pooling: Pooling, probe: ProbeConfig, out: Path
    ) -> None:
        self._contender, self._dataset, self._pooling, self._cfg = contender, dataset, pooling, probe
        self._cells, self._folder = Cells(out / "cells"), out / "features"
        self._set = set_identity(dataset)

    def probe(self, protocol: Protocol) -> Json:
        """Probabilities of the reported samples, and what the probe chose."""
        key = self._key("probe", protocol=protocol, probe=asdict(self._cfg))
        return self._cells.get(key, lambda: _probe_cell(self._probe(protocol)))

    def pictures(self, protocol: Protocol) -> Json:
        """PNG as base64: patch features, neighbours, and the worst errors of a protocol; empty where there is none."""
        key = self._key("pictures", protocol=protocol, probe=asdict(self._cfg))
        return self._cells.get(key, lambda: self._pictures(self.probe(protocol)))

    def label_free(self) -> Json:
        """Measures of the features that need no label; LiDAR's classes are the groups."""
        return self._cells.get(self._key("label_free"), lambda: dict(label_free(self._features, self._dataset.groups)))

    def robustness(self) -> Json:
        """Macro F1 of fair probes of clean frames, on clean frames and on degraded ones by kind and severity."""
        clean = self.probe("fair")
        labels = self._dataset.labels[reported_of(clean, len(self._dataset.labels))]
        degraded = {kind: self._kind(kind)["macro_f1"] for kind in KINDS}
        return {"clean": scores(labels, np.array(clean["probabilities"])).macro_f1, "degraded": degraded}

    def _kind(self, kind: Kind) -> Json:
        key = self._key("robustness", degraded=kind, probe=asdict(self._cfg))
        return self._cells.get(key, lambda: {"macro_f1": self._degraded(kind)})

    def _degraded(self, kind: Kind) -> list[float]:
        data = self._dataset
        features = [
            pooled(self._encoder, degrade(data.squares, kind, severity, data.keys), f"{kind} {severity}", self._pooling)
            for severity in SEVERITIES
        ]
        probabilities = np.full((len(SEVERITIES), len(data.labels), len(data.classes)), np.nan)
        for fitted, reported in _parts(data, self._cfg):
            predicted = np.concatenate([one[reported] for one in features])
            clean, labels, groups = (values[fitted] for values in (self._features, data.labels, data.groups))
            found = fit_and_predict(clean, labels, groups, predicted, self._cfg)[1]
            probabilities[:, reported] = found.reshape(len(SEVERITIES), len(reported), -1)
        there = ~np.isnan(probabilities[0, :, 0])
        return [scores(data.labels[there], one[there]).macro_f1 for one in probabilities]

    @cached_property
    def _encoder(self) -> FrozenEncoder:
        return open_encoder(self._contender.spec, self._contender.weights)

    @cached_property
    def _features(self) -> np.ndarray:
        return extract(self._encoder, self._dataset, self._pooling, self._folder)

    def _key(self, kind: str, **more: object) -> Json:
        known = {"kind": kind, "version": _VERSION, "set": self._set, "encoder": self._contender.identity}
        return known | {"pooling": self._pooling, **more}

    def _probe(self, protocol: Protocol) -> ProbeResult:
        data = self._dataset
        return linear_probe(self._features, data.labels, data.groups, self._cfg)

    def _pictures(self, probed: Json) -> Json:
        data = self._dataset
        reported = reported_of(probed, len(data.labels))
        pictures = {
            "patches": patches_png(self._encoder, data),
            "neighbours": neighbours_png(self._features, data),
            "errors": errors_png(data, reported, np.array(probed["probabilities"])),
        }
        return {name: base64.b64encode(png).decode() for name, png in pictures.items()}


def set_cell(dataset: LabelledSet, out: Path) -> Json:
    """What results need to know of a set; groups as numbers, so that no name of a patient is copied."""

    def make() -> Json:
        return {
            "name": dataset.name,
            "sha256": dataset.sha256,
            "classes": list(dataset.classes),
            "labels": dataset.labels.tolist(),
            "groups": np.unique(dataset.groups, return_inverse=True)[1].tolist(),
            "num_refused": dataset.num_refused,
            "remarks": [],
        }

    key = {"kind": "set", "version": _VERSION, "set": set_identity(dataset), "refused": dataset.num_refused}
    return Cells(out / "cells").get(key | {"name": dataset.name}, make)


def majority_cell(dataset: LabelledSet, cfg: ProbeConfig, out: Path) -> Json:
    """The floor that needs no encoder, on the samples that a probe reports."""

    def make() -> Json:
        folds = fold_of_each(dataset.labels, dataset.groups, cfg)
        probabilities = majority_probabilities(dataset.labels, folds)
        return {
            "probabilities": probabilities.tolist(), "reported": None, "strengths": [], "constant": True,
            "num_unconverged": 0,
        }  # fmt: skip

    key = {"kind": "majority", "version": _VERSION, "set": set_identity(dataset), "probe": asdict(cfg)}
    return Cells(out / "cells").get(key, make)


def set_identity(dataset: LabelledSet) -> str:
    """sha256 over everything of a set that changes a number, in its own order."""
    digest = hashlib.sha256(dataset.sha256.encode())
    for values in (dataset.keys, dataset.labels, dataset.groups):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def reported_of(cell: Json, num_samples: int) -> np.ndarray:
    """Numbers of the samples that a probe's cell reports."""
    return np.arange(num_samples) if cell["reported"] is None else np.array(cell["reported"])


def _parts(dataset: LabelledSet, cfg: ProbeConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    """Numbers of the samples that are fitted, and of those that are reported: of every fold."""
    folds = fold_of_each(dataset.labels, dataset.groups, cfg)
    return [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(cfg.folds)]


def _probe_cell(result: ProbeResult) -> Json:
    return {
        "probabilities": result.probabilities.tolist(),
        "reported": None,
        "strengths": list(result.strengths),
        "constant": result.constant,
        "num_unconverged": result.num_unconverged,
    }

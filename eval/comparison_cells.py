"""What a comparison computes: one encoder on one labelled set, in pieces that are kept as cells.

Dimensions: n samples, m samples that are reported, D features, C classes.
"""

import base64
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from eval.cells import Cells, Json
from eval.comparison_probes import (
    Protocol,
    degraded_macro_f1,
    few_shot_cell,
    probe_cell,
    regression_cell,
    segmentation_cell,
)
from eval.comparison_sets import VERSION, set_identity
from eval.datasets import LabelledSet
from eval.encoders import FrozenEncoder, open_encoder
from eval.features import Pooling, extract, extract_tokens, pooled
from eval.label_free import label_free
from eval.metrics import scores
from eval.probe import ProbeConfig
from eval.probe_pictures import errors_png, neighbours_png, patches_png
from eval.results import reported_of
from eval.robustness import KINDS, SEVERITIES, Kind, degrade


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
        return self._cells.get(key, lambda: self._probe(protocol))

    def few_shot(self) -> Json:
        """Macro F1 by share of the train groups."""
        key = self._key("few_shot", probe=asdict(self._cfg))
        return self._cells.get(key, lambda: few_shot_cell(self._dataset, self._cfg, self._features))

    def segmentation(self) -> Json:
        """Dice of a linear head; empty where the set has no masks, or the encoder only one patch, which has no map."""
        if self._dataset.masks is None or self._contender.grid == 1:
            return {}
        key = self._key("segmentation", folds=self._cfg.folds)
        return self._cells.get(key, lambda: segmentation_cell(self._dataset, self._cfg.folds, self._tokens))

    def regression(self) -> Json:
        """R2 and mean absolute error of ridge regression; empty where the set has no values."""
        if self._dataset.values is None:
            return {}
        key = self._key("regression", folds=self._cfg.folds)
        return self._cells.get(key, lambda: regression_cell(self._dataset, self._cfg.folds, self._features))

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
        return degraded_macro_f1(data, self._cfg, self._features, np.stack(features))

    @cached_property
    def _encoder(self) -> FrozenEncoder:
        return open_encoder(self._contender.spec, self._contender.weights)

    @cached_property
    def _features(self) -> np.ndarray:
        return extract(self._encoder, self._dataset, self._pooling, self._folder)

    @cached_property
    def _tokens(self) -> np.ndarray:
        return extract_tokens(self._encoder, self._dataset, self._folder)

    def _key(self, kind: str, **more: object) -> Json:
        known = {"kind": kind, "version": VERSION, "set": self._set, "encoder": self._contender.identity}
        return known | {"pooling": self._pooling, **more}

    def _probe(self, protocol: Protocol) -> Json:
        return probe_cell(protocol, self._dataset, self._cfg, lambda: self._features, lambda: self._tokens)

    def _pictures(self, probed: Json) -> Json:
        data = self._dataset
        reported = reported_of(probed, len(data.labels))
        pictures = {
            "patches": patches_png(self._encoder, data),
            "neighbours": neighbours_png(self._features, data),
            "errors": errors_png(data, reported, np.array(probed["probabilities"])),
        }
        return {name: base64.b64encode(png).decode() for name, png in pictures.items()}

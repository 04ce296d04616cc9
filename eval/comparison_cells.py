"""What a comparison computes: one encoder on one labelled set, in pieces that are kept as cells.

Dimensions: n samples, D features, C classes.
"""

import base64
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from eval.cells import Cells, Json
from eval.datasets import LabelledSet
from eval.encoders import FrozenEncoder, open_encoder
from eval.features import Pooling, extract, extract_tokens
from eval.label_free import label_free
from eval.metrics import bootstrap, scores
from eval.probe import ProbeConfig, ProbeResult, fit_and_predict, linear_probe
from eval.probe_pictures import errors_png, neighbours_png, patches_png
from eval.robustness import KINDS, SEVERITIES, degrade

Protocol = Literal["fair", "paper", "knn", "attentive"]
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
        known = asdict(self)
        return {key: known[key] for key in ("name", "identity", "note", "grid", "width")}


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

    @cached_property
    def _encoder(self) -> FrozenEncoder:
        return open_encoder(self._contender.spec, self._contender.weights)

    @cached_property
    def _features(self) -> np.ndarray:
        return extract(self._encoder, self._dataset, self._pooling, self._folder)

    def _key(self, kind: str, **more: object) -> Json:
        known = {"kind": kind, "version": _VERSION, "set": set_identity(self._dataset)}
        return known | {"encoder": self._contender.identity, "pooling": self._pooling, **more}

    def probe(self, protocol: Protocol) -> Json:
        """Probabilities of the reported samples, and what the probe chose."""
        key = self._key("probe", protocol=protocol, probe=asdict(self._cfg))
        return self._cells.get(key, lambda: probe_cell(self._probe(protocol)))

    def _probe(self, protocol: Protocol) -> ProbeResult:
        data = self._dataset
        if protocol == "fair":
            return linear_probe(self._features, data.labels, data.groups, self._cfg, data.splits)
        raise NotImplementedError

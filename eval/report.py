"""report.html: losses and what they say, masks over real frames, contact sheet, probe table. No request to anywhere."""

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure as Plot

from eval.probe_tables import ProbeTable
from sharding.manifest import MANIFEST
from sharding.page import Figure, Section, render_page
from sharding.reader import BadSampleError
from sharding.report import contact_sheet
from sharding.store import Store
from sharding.stream import PositionDataset
from train.config import PretrainConfig
from train.config_file import load_config
from train.data import find_sets, open_dataset
from train.health import verdict
from train.masks import draw_all
from train.objective import shape_of
from train.objectives.distill import whole
from train.pictures import masks_png
from train.step import Looker

_NUM_MASKS = 8
_SEARCHED = 200  # samples
_CURVES: dict[str, tuple[str, dict[str, Any]]] = {
    "train/loss": ("training", {"color": "tab:blue"}),
    "val/loss": ("held-out patients", {"color": "tab:orange", "marker": "o"}),
    "train/loss_of_predicting_the_mean": ("predicting the mean", {"color": "grey", "linestyle": "--"}),
    "train/loss_of_predicting_the_position": ("the position's mean", {"color": "grey", "linestyle": ":"}),
}


def write_run_report(runs: dict[str, Path], tables: list[ProbeTable], path: Path) -> None:
    """Write the report of some runs; the last one is the student.

    Args:
        runs: run directories by name.
        tables: of the probe stage.
        path: of the page.

    """
    student = load_config(list(runs.values())[-1] / "config.yaml", [])
    sections = [Section(f"Probe {table.protocol} on {table.name}", table.verdict, table=table.rows) for table in tables]
    sections += [
        Section("Loss", figures=tuple(_loss_figure(name, run) for name, run in runs.items())),
        Section("Masks", figures=(_masks_figure(student),)),
        Section("Shards", figures=tuple(map(_sheet, _with_manifest(student.data.shards)))),
    ]
    lead = "Frozen features, probe strength chosen inside each training fold, folds and intervals by patient."
    path.write_text(render_page("us-jepa run", lead, sections))


def _with_manifest(places: tuple[str, ...]) -> list[str]:
    """Our own shard directories; tars of strangers have no contact sheet."""
    return [place for place in places if Store(place).exists(MANIFEST)]


def _sheet(directory: str) -> Figure:
    return Figure(contact_sheet(directory), f"Frames of {directory}, as the encoder sees them.")


def _loss_figure(name: str, run_dir: Path) -> Figure:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    plot = Plot(figsize=(7, 2.6), layout="constrained")
    axes = plot.add_subplot()
    for metric, (label, look) in _CURVES.items():
        points = [(line["step"], line["metrics"][metric]) for line in lines if metric in line["metrics"]]
        if points:  # a run without a val split has no held-out loss
            axes.plot(*zip(*points, strict=True), label=label, **look)
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=130)
    last = {metric: value for line in lines for metric, value in line["metrics"].items()}
    return Figure(buffer.getvalue(), f"{name}: {verdict(last)}. {run_dir}")


def _masks_figure(cfg: PretrainConfig) -> Figure:
    dataset = open_dataset(cfg, find_sets(cfg))
    batch = dataset.batch(np.array(_one_per_clip(dataset)))
    patch = shape_of(cfg).patch
    draw = whole if cfg.objective == "distill" else partial(draw_all, cfg=cfg.masks, seed=cfg.data.seed)
    view = Looker(cfg, patch, draw, torch.device("cpu"))(batch)
    caption = "Bright: the context that the student sees. Orange: targets to predict. Dark: hidden or outside."
    return Figure(masks_png(view, patch), caption)


def _one_per_clip(dataset: PositionDataset) -> list[int]:
    """Positions of frames of different clips, those of a known scanner first."""
    first: dict[str, tuple[bool, int]] = {}
    for position, sample in dataset.samples(np.arange(min(_SEARCHED, dataset.order.num_samples))):
        if not isinstance(sample, BadSampleError):
            meta = sample.meta
            first.setdefault(meta.clip, (meta.manufacturer in {None, "other"}, position))
    return [position for _, position in sorted(first.values())][:_NUM_MASKS]

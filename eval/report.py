"""report.html: loss curve, masks over real frames, contact sheet, probe table. One page, no request to anywhere."""

import io
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure as Plot

from eval.stage import ProbeTable
from sharding.manifest import MANIFEST
from sharding.page import Figure, Section, render_page
from sharding.reader import BadSampleError
from sharding.report import contact_sheet, grid_png
from sharding.store import Store
from sharding.stream import PositionDataset
from train.config import PretrainConfig
from train.config_file import load_config
from train.data import find_sets, open_dataset
from train.step import view_of
from train.vit import new_student

_NUM_MASKS = 8
_SEARCHED = 200  # samples
_TARGET_BGR = (60, 140, 255)


def write_run_report(runs: dict[str, Path], tables: list[ProbeTable], path: Path) -> None:
    """Write the report of some runs; the last one is the student.

    Args:
        runs: run directories by name.
        tables: of the probe stage.
        path: of the page.

    """
    student = load_config(list(runs.values())[-1] / "config.yaml", [])
    sections = [
        Section(f"Linear probe on {table.dataset.name}", table.verdict(), table=table.rows()) for table in tables
    ]
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
    steps = [line["step"] for line in lines]
    plot = Plot(figsize=(7, 2.6), layout="constrained")
    axes = plot.add_subplot()
    axes.plot(steps, [line["metrics"]["train/loss"] for line in lines], label="loss")
    baseline = [line["metrics"]["train/loss_of_predicting_the_mean"] for line in lines]
    axes.plot(steps, baseline, "--", color="grey", label="predicting the mean")
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=130)
    return Figure(buffer.getvalue(), f"{name}: {run_dir}")


def _masks_figure(cfg: PretrainConfig) -> Figure:
    dataset = open_dataset(cfg, find_sets(cfg))
    batch = dataset.batch(np.array(_one_per_clip(dataset)))
    patch = new_student(cfg.student.arch, cfg.student.image_size, cfg.student.args).patch
    view = view_of(batch, cfg, patch, torch.device("cpu"))
    tiles = []
    for image, context, targets, weight in zip(
        view.images, view.masks.context_ids, view.masks.target_ids, view.masks.target_weight, strict=True
    ):
        grey = (image[0].numpy() * 255).astype(np.uint8)
        seen = np.full(grey.shape, 0.25, np.float32)  # what the student does not see is dark
        _fill(seen, context.tolist(), patch, 1.0)
        tile = cv2.cvtColor((grey * seen).astype(np.uint8), cv2.COLOR_GRAY2BGR)
        for patch_id in targets[weight > 0].tolist():
            _outline(tile, grey, patch_id, patch)
        tiles.append(cv2.resize(tile, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST))
    caption = "Bright: the context that the student sees. Orange: targets to predict. Dark: hidden or outside."
    return Figure(grid_png(tiles, _NUM_MASKS // 2), caption)


def _one_per_clip(dataset: PositionDataset) -> list[int]:
    """Positions of frames of different clips, those of a known scanner first."""
    first: dict[str, tuple[bool, int]] = {}
    for position, sample in dataset.samples(np.arange(min(_SEARCHED, dataset.order.num_samples))):
        if not isinstance(sample, BadSampleError):
            meta = sample.meta
            first.setdefault(meta.clip, (meta.manufacturer in {None, "other"}, position))
    return [position for _, position in sorted(first.values())][:_NUM_MASKS]


def _corner(patch_id: int, side: int, patch: int) -> tuple[int, int]:
    row, column = divmod(patch_id, side // patch)
    return row * patch, column * patch


def _fill(canvas: np.ndarray, patch_ids: list[int], patch: int, value: float) -> None:
    for patch_id in patch_ids:
        top, left = _corner(patch_id, canvas.shape[0], patch)
        canvas[top : top + patch, left : left + patch] = value


def _outline(tile: np.ndarray, grey: np.ndarray, patch_id: int, patch: int) -> None:
    top, left = _corner(patch_id, grey.shape[0], patch)
    box = (slice(top, top + patch), slice(left, left + patch))
    tile[box] = (0.5 * grey[box][..., None] + 0.5 * np.array(_TARGET_BGR)).astype(np.uint8)

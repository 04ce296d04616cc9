"""A run small enough for a loop in plain Python: 6 x 6 patches of 8 pixels, two blocks of width 48."""

from pathlib import Path
from typing import Any

import torch

from train.config import PretrainConfig
from train.job import make_objective
from train.masks import Masks, draw_all
from train.objective import Objective
from train.step import View

GRID, PATCH = 6, 8
SIZE, N = GRID * PATCH, GRID**2
CPU = torch.device("cpu")
MICRO: dict[str, Any] = {
    "data": {"shards": ["none"], "canvas": 56, "val_samples": 8},
    "masks": {"context_tokens": 8, "target_tokens": 3, "num_targets": 2, "min_patches": 2, "target_scale": [0.1, 0.2]},
    "student": {
        "arch": "vit_tiny_patch16_224", "image_size": SIZE,
        "args": {"patch_size": PATCH, "depth": 2, "embed_dim": 48, "num_heads": 3},
    },
    "predictor": {"depth": 2, "width": 24, "num_heads": 2},
    "optim": {"batch": 6, "steps": 6, "lr": 1e-3, "precision": "fp32", "clip": 0},
    "run": {"dir": "none", "micro_batch": 6, "num_workers": 0, "log_every": 1, "save_every": 3},
}  # fmt: skip
TEACHER = {"source": "random:vit_tiny_patch16_224", "precision": "fp32"}


def content(objective: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """What a YAML file would say, with some keys of some sections changed."""
    made: dict[str, Any] = {"objective": objective}
    made |= {name: section | sections.get(name, {}) for name, section in MICRO.items()}
    made |= {name: section for name, section in sections.items() if name not in MICRO}
    return made | ({"teacher": TEACHER} if objective in ("salt", "distill") else {})


def config(objective: str = "salt", **sections: dict[str, Any]) -> PretrainConfig:
    return PretrainConfig.model_validate(content(objective, **sections))


def shards_config(objective: str, shards: Path, folder: Path, **sections: dict[str, Any]) -> PretrainConfig:
    """On real shards, in a run directory of its own."""
    data = {"shards": [str(shards)]} | sections.pop("data", {})
    run = {"dir": str(folder / objective), "tracking_uri": f"sqlite:///{folder}/mlflow.db"} | sections.pop("run", {})
    return config(objective, data=data, run=run, **sections)


def objective_of(cfg: PretrainConfig) -> Objective:
    return make_objective(cfg, CPU)


def some_view(cfg: PretrainConfig, num: int = 6, first: int = 0, num_padding: int = 0) -> View:
    """Images, regions and masks of positions from `first`; the last rows are padding, as the stream gives them."""
    positions = torch.arange(first, first + num)
    rows = [torch.Generator().manual_seed(int(position)) for position in positions]
    images = torch.stack([torch.rand(1, SIZE, SIZE, generator=row) for row in rows])
    valid = torch.stack([torch.rand(N, generator=row) < 0.9 for row in rows])
    images[num - num_padding :], valid[num - num_padding :], positions[num - num_padding :] = 0, False, -1
    masks: tuple[Masks, ...] = draw_all(valid, positions, cfg.masks, seed=0)
    return View(images, valid, masks)

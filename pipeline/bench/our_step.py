"""Our step on images that already lie on the device: what `bench-step` and `bench-gpu` time.

Only here do they touch the parts of `train` that make a step. Dimensions: B images, S pixels a side, N patches.
"""

from pathlib import Path
from typing import Any

import torch

import train
from pipeline.bench.plain_ijepa import Shape
from train.config import PretrainConfig
from train.config_file import load_config
from train.engine import build_engine
from train.health import Means
from train.model import LatentPredictor
from train.objectives.salt import salt
from train.step import Prepared, View, prepare, run_step, step_scale
from train.teacher import Teacher

CONFIGS = Path(str(train.__file__)).parent / "configs"
IJEPA_MASKS = ("masks.target_scale=[0.15, 0.2]", "masks.context_tokens=56", "masks.target_tokens=35")


def bench_config(name: str, batch: int, precision: str, *more: str) -> PretrainConfig:
    """A shipped config, by its file's stem, with all of a step's batch in one forward and one precision everywhere."""
    overrides = [f"optim.batch={batch}", f"run.micro_batch={batch}", f"optim.precision={precision}"]
    teacher = f"teacher.precision={precision}"
    return load_config(CONFIGS / f"{name}.yaml", [*overrides, teacher, "run.compile=false", *more])


def plain_shape(cfg: PretrainConfig) -> Shape:
    """The shape of a plain I-JEPA with the same encoder and predictor."""
    with torch.device("meta"):
        student: Any = LatentPredictor(cfg, latent_width=1).student
    encoder = (student.vit.embed_dim, len(student.vit.blocks), student.vit.blocks[0].attn.num_heads)
    return Shape(encoder, (cfg.predictor.width, cfg.predictor.depth, cfg.predictor.num_heads), student.grid)


class OurStep:
    """Student and predictor under a real DeepSpeed engine, the frozen teacher beside it.

    Args:
        cfg: of the run.
        teacher: on any device.
        device: where everything happens.

    """

    def __init__(self, cfg: PretrainConfig, teacher: Teacher, device: torch.device) -> None:
        assert cfg.teacher is not None
        self.cfg = cfg
        teacher.set_precision(cfg.teacher.precision)
        if cfg.run.compile:
            teacher.compile(dynamic=False)
        self.objective = salt(cfg, teacher, "random", device)
        module: Any = self.objective.module
        self.module = module.to(device)
        self.engine: Any = build_engine(self.module, cfg, world=1)
        num = int(self.module.student.grid) ** 2
        self._means = Means(torch.zeros(teacher.width, device=device), torch.zeros(num, teacher.width, device=device))
        self._valid = torch.ones(cfg.optim.batch, num, dtype=torch.bool, device=device)
        self._positions = torch.arange(cfg.optim.batch, device=device)

    def __call__(self, images: torch.Tensor, step: int) -> torch.Tensor:
        """One optimizer step on images (B, 1, S, S) in 0..1; the loss, () float32, on the device."""
        return self.update(self.prepare(images, step))

    def prepare(self, images: torch.Tensor, step: int) -> Prepared:
        """Masks of a step, and targets of images."""
        masks = self.objective.masks(self._valid, self._positions + step * len(self._positions))
        return prepare(View(images, self._valid, masks), self.objective, self._means, self.cfg)

    def update(self, prepared: Prepared) -> torch.Tensor:
        """Forward, backward and optimizer; the loss."""
        return run_step(self.engine, [prepared], world=1)[0]


def loss_of(module: Any, prepared: Prepared) -> torch.Tensor:  # noqa: ANN401
    """Mean loss of an engine or of the bare module."""
    loss: torch.Tensor = module(prepared.view.images, prepared.view.masks, prepared.wanted, step_scale([prepared]))[0]
    return loss

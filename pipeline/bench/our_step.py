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
from train.masks import Masks, draw_masks
from train.model import LatentPredictor
from train.objectives.salt import salt_targets
from train.vit import Encoder, new_student

CONFIGS = Path(str(train.__file__)).parent / "configs"
IJEPA_MASKS = ("masks.target_scale=[0.15, 0.2]", "masks.context_tokens=56", "masks.target_tokens=35")


def bench_config(name: str, batch: int, precision: str, *more: str) -> PretrainConfig:
    """A shipped config, by its file's stem, with all of a step's batch in one forward and one precision everywhere."""
    overrides = [f"optim.batch={batch}", f"run.micro_batch={batch}", f"optim.precision={precision}"]
    teacher = f"teacher.precision={precision}"
    return load_config(CONFIGS / f"{name}.yaml", [*overrides, teacher, "run.compile=false", *more])


def frozen_teacher(arch: str, image_size: int) -> Encoder:
    """A teacher with random weights: what it says does not matter here, only what it costs."""
    teacher = new_student(arch, image_size).eval()
    return teacher.requires_grad_(requires_grad=False)


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

    def __init__(self, cfg: PretrainConfig, teacher: Encoder, device: torch.device) -> None:
        self.cfg, self.device = cfg, device
        self.targets = salt_targets(teacher, cfg.target, device)
        self.module = LatentPredictor(cfg, teacher.width).to(device)
        if cfg.run.compile:
            self.module.compile(dynamic=False)
            teacher.compile(dynamic=False)
        self.engine: Any = build_engine(self.module, cfg, world=1)
        self._valid = torch.ones(cfg.optim.batch, self.module.student.grid**2, dtype=torch.bool, device=device)
        self._positions = torch.arange(cfg.optim.batch, device=device)

    def __call__(self, images: torch.Tensor, step: int) -> torch.Tensor:
        """One optimizer step on images (B, 1, S, S) in 0..1; the loss, () float32, on the device."""
        return self.update(images, self.masks(step), self.latents(images))

    def masks(self, step: int) -> Masks:
        """Masks of a step."""
        return draw_masks(self._valid, self._positions + step * len(self._positions), self.cfg.masks, seed=0)

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """Targets of images, (B, N, D of the teacher)."""
        assert self.cfg.teacher is not None
        is_bf16 = self.cfg.teacher.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_bf16):
            return self.targets(images)

    def update(self, images: torch.Tensor, masks: Masks, wanted: torch.Tensor) -> torch.Tensor:
        """Forward, backward and optimizer; the loss."""
        loss = loss_of(self.engine, images, masks, wanted)
        self.engine.backward(loss)
        self.engine.step()
        return loss.detach()


def loss_of(module: Any, images: torch.Tensor, masks: Masks, wanted: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    """Mean loss of an engine or of the bare module."""
    loss: torch.Tensor = module(images, masks, wanted, 1 / masks.target_weight.sum().clamp(min=1))[0]
    return loss

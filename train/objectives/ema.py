"""I-JEPA (arXiv 2301.08243): the teacher is a running average of the student itself. Needs no teacher."""

from functools import partial

import torch
from torch.nn import functional

from train.average import Average
from train.config import PretrainConfig
from train.masks import draw_all
from train.model import LatentPredictor
from train.objective import Objective, shape_of
from train.vit import Encoder


def momentum(step: int, cfg: PretrainConfig) -> float:
    """Of the average after optimizer step `step`: linear over the run (I-JEPA)."""
    low, high = cfg.target.momentum
    return low + (high - low) * min(step / max(cfg.optim.steps - 1, 1), 1)


def ema(cfg: PretrainConfig, device: torch.device) -> Objective:
    """Predict the average's latents of the hidden blocks; the average is released, as in I-JEPA."""
    width = shape_of(cfg).width
    module = LatentPredictor(cfg, width)
    average = Average(module.student, device)

    @torch.no_grad()
    def targets(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.optim.precision == "bf16"):  # as the student
            latents: torch.Tensor = average.encoder(images).float()
        if cfg.target.normalisation == "none":
            return latents
        return functional.layer_norm(latents, latents.shape[-1:])

    def after_step(student: Encoder, step: int) -> None:
        average.update(student, momentum(step, cfg))

    return Objective(
        module=module,
        width=width,
        targets=targets,
        masks=partial(draw_all, cfg=cfg.masks, seed=cfg.data.seed),
        is_frozen=False,
        state=average.state,
        after_step=after_step,
        release=average.encoder,
    )

"""SALT stage 1: the target is the patch's own pixels, normalised per patch (as in VideoMAE). Needs no teacher."""

from functools import partial

import torch
from torch.nn import functional

from train.config import PretrainConfig
from train.masks import draw_all
from train.model import LatentPredictor
from train.objective import Objective, shape_of

_MIN_VARIANCE = 1e-6


@torch.no_grad()
def patch_pixels(images: torch.Tensor, patch: int) -> torch.Tensor:
    """Images (B, 1, S, S) in 0..1 to (B, N, patch * patch) with mean 0 and variance 1 per patch."""
    pixels = functional.unfold(images, patch, stride=patch).transpose(1, 2)
    variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
    return (pixels - mean) / (variance + _MIN_VARIANCE).sqrt()


def pixel(cfg: PretrainConfig) -> Objective:
    """Predict the pixels of the hidden blocks."""
    patch = shape_of(cfg).patch
    return Objective(
        module=LatentPredictor(cfg, patch**2),
        width=patch**2,
        targets=partial(patch_pixels, patch=patch),
        masks=partial(draw_all, cfg=cfg.masks, seed=cfg.data.seed),
        is_frozen=True,
    )

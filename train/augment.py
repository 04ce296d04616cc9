"""Random resized crop and flips on the device, the same for a frame and its region (US-JEPA Tab. 4)."""

import math

import torch
from torch.nn import functional

from train.config import AugmentConfig
from train.draws import uniforms

_CROP, _FLIP = 1, 2  # purposes of draws


def crop_and_flip(
    frames: torch.Tensor, regions: torch.Tensor, positions: torch.Tensor, cfg: AugmentConfig, size: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut one crop per image, keyed by its sample position.

    Args:
        frames: (B, 1, S, S) uint8.
        regions: (B, 1, S, S) uint8, 0 or 255.
        positions: (B,) int64.
        cfg: ranges and probabilities.
        size: side of the result in pixels.
        seed: of the run.

    Returns:
        frames and regions, (B, 1, size, size) float32 in 0..1; regions are 0 or 1.

    """
    crop = uniforms(seed, _CROP, positions, 4)
    area = cfg.crop_scale[0] + (cfg.crop_scale[1] - cfg.crop_scale[0]) * crop[:, 0]
    low, high = (math.log(limit) for limit in cfg.crop_aspect)
    aspect = torch.exp(low + (high - low) * crop[:, 1])
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    flip = 1 - 2 * (uniforms(seed, _FLIP, positions, 2) < frames.new_tensor(_flips(cfg), dtype=torch.float32)).float()
    theta = torch.zeros(len(frames), 2, 3, device=frames.device)
    theta[:, 0, 0], theta[:, 0, 2] = width * flip[:, 0], (1 - width) * (2 * crop[:, 2] - 1)
    theta[:, 1, 1], theta[:, 1, 2] = height * flip[:, 1], (1 - height) * (2 * crop[:, 3] - 1)
    grid = functional.affine_grid(theta, [len(frames), 1, size, size], align_corners=False)
    cropped = functional.grid_sample(frames / 255.0, grid, align_corners=False)
    mask = functional.grid_sample(regions / 255.0, grid, mode="nearest", align_corners=False)
    return cropped * mask, mask


def _flips(cfg: AugmentConfig) -> list[float]:
    return [cfg.horizontal_flip[0], cfg.vertical_flip[0]]

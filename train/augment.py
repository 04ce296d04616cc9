"""Augmentation on the device: crop, flips, blur, speckle, contrast (US-JEPA Tab. 4, which gives no strengths).

Every draw is keyed by (seed, sample position), so rank count and micro batch do not change a pixel. An image that a
transform does not hit passes through it with strength 0, so that shapes are static and nothing waits for the host.
Dimensions: B images, S pixels a side of the canvas, A pixels a side of the result, C cells a side of the speckle.
"""

import math

import torch
from torch.nn import functional

from train.config import AugmentConfig
from train.draws import uniforms

_CROP, _FLIP, _BLUR, _SPECKLE, _SPECKLE_FIELD, _CONTRAST = 1, 2, 3, 4, 5, 6  # purposes of draws
_CELL = 4  # pixels between the draws of the speckle field, about the size of its grains
_TAIL = 2.5  # deviations at which the blur's kernel ends; 1 % lies beyond


def augment(
    frames: torch.Tensor,
    regions: torch.Tensor,
    positions: torch.Tensor,
    datasets: torch.Tensor,
    cfg: AugmentConfig,
    size: int,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut one crop per image, flip it, and disturb its pixels, keyed by its sample position.

    Args:
        frames: (B, 1, S, S) uint8.
        regions: (B, 1, S, S) uint8, 0 or 255.
        positions: (B,) int64 global sample positions.
        datasets: (B,) int64, index of each sample's data set; read where a flip has one probability per data set.
        cfg: ranges and probabilities.
        size: A, side of the result in pixels.
        seed: of the run.

    Returns:
        frames and regions, (B, 1, A, A) float32 in 0..1; regions are 0 or 1, frames are 0 outside them.

    """
    crop = uniforms(seed, _CROP, positions, 4)
    flip = uniforms(seed, _FLIP, positions, 2)
    sides, middles = _box(crop, cfg)
    flips = [_chance(cfg.horizontal_flip, datasets), _chance(cfg.vertical_flip, datasets)]
    mirror = torch.stack([1 - 2 * (flip[:, i] < chance).float() for i, chance in enumerate(flips)], dim=1)
    images, inside = _resample(frames, regions, sides * mirror, middles, size)
    if cfg.blur:
        images = _blur(images, uniforms(seed, _BLUR, positions, 2), cfg)
    if cfg.speckle:
        images *= _speckle(positions, cfg, size, seed)
    if cfg.contrast:
        images = _contrast(images, inside, uniforms(seed, _CONTRAST, positions, 2), cfg)
    return images.clamp_(0, 1).mul_(inside), inside


def centre(frames: torch.Tensor, regions: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Resize the whole canvas as `augment` resizes a crop, for validation; same shapes and values as there."""
    whole = torch.ones(len(frames), 2, device=frames.device)
    images, inside = _resample(frames, regions, whole, torch.zeros_like(whole), size)
    return images * inside, inside


def _box(crop: torch.Tensor, cfg: AugmentConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Sides and middle of the crop as (x, y), (B, 2) each, where the canvas reaches from -1 to 1."""
    low, high = (math.log(limit) for limit in cfg.crop_aspect)
    area, aspect = _between(cfg.crop_scale, crop[:, 0]), _between((low, high), crop[:, 1]).exp()
    sides = torch.stack([area * aspect, area / aspect], dim=1).sqrt().clamp(max=1)
    return sides, (1 - sides) * (2 * crop[:, 2:] - 1)


def _chance(shares: tuple[float, ...], datasets: torch.Tensor) -> torch.Tensor:
    """Probability of each row, (B,); a table on the device would have to be copied there on every step."""
    chance = torch.full(datasets.shape, shares[0], dtype=torch.float32, device=datasets.device)
    for number, share in enumerate(shares[1:], start=1):
        chance = chance.masked_fill(datasets == number, share)
    return chance


def _resample(
    frames: torch.Tensor, regions: torch.Tensor, sides: torch.Tensor, middles: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bilinear frames and nearest regions, (B, 1, A, A) float32, on the same points; a negative side mirrors."""
    ends = torch.arange(1 - size, size, 2, device=frames.device) / size  # middles of pixels
    columns, rows = (sides[:, i, None] * ends + middles[:, i, None] for i in range(2))
    shape = (len(frames), size, size)
    grid = torch.stack([columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)], dim=-1)
    images = functional.grid_sample(frames / 255.0, grid, padding_mode="border", align_corners=False)
    inside = functional.grid_sample((regions > 0).float(), grid, "nearest", "border", align_corners=False)
    return images, inside


def _blur(images: torch.Tensor, draws: torch.Tensor, cfg: AugmentConfig) -> torch.Tensor:
    """Gaussian of each image's own deviation, first along rows, then along columns; edges are repeated."""
    sigma = _between(cfg.blur_sigma, draws[:, 1])
    radius = math.ceil(_TAIL * max(cfg.blur_sigma))
    steps = torch.arange(radius + 1, device=images.device)
    taps = torch.exp(-0.5 * (steps / sigma[:, None]) ** 2)
    taps = taps / (2 * taps.sum(dim=1, keepdim=True) - 1)  # all but the middle one occur twice
    taps = torch.where(draws[:, :1] < cfg.blur, taps, (steps == 0).float())
    for axis in (3, 2):
        images = _filter(images, taps[:, None, None, None], axis)
    return images


def _filter(images: torch.Tensor, taps: torch.Tensor, axis: int) -> torch.Tensor:
    """Symmetric filter along one axis. Shifted sums, since a convolution may round to TF32 and differ by device."""
    radius, length = taps.shape[-1] - 1, images.shape[axis]
    pad = (radius, radius, 0, 0) if axis == 3 else (0, 0, radius, radius)  # noqa: PLR2004
    padded = functional.pad(images, pad, mode="replicate")
    result, pair = images * taps[..., 0], torch.empty_like(images)
    for step in range(1, radius + 1):
        torch.add(padded.narrow(axis, radius - step, length), padded.narrow(axis, radius + step, length), out=pair)
        result += pair.mul_(taps[..., step])
    return result


def _speckle(positions: torch.Tensor, cfg: AugmentConfig, size: int, seed: int) -> torch.Tensor:
    """Factor 1 + strength * noise on each pixel, (B, 1, A, A), of a correlated normal field of deviation 1.

    The field is drawn on C x C cells (Box-Muller) and interpolated up. Interpolation averages neighbours, which makes
    the deviation smaller, and unevenly so; each pixel is divided by the root of the sum of its squared weights. The
    factor's deviation is then the strength at every pixel, whatever the cells and the interpolation.
    """
    draws = uniforms(seed, _SPECKLE, positions, 2)
    strength = _between(cfg.speckle_strength, draws[:, 1]) * (draws[:, 0] < cfg.speckle)
    cells = -(-size // _CELL)
    field = _normals(uniforms(seed, _SPECKLE_FIELD, positions, 2 * cells * cells), cells)
    noise = functional.interpolate(field, size=(size, size), mode="bilinear")
    weights = functional.interpolate(torch.eye(cells, device=field.device)[None], size=size, mode="linear")
    even = weights.square().sum(dim=1).rsqrt()  # (1, A), of one axis; the other is the same
    return noise.mul_(even * even.mT).mul_(strength[:, None, None, None]).add_(1)


def _normals(draws: torch.Tensor, cells: int) -> torch.Tensor:
    """Standard normal (B, 1, C, C) from uniform (B, 2 * C * C), by Box and Muller."""
    first, second = draws.view(-1, 2, 1, cells, cells).unbind(1)
    return (-2 * (1 - first).log()).sqrt() * (2 * math.pi * second).cos()


def _contrast(images: torch.Tensor, inside: torch.Tensor, draws: torch.Tensor, cfg: AugmentConfig) -> torch.Tensor:
    """Scale each image's distance to its mean inside the region."""
    factor = torch.where(draws[:, 0] < cfg.contrast, _between(cfg.contrast_range, draws[:, 1]), 1)
    # in whole grey levels: a sum of integers is the same in whatever order a device adds
    total = (images * inside).mul_(255).round_().int().sum(dim=(1, 2, 3))
    mean = total / 255 / inside.sum(dim=(1, 2, 3)).clamp(min=1)
    return (images - mean[:, None, None, None]).mul_((factor - 1)[:, None, None, None]).add_(images)


def _between(limits: tuple[float, float], draws: torch.Tensor) -> torch.Tensor:
    low, high = limits
    return low + (high - low) * draws

"""What mask recipes do to regions of each shape: tokens, fill, blocks drawn again, images that don't train.

    python -m pipeline.bench.mask_stats [--images 4096]

Regions are cropped and flipped as in training (the defaults of `augment`) to 224 pixels, 14 x 14 patches.
"""

import argparse
import math
from collections.abc import Iterator

import numpy as np
import torch

from sharding.preprocess import to_square
from sharding.sources.synthetic import Geometry, SyntheticSpec, generate
from train.augment import augment
from train.config import AugmentConfig, MaskConfig
from train.masks import Masks, check_masks, draw_all, valid_patches

_CANVAS, _SIZE, _PATCH, _SEED = 256, 224, 16, 0
_GRID = _SIZE // _PATCH
_REGIONS = 32  # of each shape
_BATCH = 512
_NUM_FOR_BIAS = 50_000
_NARROW = (15, 22)  # half angle in degrees
_CROPS = AugmentConfig(blur=0, speckle=0, contrast=0)
_SHAPES: dict[str, Geometry | None] = {
    "whole frame": None, "narrow": None, "phased": "fan", "convex": "curved", "linear": "linear",
}  # fmt: skip
_LONG = MaskConfig(
    target_scale=(0.7, 0.7), context_scale=(1, 1), num_targets=2, context_tokens=20, target_tokens=64, min_patches=4
)
_RECIPES = {
    "US-JEPA": MaskConfig(region=False),
    "USrc": MaskConfig(),
    "I-JEPA": MaskConfig(target_scale=(0.15, 0.2), context_tokens=48, target_tokens=28),
    "SALT": MaskConfig(
        target_scale=(0.15, 0.15), context_scale=(1, 1), num_targets=8, target_tokens=15, min_patches=4, more=(_LONG,)
    ),
}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=4096, help="per shape")
    num_images = parser.parse_args().images
    for cfg in _RECIPES.values():
        check_masks(cfg, _GRID)
    print(
        "region      | recipe     | valid mean  min |  K  own mean  min  filled | slots real | rejected failed"
        " | weight 0"
    )
    for shape in _SHAPES:
        regions = torch.cat(list(_cropped(shape, num_images)))
        for name, cfg in _RECIPES.items():
            valid = valid_patches(regions, _PATCH, cfg)
            for part, masks in _named(name, draw_all(valid, torch.arange(num_images), cfg, _SEED)):
                print(f"{shape:11} | {part:10} | {_line(valid, masks)}")
    print(f"\nchance of a patch over {_NUM_FOR_BIAS:,} whole frames, mean of rows 1, 4, 7, 8, 11, 14")
    print("recipe     | context                              least | target                               least")
    whole = torch.ones(1, _GRID**2, dtype=torch.bool).expand(_NUM_FOR_BIAS, -1)
    for name, cfg in _RECIPES.items():
        for part, masks in _named(name, draw_all(whole, torch.arange(_NUM_FOR_BIAS), cfg, _SEED)):
            target_ids = masks.target_ids[masks.target_weight > 0]
            print(f"{part:10} | {_places(masks.context_ids)} | {_places(target_ids)}")


def _named(recipe: str, drawn: tuple[Masks, ...]) -> list[tuple[str, Masks]]:
    parts = ("short", "long") if len(drawn) > 1 else ("",)
    return [(f"{recipe} {part}".strip(), masks) for part, masks in zip(parts, drawn, strict=True)]


def _cropped(shape: str, num_images: int) -> Iterator[torch.Tensor]:
    """Yield regions as the step sees them, (B, 1, 224, 224) float32."""
    squares = torch.from_numpy(np.stack([_square(shape, number) for number in range(_REGIONS)]))[:, None]
    for start in range(0, num_images, _BATCH):
        positions = torch.arange(start, min(start + _BATCH, num_images))
        canvas = squares[positions % _REGIONS]
        yield augment(canvas, canvas, positions, torch.zeros_like(positions), _CROPS, _SIZE, _SEED)[1]


def _square(shape: str, number: int) -> np.ndarray:
    """One region, cut to its bounding box and fitted into the canvas as the stream does it, (S, S) uint8."""
    if shape == "whole frame":
        return np.full((_CANVAS, _CANVAS), 255, np.uint8)
    geometry = _SHAPES[shape]
    if geometry:
        region = generate(SyntheticSpec(geometry, tissue=0, num_frames=1, seed=number, banner=False)).region
    else:
        region = _narrow_sector(math.radians(np.random.default_rng(number).uniform(*_NARROW)))
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    cut = region[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(to_square(np.zeros(cut.shape, np.uint8), cut, _CANVAS)[1])


def _narrow_sector(half_angle: float) -> np.ndarray:
    """A sector whose apex is in the middle of the top row, (S, S) bool."""
    y, x = np.mgrid[:_CANVAS, :_CANVAS]
    x = x - (_CANVAS - 1) / 2
    sector: np.ndarray = (np.abs(np.arctan2(x, y)) <= half_angle) & (np.hypot(x, y) < _CANVAS)
    return sector


def _line(valid: torch.Tensor, masks: Masks) -> str:
    patches, tokens = valid.sum(dim=1).float(), masks.context_ids.shape[1]
    own = (1 - masks.filled) * tokens
    trains = masks.target_weight.any(dim=2).any(dim=1)
    real = masks.target_weight[trains].mean()
    return (
        f"{patches.mean():10.0f} {patches.min():4.0f} | {tokens:2} {own.mean():9.1f} {own.min():4.0f} "
        f"{masks.filled.mean():7.1%} | {real:10.1%} | {masks.rejected.mean():8.1%} {masks.failed.mean():6.1%} | "
        f"{(~trains).float().mean():8.2%}"
    )


def _places(ids: torch.Tensor) -> str:
    """Chances by row, and the least of a patch: rows that mirror each other must agree, and none may be 0."""
    chance = torch.bincount(ids.flatten(), minlength=_GRID**2).view(_GRID, _GRID) / _NUM_FOR_BIAS
    rows = chance.mean(dim=1)[[0, 3, 6, 7, 10, 13]]
    return " ".join(f"{row:.3f}" for row in rows.tolist()) + f"  {chance.min():.4f}"


if __name__ == "__main__":
    main()

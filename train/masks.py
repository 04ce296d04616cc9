"""Context and target blocks for all images at once, on the device, in static shapes (US-JEPA section 4.2).

Blocks are drawn from (seed, sample position), so rank count and micro batch do not change them. Unlike the published
collators, area and aspect are drawn apart and per image, positions include the last row and column, and surplus
patches are dropped at random, never from the bottom rows.
Dimensions: B images, N patches, T targets, R tries, K context tokens, L tokens per target.
"""

from typing import NamedTuple

import torch
from torch.nn import functional

from sharding.recording import InputError
from train.config import MaskConfig
from train.draws import uniforms

_TARGET_BLOCKS, _CONTEXT_BLOCK, _TARGET_ORDER, _CONTEXT_ORDER = 10, 11, 12, 13  # purposes of draws


class Masks(NamedTuple):
    """What the student sees and what the predictor must predict.

    Attributes:
        context_ids: (B, K) int64 patch ids; none of them lies in a target block.
        target_ids: (B, T, L) int64.
        target_weight: (B, T, L) float32, 0 where an id only fills the static shape.
        filled: (B,) float32, share of context ids from outside the context block.

    """

    context_ids: torch.Tensor
    target_ids: torch.Tensor
    target_weight: torch.Tensor
    filled: torch.Tensor


def valid_patches(regions: torch.Tensor, patch: int, cfg: MaskConfig) -> torch.Tensor:
    """Patches that count, (B, N) bool, from regions (B, 1, S, S) in 0..1; all but padding's without conditioning."""
    share = functional.avg_pool2d(regions, patch).flatten(1)
    inside = share > cfg.region_share
    return inside if cfg.region else inside.any(dim=1, keepdim=True).expand_as(inside)


def check_masks(cfg: MaskConfig, grid: int) -> None:
    """Refuse settings whose static shapes cannot always be filled without showing targets to the student.

    Raises:
        InputError: names the numbers.

    """
    area, aspect = torch.meshgrid(
        torch.linspace(*cfg.target_scale, 100), torch.linspace(*cfg.aspect, 100), indexing="ij"
    )
    height, width = _sides(area, aspect, grid)
    largest = int((height * width).max())
    room = grid * grid - cfg.num_targets * largest
    if cfg.context_tokens > room:
        raise InputError(
            f"masks.context_tokens is {cfg.context_tokens}: on a {grid} x {grid} grid {cfg.num_targets} targets of "
            f"up to {largest} patches leave {room}; lower it, target_scale or num_targets"
        )
    if cfg.target_tokens > largest:
        raise InputError(
            f"masks.target_tokens is {cfg.target_tokens}: a target block has at most {largest} patches here"
        )


def draw_masks(valid: torch.Tensor, positions: torch.Tensor, cfg: MaskConfig, seed: int) -> Masks:
    """Draw the masks of a micro batch.

    Args:
        valid: (B, N) bool, patches that may be used; N is a square number.
        positions: (B,) int64 global sample positions.
        cfg: block settings.
        seed: of the run.

    """
    targets = _blocks(valid, positions, cfg, seed, _TARGET_BLOCKS, cfg.num_targets)
    context = _blocks(valid, positions, cfg, seed, _CONTEXT_BLOCK, 1)[:, 0]
    hidden = targets.any(dim=1)
    order = uniforms(seed, _TARGET_ORDER, positions, targets[0].numel()).view_as(targets)
    target_ids = (targets + order).topk(cfg.target_tokens, dim=-1).indices
    order = uniforms(seed, _CONTEXT_ORDER, positions, valid.shape[1])
    # fill, if need be, first from the rest of the region, then from outside it, never from a target
    rank = (~hidden).float() * (1 + valid.float() * (1 + context.float()))
    context_ids = (rank + order).topk(cfg.context_tokens, dim=-1).indices
    from_block = rank.gather(1, context_ids) >= 3  # noqa: PLR2004 - not hidden, valid, in the block
    enough = from_block.sum(dim=1) >= min(cfg.min_patches, cfg.context_tokens)
    weight = targets.gather(2, target_ids).float() * enough[:, None, None]
    return Masks(context_ids, target_ids, weight, 1 - from_block.float().mean(dim=1))


def _blocks(
    valid: torch.Tensor, positions: torch.Tensor, cfg: MaskConfig, seed: int, purpose: int, num: int
) -> torch.Tensor:
    """`num` blocks per image cut to the valid patches, (B, num, N) bool: of R tries the first with enough patches."""
    grid = round(valid.shape[1] ** 0.5)
    draws = uniforms(seed, purpose, positions, num * cfg.tries * 4).view(-1, num, cfg.tries, 4)
    is_context = purpose == _CONTEXT_BLOCK
    low, high = cfg.context_scale if is_context else cfg.target_scale
    area = low + (high - low) * draws[..., 0]
    aspect = torch.ones_like(area) if is_context else cfg.aspect[0] + (cfg.aspect[1] - cfg.aspect[0]) * draws[..., 1]
    height, width = _sides(area, aspect, grid)
    top = (draws[..., 2] * (grid - height + 1)).floor()
    left = (draws[..., 3] * (grid - width + 1)).floor()
    lines = torch.arange(grid, device=valid.device)
    rows = (lines >= top[..., None]) & (lines < (top + height)[..., None])
    columns = (lines >= left[..., None]) & (lines < (left + width)[..., None])
    tries = (rows[..., :, None] & columns[..., None, :]).flatten(-2) & valid[:, None, None]
    count = tries.sum(dim=-1)
    preference = torch.arange(cfg.tries, 0, -1, device=valid.device) + valid.shape[1]
    chosen = torch.where(count >= cfg.min_patches, preference, count).argmax(dim=-1)
    blocks: torch.Tensor = tries.gather(2, chosen[..., None, None].expand(-1, -1, 1, tries.shape[-1])).squeeze(2)
    return blocks


def _sides(area: torch.Tensor, aspect: torch.Tensor, grid: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Height and width in patches of blocks with a share of the grid's area and an aspect (height over width)."""
    patches = area * grid * grid
    height = (patches * aspect).sqrt().round().clamp(1, grid)
    width = (patches / aspect).sqrt().round().clamp(1, grid)
    return height, width

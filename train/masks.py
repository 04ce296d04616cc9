"""Context and target blocks for all images at once, on the device, in static shapes (US-JEPA section 4.2).

Blocks are drawn from (seed, sample position), so rank count and micro batch do not change them. Unlike the published
collators, area and aspect are drawn apart and per image, positions include the last row and column, and surplus
patches are dropped at random, never from the bottom rows.
Dimensions: B images, N patches on a G x G grid, T targets, M blocks, R tries, K context tokens, L tokens per target.
A block is (top, left, height, width) in patches.
"""

import math
from typing import NamedTuple

import torch
from torch.nn import functional

from sharding.recording import InputError
from train.config import MaskConfig
from train.draws import shorts

_BLOCKS, _TARGET_ORDER, _CONTEXT_ORDER = 10, 11, 12  # purposes of draws
_PURPOSES = 3  # of one mask; those of the next come after them
_ID_BITS, _ORDER_BITS = 12, 16  # of a key, below its rank
_PREDICTED, _HIDDEN, _OUTSIDE, _VALID, _IN_BLOCK = range(5)  # ranks of patches for the context, worst first


class Masks(NamedTuple):
    """What the student sees and what the predictor must predict.

    Attributes:
        context_ids: (B, K) int64 distinct patch ids; none of them is predicted.
        target_ids: (B, T, L) int64.
        target_weight: (B, T, L) float32, 0 where an id only fills the static shape.
        filled: (B,) float32, share of context ids from outside the visible part of the context block.
        rejected: (B,) float32, share of blocks whose first draw kept fewer than `min_patches`.
        failed: (B,) float32, share of blocks that kept fewer in every try; the largest try was used.

    """

    context_ids: torch.Tensor
    target_ids: torch.Tensor
    target_weight: torch.Tensor
    filled: torch.Tensor
    rejected: torch.Tensor
    failed: torch.Tensor


def valid_patches(regions: torch.Tensor, patch: int, cfg: MaskConfig) -> torch.Tensor:
    """Patches that count, (B, N) bool, from regions (B, 1, S, S) in 0..1; all but padding's without conditioning."""
    share = functional.avg_pool2d(regions, patch).flatten(1)
    inside = share > cfg.region_share
    return inside if cfg.region else inside.any(dim=1, keepdim=True).expand_as(inside)


def check_masks(cfg: MaskConfig, grid: int) -> None:
    """Refuse settings whose static shapes cannot always be filled without showing targets to the student.

    Args:
        cfg: block settings; those in `more` are checked, too.
        grid: patches a side.

    Raises:
        InputError: names the key and the numbers.

    """
    if grid * grid > 2**_ID_BITS:
        raise InputError(
            f"the grid is {grid} x {grid} patches; at most {math.isqrt(2**_ID_BITS)} a side, take a larger patch"
        )
    _check_one(cfg, grid, "masks")
    for number, other in enumerate(cfg.more):
        name = f"masks.more.{number}"
        _check_one(other, grid, name)
        if other.more:
            raise InputError(f"{name}.more has {len(other.more)} masks; list all of them in masks.more")
        for key in ("region", "region_share"):
            if getattr(other, key) != getattr(cfg, key):
                raise InputError(
                    f"{name}.{key} is {getattr(other, key)} and masks.{key} is {getattr(cfg, key)}; "
                    "masks of one image share its valid patches, give the same"
                )


def _check_one(cfg: MaskConfig, grid: int, name: str) -> None:
    room = grid * grid - cfg.num_targets * cfg.target_tokens
    if cfg.context_tokens > room:
        raise InputError(
            f"{name}.context_tokens is {cfg.context_tokens}: on a {grid} x {grid} grid {cfg.num_targets} targets of "
            f"{cfg.target_tokens} tokens leave {max(room, 0)}; lower it, target_tokens or num_targets"
        )
    largest = _largest(cfg, grid)
    for key in ("target_tokens", "min_patches"):
        if getattr(cfg, key) > largest:
            raise InputError(
                f"{name}.{key} is {getattr(cfg, key)}: on a {grid} x {grid} grid a target block has at most "
                f"{largest} patches; lower it or raise target_scale"
            )


def draw_masks(valid: torch.Tensor, positions: torch.Tensor, cfg: MaskConfig, seed: int) -> Masks:
    """Draw the masks of a micro batch.

    Targets are random patches of each target block. The context is random patches of the context block less all
    target blocks; where that has fewer than K it is filled, first from the rest of the region, then from outside it,
    at last with patches of target blocks that were dropped as surplus; never with one that is predicted. An image
    whose context has fewer than `min_patches` (or K) of its own has weight 0.

    Args:
        valid: (B, N) bool, patches that may be used; N is a square number.
        positions: (B,) int64 global sample positions.
        cfg: block settings that `check_masks` accepts.
        seed: of the run.

    """
    return _draw(valid, positions, cfg, seed, first_purpose=0)


def draw_all(valid: torch.Tensor, positions: torch.Tensor, cfg: MaskConfig, seed: int) -> tuple[Masks, ...]:
    """`draw_masks` for cfg and for each of `cfg.more`, independently (SALT: short and long targets of one image)."""
    every = (cfg, *cfg.more)
    return tuple(_draw(valid, positions, one, seed, number * _PURPOSES) for number, one in enumerate(every))


def _draw(valid: torch.Tensor, positions: torch.Tensor, cfg: MaskConfig, seed: int, first_purpose: int) -> Masks:
    shape = (len(valid), cfg.num_targets + 1, cfg.tries, 4)
    draws = shorts(seed, first_purpose + _BLOCKS, positions, math.prod(shape[1:])).view(shape) / 2**16 + 0.5
    targets, targets_enough = _blocks(draws[:, :-1], cfg.target_scale, cfg.aspect, valid, cfg.min_patches)
    target_ids, real = _target_ids(targets, valid, positions, cfg, (seed, first_purpose + _TARGET_ORDER))
    hidden = _cover(targets, valid)
    visible = valid & ~hidden
    context, context_enough = _blocks(draws[:, -1:], cfg.context_scale, (1, 1), visible, cfg.min_patches)
    rank = torch.where(visible, _VALID + _cover(context, valid).int(), _OUTSIDE)
    rank = torch.where(hidden & valid, _HIDDEN, rank).masked_fill(_predicted(target_ids, real, valid), _PREDICTED)
    order = shorts(seed, first_purpose + _CONTEXT_ORDER, positions, valid.shape[1])
    ids = torch.arange(valid.shape[1], dtype=torch.int32, device=valid.device)
    context_ids, rank = _highest(rank, order, ids, cfg.context_tokens)
    own = rank == _IN_BLOCK
    weight = real & (own.sum(dim=1) >= min(cfg.min_patches, cfg.context_tokens))[:, None, None]
    enough = torch.cat([targets_enough, context_enough], dim=1)
    rejected, failed = ~enough[..., 0], ~enough.any(dim=-1)
    shares = (part.float().mean(dim=1) for part in (~own, rejected, failed))
    return Masks(context_ids, target_ids, weight.float(), *shares)


def _blocks(
    draws: torch.Tensor, scale: tuple[float, float], aspect: tuple[float, float], usable: torch.Tensor, least: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of R tries per block the first that keeps at least `least` usable patches, else the one that keeps most.

    Args:
        draws: (B, M, R, 4) uniform, for area, aspect, top and left.
        scale: share of the grid's area, from, to.
        aspect: height over width, from, to.
        usable: (B, N) bool.
        least: patches.

    Returns:
        blocks (B, M, 4) int64, and whether each try keeps enough, (B, M, R) bool.

    """
    grid = _side(usable)
    area, ratio = (low + (high - low) * draws[..., i] for i, (low, high) in enumerate((scale, aspect)))
    height = (area * ratio).sqrt().mul(grid).round().clamp(1, grid)
    width = (area / ratio).sqrt().mul(grid).round().clamp(1, grid)
    top = (draws[..., 2] * (grid + 1 - height)).floor()
    left = (draws[..., 3] * (grid + 1 - width)).floor()
    tries = torch.stack([top, left, height, width], dim=-1).long()
    count = _count(tries, usable)
    enough = count >= least
    earlier_first = torch.arange(count.shape[-1], 0, -1, device=usable.device) + usable.shape[1]
    chosen = torch.where(enough, earlier_first, count).argmax(dim=-1)
    return tries.gather(2, chosen[..., None, None].expand(-1, -1, 1, 4)).squeeze(2), enough


def _count(tries: torch.Tensor, usable: torch.Tensor) -> torch.Tensor:
    """Usable patches in each block, (..., 4) to (...), by a summed-area table: no try is spread over the grid."""
    grid = _side(usable)
    sums = usable.view(-1, grid, grid).cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
    table = functional.pad(sums, (1, 0, 1, 0)).flatten(1)
    top, left, height, width = tries.unbind(-1)

    def above_left(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        return table.gather(1, (row * (grid + 1) + column).flatten(1)).view_as(row)

    bottom, right = top + height, left + width
    return above_left(bottom, right) - above_left(top, right) - above_left(bottom, left) + above_left(top, left)


def _cover(blocks: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Patches that lie in any of the blocks, (B, M, 4) to (B, N) bool."""
    top, left, height, width = blocks[..., None].unbind(2)
    lines = torch.arange(_side(valid), device=blocks.device)
    rows = (lines >= top) & (lines < top + height)
    columns = (lines >= left) & (lines < left + width)
    return (rows.float().mT @ columns.float() > 0).flatten(1)  # the product counts blocks: small and exact


def _target_ids(
    blocks: torch.Tensor, valid: torch.Tensor, positions: torch.Tensor, cfg: MaskConfig, key: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """L random valid patches of each block, (B, T, L), and which of them are real; the rest fill up with any id."""
    grid = _side(valid)
    top, left, height, width = blocks.int()[..., None].unbind(2)
    slots = torch.arange(_largest(cfg, grid), dtype=torch.int32, device=valid.device)
    row = slots // width
    inside = row < height
    ids = torch.where(inside, slots + row * (grid - width) + (top * grid + left), 0)
    usable = inside & valid.gather(1, ids.flatten(1).long()).view_as(ids)
    order = shorts(*key, positions, ids[0].numel()).view_as(ids)
    target_ids, rank = _highest(usable.int(), order, ids, cfg.target_tokens)
    return target_ids, rank > 0


def _predicted(target_ids: torch.Tensor, real: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """(B, N) bool; ids that are not real go to one column more, which is cut off."""
    spare = valid.shape[1]
    found = valid.new_zeros(len(valid), spare + 1)
    return found.scatter(1, torch.where(real, target_ids, spare).flatten(1), value=True)[:, :spare]


def _highest(rank: torch.Tensor, order: torch.Tensor, ids: torch.Tensor, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `num` ids of highest rank in each row, and their ranks; of equal ranks random ones.

    A key is rank, random bits and id, so that no two are equal: every device finds the same ids. Their order says
    nothing, and putting them in one would take a sixth of all that masks take.
    """
    random = (order.int() & (2**_ORDER_BITS - 1)) << _ID_BITS
    keys = (rank << (_ORDER_BITS + _ID_BITS)) | random | ids
    found = keys.topk(num, dim=-1, sorted=False).values
    return (found & (2**_ID_BITS - 1)).long(), found >> (_ORDER_BITS + _ID_BITS)


def _largest(cfg: MaskConfig, grid: int) -> int:
    """Patches of the largest target block: at the largest area, of each height the widest that the aspects allow."""
    area, (low, high) = max(cfg.target_scale) * grid * grid, cfg.aspect
    most = 1
    for height in range(1, grid + 1):
        flattest = max(low, (height - 0.5) ** 2 / area) if height > 1 else low
        tallest = min(high, (height + 0.5) ** 2 / area) if height < grid else high
        if flattest <= tallest:
            width = min(grid, max(1, int((area / flattest) ** 0.5 + 0.5)))
            most = max(most, height * width)
    return most


def _side(patches: torch.Tensor) -> int:
    return math.isqrt(patches.shape[1])

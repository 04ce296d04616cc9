"""One optimizer step. All of it happens on the device and is a function of the sample positions.

Dimensions: B images, S pixels a side, N patches, T targets of L tokens, D channels of the targets.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import distributed

from sharding.stream import Batch, split_pixels
from train.augment import augment, centre
from train.config import PretrainConfig
from train.health import Means
from train.masks import Masks, valid_patches
from train.model import distance
from train.objective import Objective

Draw = Callable[[torch.Tensor, torch.Tensor], tuple[Masks, ...]]
STATISTICS = (
    "train/loss", "train/loss_of_predicting_the_mean", "train/loss_of_predicting_the_position",
    "train/cosine", "train/predicted_deviation", "train/target_deviation",
)  # fmt: skip


class View(NamedTuple):
    """One micro batch on the device, as the step sees it.

    Attributes:
        images: (B, 1, S, S) float32 in 0..1.
        valid: (B, N) bool.
        masks: of these images.

    """

    images: torch.Tensor
    valid: torch.Tensor
    masks: tuple[Masks, ...]


class Prepared(NamedTuple):
    """What does not depend on the student, so that it may be computed ahead.

    Attributes:
        view: images and masks.
        wanted: (B, T, L, D) float32, the targets of each mask.
        baselines: (2,) float32, weighted sums of the loss of predicting the mean target, and the mean at its position.
        weight: () float32, real target tokens.

    """

    view: View
    wanted: tuple[torch.Tensor, ...]
    baselines: torch.Tensor
    weight: torch.Tensor


class Looker:
    """Batches on the host to views on the device.

    Args:
        cfg: of the run.
        patch: pixels a side.
        draw: Objective.masks.
        device: to move to.

    """

    def __init__(self, cfg: PretrainConfig, patch: int, draw: Draw, device: torch.device) -> None:
        self._cfg, self._patch, self._draw, self._device = cfg, patch, draw, device
        self._augmented: Callable[..., View] = self._look
        if cfg.run.compile:
            self._augmented = torch.compile(self._look, dynamic=False)

    def __call__(self, batch: Batch, *, still: bool = False) -> View:
        """Move, augment, and draw masks; `still` shows the whole canvas as it is, for validation."""
        parts = (batch.pixels, batch.positions, batch.datasets)
        pixels, positions, datasets = (part.to(self._device, non_blocking=True) for part in parts)
        return (self._look if still else self._augmented)(pixels, positions, datasets, still)

    def _look(self, pixels: torch.Tensor, positions: torch.Tensor, datasets: torch.Tensor, still: bool) -> View:
        cfg = self._cfg
        frames, regions = split_pixels(pixels)
        size = cfg.student.image_size
        if still:
            images, inside = centre(frames, regions, size)
        else:
            images, inside = augment(frames, regions, positions, datasets, cfg.augment, size, cfg.data.seed)
        valid = valid_patches(inside, self._patch, cfg.masks)
        return View(images, valid, self._draw(valid, positions))


@torch.no_grad()
def prepare(view: View, objective: Objective, means: Means, cfg: PretrainConfig) -> Prepared:
    """Targets of a view, at its masks, and what they cost a student that knows only their means."""
    latents = objective.targets(view.images)
    wanted = tuple(_at(latents, mask.target_ids) for mask in view.masks)
    baselines = latents.new_zeros(2)
    for target, mask in zip(wanted, view.masks, strict=True):
        for number, guess in enumerate((means.overall.expand_as(target), means.at_position[mask.target_ids])):
            baselines[number] += (distance(guess, target, cfg.target) * mask.target_weight).sum()
    weight = torch.stack([mask.target_weight.sum() for mask in view.masks]).sum()
    return Prepared(view, wanted, baselines, weight)


def _at(latents: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
    """Latents (B, N, D) at target_ids (B, T, L): (B, T, L, D)."""
    ids = target_ids.flatten(1)[..., None].expand(-1, -1, latents.shape[-1])
    return latents.gather(1, ids).view(*target_ids.shape, -1)


def keep_until_used(prepared: list[Prepared]) -> None:
    """Memory of the side stream must not be given away while the main stream still reads it."""
    stream = torch.cuda.current_stream()
    for part in prepared:
        masks = (tensor for mask in part.view.masks for tensor in mask)
        for tensor in (part.view.images, part.view.valid, part.baselines, part.weight, *part.wanted, *masks):
            tensor.record_stream(stream)


def run_step(engine: Any, prepared: list[Prepared], world: int) -> torch.Tensor:  # noqa: ANN401 - DeepSpeed has no types
    """One optimizer step over the micro batches of this rank.

    Returns:
        (6,) float32 in the order of STATISTICS, this rank's share of each mean over all real targets; on the device.

    """
    scale = step_scale(prepared)
    # DeepSpeed averages over ranks and micro batches; ours is a mean over all real targets of the step
    undo_averaging = world * len(prepared)

    def update(loss: torch.Tensor) -> None:
        engine.backward(loss * undo_averaging)
        engine.step()  # updates the weights on the last micro batch only

    return summed(engine, prepared, scale, update)


def step_scale(prepared: list[Prepared]) -> torch.Tensor:
    """() float32: one over the real target tokens of all ranks."""
    total = torch.stack([part.weight for part in prepared]).sum()
    distributed.all_reduce(total)
    return 1 / total.clamp(min=1)


def summed(
    engine: Any,  # noqa: ANN401
    prepared: list[Prepared],
    scale: torch.Tensor,
    after_each: Callable[[torch.Tensor], None],
) -> torch.Tensor:
    """Statistics (6,) of micro batches, each weighted by `scale`; after_each gets its loss."""
    totals = torch.zeros(len(STATISTICS), device=scale.device)
    for part in prepared:
        loss, statistics = engine(part.view.images, part.view.masks, part.wanted, scale)
        after_each(loss)
        totals += torch.cat([loss.detach()[None], part.baselines * scale, torch.stack(statistics)])
    return totals

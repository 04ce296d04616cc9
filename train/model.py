"""The one module under DeepSpeed: student, predictor and loss. The teacher is not in it.

Dimensions: B images, S pixels a side, N patches, T targets of L tokens, D channels of the targets.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from train.config import PretrainConfig, TargetConfig
from train.masks import Masks
from train.vit import Predictor, new_student


class Statistics(NamedTuple):
    """Of predictions and targets of one micro batch, each () float32 and weighted like the loss.

    Attributes:
        cosine: between a prediction and its target.
        predicted_deviation: of predictions over tokens, the mean of all channels.
        target_deviation: the same of targets.

    """

    cosine: torch.Tensor
    predicted_deviation: torch.Tensor
    target_deviation: torch.Tensor


class LatentPredictor(nn.Module):
    """Predict the targets of hidden patches from the patches that are shown.

    Args:
        cfg: of the run.
        latent_width: D.

    """

    def __init__(self, cfg: PretrainConfig, latent_width: int) -> None:
        super().__init__()
        self.target = cfg.target
        self.student = new_student(cfg.student.arch, cfg.student.image_size, cfg.student.args)
        self.student.checkpoint_activations = cfg.run.checkpoint_activations
        self.predictor = Predictor(self.student.grid, self.student.width, latent_width, **cfg.predictor.model_dump())

    def forward(
        self,
        images: torch.Tensor,
        masks: tuple[Masks, ...] = (),
        wanted: tuple[torch.Tensor, ...] = (),
        scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Statistics] | torch.Tensor:
        """Weighted sum of the loss over target tokens, times `scale`.

        Args:
            images: (B, 1, S, S) float in 0..1.
            masks: of these images; several share the images. None: the student's tokens are returned.
            wanted: (B, T, L, D) float32, the targets of each mask.
            scale: () float32; what makes the sum over all ranks and micro batches a mean over real targets.

        Returns:
            the loss () float32 and its statistics, or the student's tokens (B, N, D of the student).

        """
        if scale is None:
            tokens: torch.Tensor = self.student(images)
            return tokens
        predicted = tuple(self._predict(images, mask) for mask in masks)
        return scored(predicted, wanted, tuple(mask.target_weight * scale for mask in masks), self.target)

    def _predict(self, images: torch.Tensor, mask: Masks) -> torch.Tensor:
        context = self.student(images, mask.context_ids)
        predicted: torch.Tensor = self.predictor(context, mask.context_ids, mask.target_ids)
        return predicted.float()


def scored(
    predicted: tuple[torch.Tensor, ...],
    wanted: tuple[torch.Tensor, ...],
    weights: tuple[torch.Tensor, ...],
    cfg: TargetConfig,
) -> tuple[torch.Tensor, Statistics]:
    """The loss and its statistics.

    Args:
        predicted: of each mask, (B, T, L, D) float32.
        wanted: of the same shape.
        weights: of each mask, (B, T, L) float32.
        cfg: which loss.

    """
    loss = torch.stack([
        (distance(said, meant, cfg) * weight).sum()
        for said, meant, weight in zip(predicted, wanted, weights, strict=True)
    ]).sum()  # fmt: skip
    flat_weights = torch.cat([weight.flatten() for weight in weights])
    said, meant = (torch.cat([part.detach().flatten(0, 2) for part in parts]) for parts in (predicted, wanted))
    cosine = (functional.cosine_similarity(said, meant, dim=-1) * flat_weights).sum()
    return loss, Statistics(cosine, _deviation(said, flat_weights), _deviation(meant, flat_weights))


def distance(predicted: torch.Tensor, wanted: torch.Tensor, cfg: TargetConfig) -> torch.Tensor:
    """(..., D) twice to (...): mean over the channels of smooth L1 (US-JEPA 4.2), L1 (SALT 2.1) or squared error."""
    if cfg.loss == "smooth_l1":
        errors = functional.smooth_l1_loss(predicted, wanted, reduction="none", beta=cfg.beta)
    elif cfg.loss == "l1":
        errors = functional.l1_loss(predicted, wanted, reduction="none")
    else:
        errors = functional.mse_loss(predicted, wanted, reduction="none")
    return errors.mean(dim=-1)


def _deviation(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Deviation of (n, D) over the rows with a weight, mean over channels, times the sum of the weights (n,)."""
    total = weights.sum()
    shares = weights[:, None] / total.clamp(min=torch.finfo(weights.dtype).tiny)
    mean = (values * shares).sum(dim=0)
    return ((values - mean).square() * shares).sum(dim=0).sqrt().mean() * total

"""The one module under DeepSpeed: student, predictor and loss. The teacher is not in it."""

import torch
from torch import nn
from torch.nn import functional

from train.config import PretrainConfig
from train.masks import Masks
from train.vit import Predictor, new_student


class LatentPredictor(nn.Module):
    """Predict the targets of hidden patches from the patches that are shown.

    Args:
        cfg: of the run.
        latent_width: D of the targets.

    """

    def __init__(self, cfg: PretrainConfig, latent_width: int) -> None:
        super().__init__()
        self.target = cfg.target
        self.student = new_student(cfg.student.arch, cfg.student.image_size, cfg.student.args)
        self.predictor = Predictor(
            self.student.grid, self.student.width, latent_width, **cfg.predictor.model_dump(exclude={"mode"})
        )

    def forward(
        self, images: torch.Tensor, masks: Masks, targets: torch.Tensor, scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted sum of the loss over target tokens, times `scale`.

        Args:
            images: (B, 1, S, S) float in 0..1.
            masks: of these images.
            targets: (B, N, D) float32.
            scale: () float32; what makes the sum over all ranks and micro batches a mean over real targets.

        Returns:
            the loss, and the loss of always predicting 0, which is the mean target under `channel`: what a
            student must fall below to have learnt anything. Both () float32.

        """
        context = self.student(images, masks.context_ids)
        predicted = self.predictor(context, masks.context_ids, masks.target_ids).float()
        ids = masks.target_ids.flatten(1)[..., None].expand(-1, -1, targets.shape[-1])
        wanted = targets.gather(1, ids).view_as(predicted)
        weight = masks.target_weight * scale
        loss = (self._distance(predicted, wanted) * weight).sum()
        baseline = (self._distance(torch.zeros_like(wanted), wanted) * weight).sum()
        return loss, baseline.detach()

    def _distance(self, predicted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """(B, T, L, D) twice to (B, T, L): mean over the channels."""
        if self.target.loss == "smooth_l1":
            errors = functional.smooth_l1_loss(predicted, wanted, reduction="none", beta=self.target.beta)
        elif self.target.loss == "l1":
            errors = functional.l1_loss(predicted, wanted, reduction="none")
        else:
            errors = functional.mse_loss(predicted, wanted, reduction="none")
        return errors.mean(dim=-1)

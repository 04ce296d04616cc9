"""The control without masks: the student sees every patch and says the frozen teacher's latent of each.

What `salt` gains over it is due to predicting what is hidden; the paper has no such control.
"""

import torch
from torch import nn

from train.config import PretrainConfig
from train.latents import Latents
from train.masks import Masks
from train.model import Statistics, scored
from train.objective import Objective
from train.teacher import Teacher
from train.vit import new_student


class Distiller(nn.Module):
    """Student and a linear layer to the teacher's width; see model.LatentPredictor for what it is called with."""

    def __init__(self, cfg: PretrainConfig, latent_width: int) -> None:
        super().__init__()
        self.target = cfg.target
        self.student = new_student(cfg.student.arch, cfg.student.image_size, cfg.student.args)
        self.student.checkpoint_activations = cfg.run.checkpoint_activations
        self.project = nn.Linear(self.student.width, latent_width)

    def forward(
        self,
        images: torch.Tensor,
        masks: tuple[Masks, ...] = (),
        wanted: tuple[torch.Tensor, ...] = (),
        scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Statistics] | torch.Tensor:
        """As model.LatentPredictor; targets are all patches, in their order."""
        tokens: torch.Tensor = self.student(images)
        if scale is None:
            return tokens
        said = self.project(tokens).float()[:, None]
        return scored((said,), wanted, (masks[0].target_weight * scale,), self.target)


def whole(valid: torch.Tensor, positions: torch.Tensor) -> tuple[Masks, ...]:
    """One target of all N patches, of which the valid (B, N) bool count; everything is context."""
    ids = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
    nothing = torch.zeros_like(positions, dtype=torch.float32)
    return (Masks(ids, ids[:, None], valid[:, None].float(), nothing, nothing, nothing),)


def distill(cfg: PretrainConfig, teacher: Teacher, teacher_sha256: str, device: torch.device) -> Objective:
    """Plain feature distillation."""
    latents = Latents(teacher, cfg.target, device)
    return Objective(
        module=Distiller(cfg, teacher.width),
        width=teacher.width,
        targets=latents,
        masks=whole,
        is_frozen=True,
        state=latents.state,
        measure=latents.measure,
        teacher=teacher,
        teacher_sha256=teacher_sha256,
    )

"""SALT stage 2: the target is the frozen teacher's latent of the whole image (arXiv 2509.24317, 2602.19322)."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn import functional

from train.config import TargetConfig
from train.teacher import Teacher

_MIN_DEVIATION = 1e-6


@dataclass
class SaltTargets:
    """Latents of the teacher, normalised.

    Attributes:
        teacher: frozen, on the device.
        cfg: normalisation.
        shift, scale: (D,) float32 for `channel`; `measure` sets them.

    """

    teacher: Teacher
    cfg: TargetConfig
    shift: torch.Tensor
    scale: torch.Tensor

    @property
    def width(self) -> int:
        """D of the targets."""
        return self.teacher.width

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 1, S, S) in 0..1 to targets (B, N, D) float32."""
        latents: torch.Tensor = self.teacher(images)
        if self.cfg.normalisation == "layernorm":
            return functional.layer_norm(latents, latents.shape[-1:])
        if self.cfg.normalisation == "channel":
            return (latents - self.shift) / self.scale
        return latents

    @torch.no_grad()
    def measure(self, micro_batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Set mean and deviation of every channel over the valid patches of (images, valid) micro batches.

        A teacher's latents can be a large constant plus a small signal (facts on URFM): without this the loss is
        spent on the constant.
        """
        if self.cfg.normalisation != "channel":
            return
        latents = [self.teacher(images).double()[valid] for images, valid in micro_batches]
        deviation, mean = torch.std_mean(torch.cat(latents), dim=0)
        self.shift, self.scale = mean.float(), deviation.clamp(min=_MIN_DEVIATION).float()


def salt_targets(teacher: Teacher, cfg: TargetConfig, device: torch.device) -> SaltTargets:
    """Targets of a teacher on a device, not measured yet."""
    shift = torch.zeros(teacher.width, device=device)
    return SaltTargets(teacher.to(device), cfg, shift, torch.ones_like(shift))

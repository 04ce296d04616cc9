"""A frozen teacher's latents of the whole image, normalised: the targets of `salt` and `distill`.

Dimensions: B images, S pixels a side, N patches, D channels of the latents.
"""

from collections.abc import Iterable

import torch
from torch.nn import functional

from train.config import TargetConfig
from train.objective import Look
from train.teacher import Teacher

_MIN_DEVIATION = 1e-6


class Latents:
    """Images to targets.

    Args:
        teacher: frozen, on the device.
        cfg: normalisation.
        device: of the teacher.

    Attributes:
        state: `shift` and `scale`, (D,) float32, for the normalisation `channel`; `measure` sets them in place.

    """

    def __init__(self, teacher: Teacher, cfg: TargetConfig, device: torch.device) -> None:
        self.teacher, self._cfg = teacher.to(device), cfg
        shift = torch.zeros(teacher.width, device=device)
        self.state = {"shift": shift, "scale": torch.ones_like(shift)}

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 1, S, S) in 0..1 to targets (B, N, D) float32."""
        latents: torch.Tensor = self.teacher(images).float()
        if self._cfg.normalisation == "layernorm":
            return functional.layer_norm(latents, latents.shape[-1:])
        if self._cfg.normalisation == "channel":
            return (latents - self.state["shift"]) / self.state["scale"]
        return latents

    @torch.no_grad()
    def measure(self, looks: Iterable[Look]) -> None:
        """Set mean and deviation of every channel over the valid patches.

        A teacher's latents can be a large constant plus a small signal, as URFM's are: without this the loss is spent
        on the constant.
        """
        if self._cfg.normalisation != "channel":
            return
        count, sums, squares = 0, self.state["shift"].double(), self.state["shift"].double()
        for images, valid in looks:  # sums in float64: the latents of large batches would not fit the device
            latents = self.teacher(images)[valid].double()
            count, sums, squares = (
                count + len(latents),
                sums + latents.sum(dim=0),
                squares + latents.square().sum(dim=0),
            )
        mean = sums / max(count, 1)
        variance = (squares - count * mean.square()) / max(count - 1, 1)
        self.state["shift"].copy_(mean)
        self.state["scale"].copy_(variance.clamp(min=_MIN_DEVIATION**2).sqrt())

"""SALT stage 1: the target is the patch's own pixels, normalised per patch (as in VideoMAE). Needs no teacher."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn import functional

_MIN_VARIANCE = 1e-6


@dataclass(frozen=True)
class PixelTargets:
    """Pixels of every patch.

    Attributes:
        patch: side in pixels.

    """

    patch: int

    @property
    def width(self) -> int:
        """D of the targets: pixels of a patch."""
        return self.patch**2

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 1, S, S) in 0..1 to targets (B, N, patch * patch) with mean 0 and variance 1 per patch."""
        pixels = functional.unfold(images, self.patch, stride=self.patch).transpose(1, 2)
        variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
        return (pixels - mean) / (variance + _MIN_VARIANCE).sqrt()

    def measure(self, micro_batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Nothing is measured: the normalisation is per patch."""

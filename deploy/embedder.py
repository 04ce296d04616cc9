"""What leaves the house: encoder and pooling as one module, so that nobody has to pool or normalise again.

Dimensions: B images, S pixels a side, N patches, D width.
"""

import torch
from torch import nn
from torch.nn import functional

from train.vit import Encoder


class Embedder(nn.Module):
    """An encoder with its normalisation and its pooling.

    Args:
        encoder: in eval mode from here on.

    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(requires_grad=False)

    def forward(self, images: torch.Tensor, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed squared frames.

        Args:
            images: (B, 1, S, S) float in 0..1, zero outside the region.
            regions: (B, 1, S, S) float, above 0 inside the region.

        Returns:
            embeddings (B, D), the mean of the tokens whose patch has a pixel inside the region (of all where none
            has), and tokens (B, N, D) in row-major order.

        """
        tokens = self.encoder(images)
        inside = (functional.max_pool2d(regions, self.encoder.patch).flatten(1) > 0).to(tokens.dtype)
        weight = torch.where(inside.sum(dim=1, keepdim=True) > 0, inside, torch.ones_like(inside))[..., None]
        return (tokens * weight).sum(dim=1) / weight.sum(dim=1), tokens

    def example(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and regions to trace and to check with: three, since tools take one for a constant."""
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(3, 1, self.encoder.image_size, self.encoder.image_size, generator=generator)
        regions = torch.zeros_like(images)
        regions[0, :, : self.encoder.patch], regions[1] = 1, 1  # the last is empty
        return images, regions

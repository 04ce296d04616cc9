"""Features of a frozen encoder: its patch tokens, averaged over the patches inside the region."""

import numpy as np
import torch
from rich.progress import track
from torch.nn import functional

from train.teacher import Teacher
from train.vit import Encoder

_BATCH = 64


@torch.no_grad()
def extract(encoder: Encoder | Teacher, squares: np.ndarray, description: str) -> np.ndarray:
    """Features (n, D) float32 of squares (n, 2, S, S) uint8, in their order.

    The mean runs over patches with a pixel inside the region, over all where there is none.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = encoder.to(device).eval()
    features = []
    for start in track(range(0, len(squares), _BATCH), description=f"features of {description}"):
        batch = torch.from_numpy(squares[start : start + _BATCH]).to(device) / 255.0
        tokens = encoder(batch[:, :1])
        inside = functional.adaptive_max_pool2d(batch[:, 1:], encoder.grid).flatten(1)
        weight = torch.where(inside.any(dim=1, keepdim=True), inside, torch.ones_like(inside))[..., None]
        features.append(((tokens * weight).sum(dim=1) / weight.sum(dim=1)).cpu().numpy())
    return np.concatenate(features)

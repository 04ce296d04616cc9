"""Networks of every kind as one: prepared pixels in, tokens out.

Dimensions: B images, C channels, S pixels a side, N patches in row-major order, D width.
"""

from importlib import import_module
from importlib.util import find_spec
from math import isqrt
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import nn
from torch.nn import functional

from sharding.recording import InputError
from train.teacher import Teacher
from train.vit import TimmModel

TransformersModel: TypeAlias = Any  # optional libraries have no types here
Library: TypeAlias = Any

PIXELS_SIDE = 32  # of the raw grey levels that are probed
_MAP_DIMS = 4  # (B, D, h, w)


class Tokens(NamedTuple):
    """What a network gives: patches (B, N, D) float32; cls (B, D) float32, or None where it has no class token."""

    patches: torch.Tensor
    cls: torch.Tensor | None


def from_map(features: torch.Tensor) -> torch.Tensor:
    """(B, D, h, w) -> (B, N, D)."""
    return features.flatten(2).transpose(1, 2)


class TimmNetwork(nn.Module):
    """A timm model of tokens, or of maps: convolutional, Swin, SAM."""

    def __init__(self, model: TimmModel) -> None:
        super().__init__()
        self.model = model
        self.num_prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.has_cls = getattr(model, "cls_token", None) is not None  # then it is the first
        is_vit = hasattr(model, "num_prefix_tokens")
        if not is_vit:  # convolutions on a CPU: 1.6 to 1.9 times the images a second
            model.to(memory_format=torch.channels_last)
        self.num_layers = len(getattr(model, "blocks", ())) if is_vit else 0  # that can be pooled over

    def forward(self, pixels: torch.Tensor) -> Tokens:
        """Tokens after the final norm, without registers."""
        features = self.model.forward_features(pixels)
        if features.ndim == _MAP_DIMS:
            is_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            return Tokens(features.flatten(1, 2) if is_last else from_map(features), None)
        return Tokens(features[:, self.num_prefix :], features[:, 0] if self.has_cls else None)

    def last_layers(self, pixels: torch.Tensor, count: int) -> list[torch.Tensor]:
        """Patch tokens of the last blocks, each after the final norm."""
        return cast(
            "list[torch.Tensor]",
            self.model.forward_intermediates(
                pixels, indices=count, norm=True, output_fmt="NLC", intermediates_only=True
            ),
        )


class TeacherNetwork(nn.Module):
    """A run's teacher as its student sees it: it normalises and resizes by itself."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, pixels: torch.Tensor) -> Tokens:
        """Latents on the student's grid."""
        return Tokens(self.teacher(pixels), None)


class PixelNetwork(nn.Module):
    """The image itself, 32 x 32, as one token: what any encoder has to beat."""

    def forward(self, pixels: torch.Tensor) -> Tokens:
        """Grey levels (B, 1, 1024)."""
        return Tokens(functional.interpolate(pixels, size=PIXELS_SIDE, mode="area").flatten(1)[:, None], None)


class MonaiNetwork(nn.Module):
    """MONAI's SwinTransformer; its last map, 1/32 of the image's side, gives the patches."""

    def __init__(self, model_args: dict[str, Any]) -> None:
        super().__init__()
        self.model = library("monai.networks.nets.swin_unetr", "monai").SwinTransformer(**model_args)

    def forward(self, pixels: torch.Tensor) -> Tokens:
        """Tokens of the last map, which MONAI normalises without learned weights."""
        return Tokens(from_map(self.model(pixels)[-1]), None)


class HuggingFaceNetwork(nn.Module):
    """A transformers vision model; what stands before the patches, but for the class token, is dropped."""

    def __init__(self, model: TransformersModel, grid: int | None) -> None:
        super().__init__()
        self.model = model
        self.grid = grid  # patches per side; None: the model gives maps
        self.num_layers = 0 if grid is None else int(getattr(model.config, "num_hidden_layers", 0))

    def forward(self, pixels: torch.Tensor) -> Tokens:
        """Tokens of the last hidden state."""
        hidden = self.model(pixel_values=pixels).last_hidden_state
        if hidden.ndim == _MAP_DIMS:
            return Tokens(from_map(hidden), None)
        patches = self._patches(hidden)
        return Tokens(patches, hidden[:, 0] if patches.shape[1] < hidden.shape[1] else None)

    def last_layers(self, pixels: torch.Tensor, count: int) -> list[torch.Tensor]:
        """Patch tokens of the last hidden states, as transformers gives them."""
        states = self.model(pixel_values=pixels, output_hidden_states=True).hidden_states
        return [self._patches(state) for state in states[-count:]]

    def _patches(self, hidden: torch.Tensor) -> torch.Tensor:
        num_patches = (self.grid or isqrt(hidden.shape[1])) ** 2
        return hidden[:, hidden.shape[1] - num_patches :]


Network = TimmNetwork | TeacherNetwork | PixelNetwork | MonaiNetwork | HuggingFaceNetwork


def library(module: str, package: str) -> Library:
    """Import an optional library.

    Raises:
        InputError: it is not installed; says how to.

    """
    if find_spec(package) is None:
        raise InputError(f'{package} is not installed, and this encoder needs it; pip install -e ".[probe]"')
    return import_module(module)

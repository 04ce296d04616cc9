"""The frozen teacher: any timm model, loaded whole, on the student's grid, outside engine and checkpoints.

Dimensions: B images, S' pixels a side, N patches of the student, D channels of the latents.
"""

import hashlib
from math import isqrt
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from sharding.recording import InputError
from train.backbone import Backbone, described_backbone, find_backbone
from train.config import TeacherConfig
from train.quantised import check_device, quantise_linears
from train.vit import TimmModel, timm_model

_MAP_DIMS = 4  # (B, D, h, w)
_TRIED_SIZE = 64  # pixels; enough to see what a convolutional model gives
_MAX_ENLARGED = 2  # times the image's side that a convolutional teacher may get


class Teacher(nn.Module):
    """A frozen timm model whose latents lie on the student's grid.

    The input is resized so that the model's own grid is the student's. Where that cannot be (a model of one input
    size, a convolutional model that would need more than twice the image), the latents are interpolated instead.

    Args:
        backbone: the model; it is changed in place.
        grid: patches per side of the student.
        layers: whose latents are averaged. In a ViT block outputs, each after the final norm, -1 the last. In a
            convolutional model -1 is the output of timm's `forward_features`, others are stages (`feature_info`).

    Attributes:
        grid: as given; N is its square.
        width: D.
        arch: timm name.

    Raises:
        InputError: neither a ViT nor convolutional, no such layer, or layers of different widths.

    """

    def __init__(self, backbone: Backbone, grid: int, layers: tuple[int, ...] = (-1,)) -> None:
        super().__init__()
        self.arch, self.grid, self.layers = backbone.arch, grid, layers
        self.model: TimmModel = backbone.model.eval().requires_grad_(requires_grad=False)
        self.autocast = False
        self.is_vit = hasattr(self.model, "num_prefix_tokens")
        if not self.is_vit:  # EfficientNet-Lite0 on a CPU core: 1.6 to 1.9 times the images a second
            self.model.to(memory_format=torch.channels_last)
        # by the coarsest layer: finer ones are reduced to the grid, none is enlarged
        self.input_size = backbone.image_size or grid * self._stride()
        if self.is_vit and backbone.image_size is None:
            self.model.set_input_size(img_size=self.input_size)
        channels = next((m.in_channels for m in self.model.modules() if isinstance(m, nn.Conv2d)), 3)
        for name, values in (("mean", backbone.mean), ("std", backbone.std)):
            self.register_buffer(name, torch.tensor(values[:channels]).view(1, -1, 1, 1), persistent=False)
        self.width = self._measured_width(channels)

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode, whatever a parent asks for."""
        return super().train(mode=False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Latents of the whole images, without prefix tokens.

        Args:
            images: (B, 1, S', S') float in 0..1, of any S'; normalised here by the teacher's own mean and deviation.

        Returns:
            (B, N, D) float32 in the student's patch order.

        """
        size = self.input_size if self.is_vit else min(self.input_size, _MAX_ENLARGED * images.shape[-1])
        if images.shape[-1] != size:
            images = functional.interpolate(images, size=size, mode="bilinear", antialias=True)
        pixels = (images - self.get_buffer("mean")) / self.get_buffer("std")
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast):
            latents = self._latents(pixels)
        on_grid = [self._on_grid(latent) for latent in latents]
        return on_grid[0] if len(on_grid) == 1 else torch.stack(on_grid).mean(dim=0)

    def _latents(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Of each layer, (B, n, D) of a ViT and (B, D, h, w) of a convolutional model."""
        layers = [layer for layer in self.layers if self.is_vit or layer != -1]
        latents: list[torch.Tensor] = []
        if len(layers) < len(self.layers):
            latents = [self.model.forward_features(pixels)]
        if layers:
            how = {"norm": True, "output_fmt": "NLC"} if self.is_vit else {}
            latents += self.model.forward_intermediates(
                pixels, indices=layers, intermediates_only=True, stop_early=True, **how
            )
        return latents

    def _on_grid(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, N, D) float32, interpolated where the teacher's grid is another."""
        latents = latents.float()
        if self.is_vit:
            side = isqrt(latents.shape[1])
            if side == self.grid:
                return latents
            latents = latents.transpose(1, 2).reshape(len(latents), -1, side, side)
        if latents.shape[-1] != self.grid:
            latents = functional.interpolate(latents, size=self.grid, mode="bilinear", antialias=True)
        return latents.flatten(2).transpose(1, 2).contiguous()

    def _stride(self) -> int:
        stages = self.model.feature_info
        outside = [layer for layer in self.layers if not -len(stages) <= layer < len(stages)]
        if outside:
            raise InputError(f"target.layers {outside}: teacher {self.arch} has {len(stages)}; count from 0 or from -1")
        return max(int(stages[layer]["reduction"]) for layer in self.layers)

    @torch.no_grad()
    def _measured_width(self, channels: int) -> int:
        """D, seen on one black image: what timm declares is not always what comes out."""
        side = self.input_size if self.is_vit else min(self.input_size, _TRIED_SIZE)
        try:
            latents = self._latents(torch.zeros(1, channels, side, side))
        except (AssertionError, RuntimeError) as error:  # windows, or positions of one size
            raise InputError(f"teacher {self.arch}: cannot take images of {side} x {side} pixels: {error}") from error
        if not self.is_vit and any(x.ndim != _MAP_DIMS or x.shape[2] != x.shape[3] for x in latents):
            raise InputError(
                f"teacher {self.arch}: gives features of shapes {[tuple(x.shape) for x in latents]}; "
                "a ViT or a convolutional model is needed"
            )
        widths = [x.shape[-1 if self.is_vit else 1] for x in latents]
        if len(set(widths)) > 1:
            raise InputError(
                f"target.layers {self.layers}: of teacher {self.arch} have widths {widths}; give layers of one width"
            )
        return widths[0]

    def set_precision(self, precision: Literal["fp32", "bf16", "int8", "fp8"]) -> None:
        """Choose the arithmetic of the forward pass, once; the output stays float32.

        Below fp32, weights of linear layers and convolutions are stored in bf16 and the rest runs under autocast.
        Autocast alone would cast frozen weights again in every pass (a ViT-Tiny took 1.26x as long); casting
        everything would leave the residual stream in bf16 (2.5x the error).
        """
        if precision == "fp32":
            return
        if precision != "bf16":
            check_device(precision, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
            quantise_linears(self.model, precision)
        for module in self.model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(torch.bfloat16)
        self.autocast = True


def load_teacher(cfg: TeacherConfig, grid: int, layers: tuple[int, ...] = (-1,)) -> tuple[Teacher, str]:
    """Load the teacher that a config names.

    Args:
        cfg: source, weights, layout and precision.
        grid: patches per side of the student.
        layers: see Teacher.

    Returns:
        the teacher on the CPU, and the sha256 of its weights as loaded: the same for every grid and precision.

    Raises:
        InputError: no such source, weights that do not fit, layers that it lacks, or a precision that the device lacks.

    """
    backbone = find_backbone(cfg)
    digest = weights_hash(backbone.model)
    teacher = Teacher(backbone, grid, layers)
    teacher.set_precision(cfg.precision)
    return teacher, digest


def random_teacher(arch: str, grid: int) -> Teacher:
    """A teacher of random weights, for smoke runs; see Teacher."""
    return Teacher(described_backbone(timm_model(arch, {}), arch), grid)


def weights_hash(model: nn.Module) -> str:
    """sha256 over names and values of all weights: the teacher's identity in a run's record."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

"""What every objective is made of; the objectives themselves lie in objectives/, one a file.

Dimensions: B images, S pixels a side, N patches, T targets of L tokens, D channels of the targets.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from train.config import PretrainConfig
from train.masks import Masks
from train.vit import Encoder, new_student

Look = tuple[torch.Tensor, torch.Tensor]  # images (B, 1, S, S) in 0..1, valid patches (B, N) bool


@dataclass(frozen=True)
class Objective:
    """What a run learns to predict, and the module that learns it.

    Attributes:
        module: student and what predicts from it; called with (images, masks of the image, targets of each mask,
            scale), it returns the loss and Statistics; with images alone the student's tokens of all patches.
        width: D of the targets.
        targets: images (B, 1, S, S) in 0..1 -> (B, N, D) float32, without gradient.
        masks: valid (B, N) bool and positions (B,) -> masks of each image.
        is_frozen: the targets depend on no step: they may be computed ahead, and losses of two steps compare.
        state: what a checkpoint must keep; changed in place.
        measure: called once on the first looks at the data, before the first step.
        after_step: called with the student and the step after each optimizer step.
        release: the encoder to export instead of the student, None for the student.
        teacher: the frozen model, for its cost; None where there is none.
        teacher_sha256: of its weights, `none` where there is none.

    """

    module: nn.Module
    width: int
    targets: Callable[[torch.Tensor], torch.Tensor]
    masks: Callable[[torch.Tensor, torch.Tensor], tuple[Masks, ...]]
    is_frozen: bool
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    measure: Callable[[Iterable[Look]], None] = lambda looks: None
    after_step: Callable[[Encoder, int], None] = lambda student, step: None
    release: Encoder | None = None
    teacher: nn.Module | None = None
    teacher_sha256: str = "none"


class Shape(NamedTuple):
    """Of the student: patches per side, pixels per side of a patch, and its width."""

    grid: int
    patch: int
    width: int


def shape_of(cfg: PretrainConfig) -> Shape:
    """The student's shape, without its weights."""
    with torch.device("meta"):
        student = new_student(cfg.student.arch, cfg.student.image_size, cfg.student.args)
    return Shape(student.grid, student.patch, student.width)

"""What a step costs: parameters, and floating point operations per image, from shapes alone.

Counted are matrix products and attention, 2 operations per multiply-add; norms, activations and the optimizer are not.
Backward counts as twice the forward, so a step is teacher + 3 x (student + predictor).
Dimensions: N patches, K of them shown, T targets of L tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from train.config import PretrainConfig
from train.vit import Encoder, Predictor, new_student

_PASSES = 3  # forward once, backward twice


@dataclass(frozen=True)
class Cost:
    """Of one part of the step.

    Attributes:
        params: weights of the part.
        flops: of its forward pass for one image and one mask.

    """

    params: int
    flops: int


@dataclass(frozen=True)
class PredictorShape:
    """Width and depth of a predictor's blocks, and the widths of what comes in and goes out."""

    width: int
    depth: int
    student_width: int
    latent_width: int


def costs_of(cfg: PretrainConfig, teacher: Any = None) -> dict[str, Cost | None]:  # noqa: ANN401 - any architecture
    """Costs of `student`, `predictor` and `teacher`, for the first mask of an image.

    Args:
        cfg: of the run; student and predictor are built on the meta device, which takes no memory.
        teacher: the frozen one, a module with `width`. Objective `ema` needs none: its teacher is the student on all
            patches. `pixel` has none.

    Returns:
        the three costs; the teacher's is None where there is no teacher.

    """
    with torch.device("meta"):
        student = new_student(cfg.student.arch, cfg.student.image_size)
    teacher = student if cfg.objective == "ema" else teacher
    shown = student.grid**2 if cfg.objective == "distill" else cfg.masks.context_tokens
    latent_width = student.patch**2 if teacher is None else int(teacher.width)
    return {
        "student": Cost(params_of(student), vit_flops(student, shown)),
        "predictor": _predictor_cost(cfg, student, shown, latent_width),
        "teacher": None if teacher is None else _teacher_cost(teacher, cfg.student.image_size),
    }


def step_flops(costs: dict[str, Cost | None], num_masks: int = 1) -> int:
    """Operations of a step per image: teacher + 3 x (student + predictor) for each mask that shares the teacher."""
    flops = {part: cost.flops for part, cost in costs.items() if cost is not None}
    return flops.get("teacher", 0) + _PASSES * num_masks * (flops["student"] + flops["predictor"])


def transformer_flops(tokens: int, width: int, depth: int, mlp_ratio: float = 4.0) -> int:
    """Forward of `depth` blocks over one sequence: query, key, value, output, the two MLP layers, attention.

    The number of heads does not matter: they share the width.
    """
    weights = (4 + 2 * mlp_ratio) * width**2
    return round(depth * (2 * tokens * weights + 4 * tokens**2 * width))


def predictor_flops(shape: PredictorShape, context: int, targets: tuple[int, int], *, joint: bool) -> int:
    """Forward of a predictor: one sequence of K + T L tokens where `joint`, else T sequences of K + L.

    Args:
        shape: its widths and depth.
        context: K.
        targets: (T, L).
        joint: all targets in one pass.

    """
    num, tokens = targets
    repeats, length = (1, context + num * tokens) if joint else (num, context + tokens)
    ends = 2 * shape.width * (repeats * context * shape.student_width + num * tokens * shape.latent_width)
    return ends + repeats * transformer_flops(length, shape.width, shape.depth)


def vit_flops(encoder: Encoder, shown: int) -> int:
    """Forward of a plain ViT that embeds all N patches and passes `shown` of them on; shapes come from the module."""
    vit: Any = encoder.vit
    patchify = 2 * encoder.grid**2 * vit.patch_embed.proj.weight.numel()
    mlp_ratio = vit.blocks[0].mlp.fc1.out_features / encoder.width
    tokens = shown + int(vit.num_prefix_tokens)
    return int(patchify) + transformer_flops(tokens, encoder.width, len(vit.blocks), mlp_ratio)


def counted_flops(module: nn.Module, *inputs: torch.Tensor) -> int:
    """Forward of any architecture: run it on these inputs and count what torch does."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # torch does not count its fused CPU attention
        module(*inputs)
    return int(counter.get_total_flops())


def params_of(module: nn.Module) -> int:
    """Number of weights, frozen ones too."""
    return sum(parameter.numel() for parameter in module.parameters())


def _teacher_cost(teacher: Any, image_size: int) -> Cost:  # noqa: ANN401
    """From shapes where it is a plain ViT, else counted on one grey image."""
    blocks = getattr(getattr(teacher, "vit", None), "blocks", None)
    if blocks is not None and hasattr(getattr(blocks[0], "mlp", None), "fc1"):
        return Cost(params_of(teacher), vit_flops(teacher, teacher.grid**2))
    device = next(teacher.parameters()).device
    return Cost(params_of(teacher), counted_flops(teacher, torch.zeros(1, 1, image_size, image_size, device=device)))


def _predictor_cost(cfg: PretrainConfig, student: Encoder, shown: int, latent_width: int) -> Cost:
    settings = cfg.predictor
    with torch.device("meta"):
        built = Predictor(student.grid, student.width, latent_width, **settings.model_dump(exclude={"mode"}))
    shape = PredictorShape(settings.width, settings.depth, student.width, latent_width)
    targets = (cfg.masks.num_targets, cfg.masks.target_tokens)
    return Cost(params_of(built), predictor_flops(shape, shown, targets, joint=settings.mode == "joint"))

"""What a step costs: parameters, and floating point operations per image, from shapes alone.

Counted are matrix products and attention, 2 operations per multiply-add; norms, activations and the optimizer are not.
Backward counts as twice the forward, so a step is teacher + 3 x (student + predictor).
Dimensions: N patches, K of them shown, T targets of L tokens.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from train.config import PretrainConfig
from train.model import LatentPredictor
from train.objectives.distill import Distiller

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


Costs: TypeAlias = dict[str, Cost | None]  # of student, predictor and teacher


@dataclass(frozen=True)
class PredictorShape:
    """Width and depth of a predictor's blocks, and the widths of what comes in and goes out."""

    width: int
    depth: int
    student_width: int
    latent_width: int


def costs_of(cfg: PretrainConfig, latent_width: int, teacher: Any = None) -> Costs:  # noqa: ANN401
    """Costs of `student`, `predictor` and `teacher`, for the first mask of an image.

    Args:
        cfg: of the run; student and predictor are built from it on the meta device, which takes no memory.
        latent_width: D of the targets.
        teacher: the frozen one, of any architecture; not for `ema`, whose teacher is the student on all patches.

    Returns:
        the three costs; the teacher's is None where there is no teacher.

    """
    with torch.device("meta"):
        module: Any = (Distiller if cfg.objective == "distill" else LatentPredictor)(cfg, latent_width)
    student = module.student
    teacher = student if cfg.objective == "ema" else teacher
    all_patches = student.grid**2
    if cfg.objective == "distill":
        shown = all_patches
        head = Cost(params_of(module.project), 2 * all_patches * student.width * latent_width)
    else:
        shown = cfg.masks.context_tokens
        shape = PredictorShape(cfg.predictor.width, cfg.predictor.depth, student.width, latent_width)
        targets = (cfg.masks.num_targets, cfg.masks.target_tokens)
        joint = cfg.predictor.mode == "joint"
        head = Cost(params_of(module.predictor), predictor_flops(shape, shown, targets, joint=joint))
    return {
        "student": Cost(params_of(student), vit_flops(student.vit, shown)),
        "predictor": head,
        "teacher": None if teacher is None else _teacher_cost(teacher, cfg.student.image_size),
    }


def step_flops(costs: Costs) -> int:
    """Operations of a step per image and mask: teacher + 3 x (student + predictor)."""
    flops = {part: cost.flops for part, cost in costs.items() if cost is not None}
    return flops.get("teacher", 0) + _PASSES * (flops["student"] + flops["predictor"])


def step_flops_of(cfg: PretrainConfig, latent_width: int, teacher: Any = None) -> int:  # noqa: ANN401
    """Operations of a step per image: further masks share the teacher's pass. Arguments as in costs_of."""
    total = step_flops(costs_of(cfg, latent_width, teacher))
    for mask in cfg.masks.more if cfg.objective != "distill" else ():
        costs = costs_of(cfg.model_copy(update={"masks": mask}), latent_width)
        total += step_flops(costs | {"teacher": None})
    return total


def describe_costs(costs: Costs) -> str:
    """One line per part."""
    return "\n".join(
        f"{part:9} {cost.params / 1e6:7.1f} M weights {cost.flops / 1e9:8.2f} GFLOP per image"
        for part, cost in costs.items()
        if cost is not None
    )


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


def vit_flops(vit: Any, shown: int) -> int:  # noqa: ANN401 - timm's attributes have no types
    """Forward of a plain timm ViT that embeds all N patches and passes `shown` of them on."""
    patchify = 2 * int(vit.patch_embed.num_patches) * int(vit.patch_embed.proj.weight.numel())
    mlp_ratio = vit.blocks[0].mlp.fc1.weight.shape[0] / vit.embed_dim
    tokens = shown + int(vit.num_prefix_tokens)
    return patchify + transformer_flops(tokens, int(vit.embed_dim), len(vit.blocks), mlp_ratio)


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
    """From shapes where there is a plain timm ViT inside, else counted on one grey image."""
    vit: Any = getattr(teacher, "vit", getattr(teacher, "model", None))
    blocks = getattr(vit, "blocks", None)
    if blocks is not None and hasattr(getattr(blocks[0], "mlp", None), "fc1"):
        return Cost(params_of(teacher), vit_flops(vit, int(vit.patch_embed.num_patches)))
    device = next(teacher.parameters()).device
    return Cost(params_of(teacher), counted_flops(teacher, torch.zeros(1, 1, image_size, image_size, device=device)))

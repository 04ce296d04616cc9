"""Costs of a step against the published arithmetic and against torch's own counter."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.conftest import ROOT
from train.config_file import load_config
from train.flops import (
    PredictorShape,
    costs_of,
    counted_flops,
    params_of,
    predictor_flops,
    step_flops,
    step_flops_of,
    transformer_flops,
    vit_flops,
)
from train.vit import Predictor, new_student

ENCODERS = {"Ti": (192, 12), "S": (384, 12), "B": (768, 12), "L": (1024, 24)}
PATCHES, PIXELS = 196, 256  # of a 224 pixel image and of a patch, one channel


def encoder(name: str, tokens: int) -> int:
    width, depth = ENCODERS[name]
    return 2 * PATCHES * PIXELS * width + transformer_flops(tokens, width, depth)


def step(student: str, teacher: str, tokens: tuple[int, int], depth: int, joint: bool, num_masks: int = 1) -> float:
    """GFLOP of a step per image and mask."""
    context, target = tokens
    width = 192 if student == "S" else 384
    shape = PredictorShape(width, depth, ENCODERS[student][0], ENCODERS[teacher][0])
    both = encoder(student, context) + predictor_flops(shape, context, (4, target), joint=joint)
    return (encoder(teacher, PATCHES) + 3 * num_masks * both) / num_masks / 1e9


@pytest.mark.parametrize(
    ("made", "published"),
    [  # context and target tokens as in I-JEPA at batch 1, then static ones; predictor 6 deep up to B, 12 for L
        (step("S", "S", (83, 34), 6, joint=False), 28.5),
        (step("B", "B", (83, 34), 6, joint=False), 110.1),
        (step("B", "B", (83, 34), 12, joint=False), 141.4),
        (step("L", "L", (83, 34), 12, joint=False), 338.6),
        (step("S", "S", (83, 34), 6, joint=True), 24.3),
        (step("B", "B", (83, 34), 6, joint=True), 93.6),
        (step("B", "B", (83, 34), 12, joint=True), 108.9),
        (step("L", "L", (83, 34), 12, joint=True), 305.9),
        (step("S", "S", (64, 35), 6, joint=True), 21.2),
        (step("B", "B", (64, 35), 6, joint=True), 81.9),
        (step("L", "L", (64, 35), 12, joint=True), 267.6),
        (step("B", "S", (64, 35), 6, joint=True), 56.2),
        (step("L", "B", (64, 35), 12, joint=True), 180.2),
        (step("L", "S", (64, 35), 12, joint=True), 154.5),
        (step("B", "B", (64, 35), 6, joint=True, num_masks=2), 64.6),
        (step("L", "L", (64, 35), 12, joint=True, num_masks=2), 206.5),
    ],
)
def test_the_published_table_is_reproduced(made: float, published: float) -> None:
    assert made == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("shown", [5, 16])
def test_an_encoder_costs_what_torch_counts(shown: int) -> None:
    student = new_student("vit_tiny_patch16_224", 64)
    ids = torch.arange(shown)[None]
    assert vit_flops(student.vit, shown) == pytest.approx(
        counted_flops(student, torch.rand(1, 1, 64, 64), ids), rel=1e-3
    )


def test_a_predictor_costs_what_torch_counts() -> None:
    predictor = Predictor(4, 192, 384, width=96, depth=2, num_heads=3)
    context, targets = torch.arange(6)[None], torch.arange(8).view(1, 4, 2)
    made = predictor_flops(PredictorShape(96, 2, 192, 384), 6, (4, 2), joint=True)
    assert made == pytest.approx(counted_flops(predictor, torch.rand(1, 6, 192), context, targets), rel=1e-3)


def test_an_encoder_that_is_no_vit_is_counted() -> None:
    convolution = nn.Conv2d(1, 8, 3, bias=False)
    assert counted_flops(convolution, torch.rand(1, 1, 10, 10)) == 2 * 8 * 8 * 9 * 8


@pytest.mark.parametrize(("objective", "teacher"), [("ema", True), ("pixel", False)])
def test_costs_of_a_config_take_no_memory_and_add_up(objective: str, teacher: bool) -> None:
    overrides = [f"objective={objective}", "teacher=null", "student.arch=vit_base_patch16_224"]
    cfg = load_config(ROOT / "train" / "configs" / "demo.yaml", overrides)
    costs: dict[str, Any] = costs_of(cfg, 768)
    assert costs["student"].params == pytest.approx(85.3e6, rel=0.01)
    assert (costs["teacher"] is not None) == teacher
    both = 3 * (costs["student"].flops + costs["predictor"].flops)
    assert step_flops(costs) - both == (costs["teacher"].flops if teacher else 0)
    twice = cfg.model_copy(update={"masks": cfg.masks.model_copy(update={"more": (cfg.masks,)})})
    assert step_flops_of(cfg, 768) == step_flops(costs)
    assert step_flops_of(twice, 768) - step_flops(costs) == both


def test_the_teacher_given_is_the_one_that_counts() -> None:
    cfg = load_config(ROOT / "train" / "configs" / "demo.yaml", [])
    teacher = new_student("vit_tiny_patch16_224", 112)
    costs: dict[str, Any] = costs_of(cfg, 192, teacher)
    assert costs["teacher"].params == params_of(teacher)
    assert costs["teacher"].flops == vit_flops(teacher.vit, 49)


def test_a_teacher_that_is_no_vit_is_counted() -> None:
    cfg = load_config(ROOT / "train" / "configs" / "demo.yaml", [])
    teacher = nn.Conv2d(1, 8, 16, 16, bias=False)
    costs: dict[str, Any] = costs_of(cfg, 8, teacher)
    assert costs["teacher"].flops == 2 * 49 * 8 * 256

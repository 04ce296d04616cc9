"""Config, draws, model, teacher, schedules."""

from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.recording import InputError
from tests.conftest import ROOT
from train.config import MaskConfig, OptimConfig, TargetConfig
from train.config_file import load_config, save_config
from train.draws import uniforms
from train.engine import deepspeed_config
from train.latents import Latents
from train.masks import check_masks, draw_masks
from train.model import LatentPredictor
from train.objective import shape_of
from train.objectives.pixel import patch_pixels
from train.schedule import due, learning_rate, weight_decay
from train.teacher import random_teacher
from train.vit import load_encoder, load_strictly, new_student, save_encoder

ARCH = "vit_tiny_patch16_224"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "train" / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_load_and_survive_the_round_trip(path: Path, tmp_path: Path) -> None:
    cfg = load_config(path, ["run.micro_batch=7"])
    save_config(cfg, tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml", []) == cfg
    assert cfg.run.micro_batch == 7
    check_masks(cfg.masks, shape_of(cfg).grid)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("masks.nun_targets=3", "masks.nun_targets: unknown key; did you mean num_targets?"),
        ("optim.lr=fast", "optim.lr: Input should be a valid number"),
        ("optim.steps=0", "optim.steps: Input should be greater than or equal to 1, not 0"),
        ("teacher=null", "objective is salt and teacher is None; salt and distill need a teacher"),
        ("lr", "give section.key=value"),
    ],
)
def test_a_wrong_setting_ends_in_one_sentence(override: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        load_config(ROOT / "train" / "configs" / "demo.yaml", [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_config_says_where_examples_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; train/configs has examples"):
        load_config(tmp_path / "none.yaml", [])


@given(start=st.integers(0, 10**9), purpose=st.integers(0, 20), seed=st.integers(0, 2**31))
@settings(max_examples=30)
def test_draws_depend_on_the_position_alone(start: int, purpose: int, seed: int) -> None:
    positions = torch.arange(start, start + 8)
    whole = uniforms(seed, purpose, positions, 5)
    assert torch.equal(torch.cat([uniforms(seed, purpose, part, 5) for part in positions.split(3)]), whole)
    assert ((whole >= 0) & (whole < 1)).all()


def test_draws_are_uniform_and_independent_between_purposes() -> None:
    draws = uniforms(0, 1, torch.arange(20_000), 2)
    assert abs(draws.mean() - 0.5) < 0.01
    assert abs(draws.var() - 1 / 12) < 0.005
    other = uniforms(0, 2, torch.arange(20_000), 1)
    assert abs(torch.corrcoef(torch.stack([draws[:, 0], draws[:, 1]]))[0, 1]) < 0.03
    assert abs(torch.corrcoef(torch.stack([draws[:, 0], other[:, 0]]))[0, 1]) < 0.03


def test_shown_tokens_equal_the_full_forward_when_all_are_shown() -> None:
    student = new_student(ARCH, 64).eval()
    images = torch.rand(2, 1, 64, 64)
    ids = torch.arange(16).expand(2, -1)
    assert torch.allclose(student(images, ids), student(images), atol=1e-5)
    normed = (images - 0.5) / 0.5
    assert torch.allclose(student.vit.forward_features(normed), student(images), atol=1e-5)


def test_the_student_does_not_see_hidden_patches() -> None:
    student = new_student(ARCH, 64).eval()
    images = torch.rand(1, 1, 64, 64)
    shown = torch.tensor([[0, 1, 2, 3]])
    changed = images.clone()
    changed[..., 16:, :] = 0.3
    assert torch.equal(student(images, shown), student(changed, shown))


def test_an_encoder_folder_loads_here_and_in_timm_and_refuses_a_part(tmp_path: Path) -> None:
    student = new_student(ARCH, 64).eval()
    save_encoder(student, tmp_path, {"objective": "salt"})
    images = torch.rand(2, 1, 64, 64)
    assert torch.equal(load_encoder(tmp_path).eval()(images), student(images))
    stock = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.allclose(stock.forward_features((images - 0.5) / 0.5), student(images), atol=1e-5)
    weights = student.vit.state_dict()
    del weights["norm.weight"]
    with pytest.raises(InputError, match=r"1 missing \['norm.weight'\].*all \d+ must fit"):
        load_strictly(student.vit, weights, "here")


def test_channel_targets_have_mean_0_and_deviation_1_inside_the_region() -> None:
    teacher = random_teacher(ARCH, 4)
    targets = Latents(teacher, TargetConfig(), torch.device("cpu"))
    images, valid = torch.rand(8, 1, 64, 64), torch.ones(8, 16, dtype=torch.bool)
    targets.measure([(images, valid)])
    values = targets(images).flatten(0, 1)
    assert values.mean(0).abs().max() < 1e-4
    assert (values.std(0) - 1).abs().max() < 1e-3


def test_pixel_targets_are_the_patches_in_patch_order() -> None:
    images = torch.rand(1, 1, 32, 32)
    targets = patch_pixels(images, 16)
    second = images[0, 0, :16, 16:].flatten()
    assert torch.allclose(targets[0, 1], (second - second.mean()) / second.std(), atol=1e-4)


def test_the_loss_is_the_weighted_mean_over_real_targets() -> None:
    cfg = load_config(ROOT / "train" / "configs" / "demo.yaml", ["student.image_size=64", "masks.target_tokens=2"])
    cfg = cfg.model_copy(update={"masks": MaskConfig(context_tokens=6, target_tokens=2, min_patches=1)})
    module = LatentPredictor(cfg, latent_width=8).eval()
    valid = torch.ones(3, 16, dtype=torch.bool)
    valid[2, 3:] = False
    masks = draw_masks(valid, torch.arange(3), cfg.masks, seed=0)
    images, latents = torch.rand(3, 1, 64, 64), torch.randn(3, 16, 8)
    wanted = torch.stack([latents[image][masks.target_ids[image]] for image in range(3)])
    loss, _ = module(images, (masks,), (wanted,), 1 / masks.target_weight.sum())
    predicted = module.predictor(module.student(images, masks.context_ids), masks.context_ids, masks.target_ids)
    total, count = 0.0, 0.0
    for image, target, token in torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(2)):
        if masks.target_weight[image, target, token] > 0:
            truth = latents[image, masks.target_ids[image, target, token]]
            total += float(torch.nn.functional.smooth_l1_loss(predicted[image, target, token].detach(), truth))
            count += 1
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_schedules_start_peak_and_end_where_they_should() -> None:
    cfg = OptimConfig(steps=100, warmup_steps=10, start_lr=1e-6, lr=1e-3, final_lr=1e-5, weight_decay=(0.04, 0.4))
    assert learning_rate(0, cfg) == 1e-6
    assert learning_rate(10, cfg) == pytest.approx(1e-3)
    assert learning_rate(99, cfg) == 1e-5
    assert (weight_decay(0, cfg), weight_decay(99, cfg)) == (pytest.approx(0.04), 0.4)
    assert [step for step in range(10) if due(step, 4, 10)] == [3, 7, 9]


@pytest.mark.parametrize(("world", "accumulation"), [(1, 2), (2, 1), (3, 1)])
def test_deepspeed_config_follows_ours(world: int, accumulation: int) -> None:
    cfg = load_config(ROOT / "train" / "configs" / "demo.yaml", [])
    made = deepspeed_config(cfg, world)
    assert made["gradient_accumulation_steps"] == accumulation
    assert made["zero_optimization"]["stage"] == 1

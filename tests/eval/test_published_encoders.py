"""Published key layouts: random weights written as their authors write them give what another implementation gives.

The reference is a small transformers (or MONAI) model of random weights, translated here into the published names; timm
models stand in where transformers is not installed.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from eval.encoders import open_encoder
from eval.published_encoders import PUBLISHED, encoders_table
from eval.ultrabench import BENCH_SETS, sets_table
from sharding.recording import InputError
from tests.conftest import ROOT
from train.vit import timm_model

Weights = dict[str, torch.Tensor]
DEPTH, WIDTH, HEADS, SIZE = 4, 48, 2, 64
SMALL = {"depth": DEPTH, "embed_dim": WIDTH, "num_heads": HEADS, "img_size": SIZE}
CONFIG = {
    "num_hidden_layers": DEPTH, "hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 4 * WIDTH,
    "image_size": SIZE, "layer_norm_eps": 1e-6,
}  # fmt: skip
SAM = {"window_size": 3, "global_attn_indexes": (1, 3)}
MONAI = {
    "in_chans": 3, "embed_dim": 8, "window_size": (4, 4), "patch_size": (2, 2), "depths": (1, 1, 2, 1),
    "num_heads": (1, 2, 2, 4), "spatial_dims": 2, "use_v2": True,
}  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give a row of the table another depth, width and size; what else it says stays."""

    def shrink(name: str, args: dict[str, Any], size: int = SIZE) -> None:
        row = PUBLISHED[name]
        monkeypatch.setitem(PUBLISHED, name, replace(row, args=row.args | args, size=size))

    return shrink


def randomised(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def prepared(name: str, images: torch.Tensor) -> torch.Tensor:
    row = PUBLISHED[name]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (row.mean, row.std))
    return (images.expand(-1, 3, -1, -1) - mean) / std


def check(name: str, path: Path, expected: torch.Tensor, images: torch.Tensor, cls: torch.Tensor | None) -> None:
    encoder = open_encoder(name, path)
    tokens = encoder(images)
    assert expected.std() > 0.1
    assert torch.allclose(tokens.patches, expected, atol=1e-4)
    assert (encoder.grid**2, encoder.width, encoder.name) == (*expected.shape[1:], name)
    if cls is None:
        assert tokens.cls is None
    else:
        assert tokens.cls is not None
        assert torch.allclose(tokens.cls, cls, atol=1e-4)


VIT_WORDS = (
    ("embeddings.cls_token", "cls_token"), ("embeddings.register_tokens", "storage_tokens"),
    ("embeddings.position_embeddings", "pos_embed"), ("embeddings.mask_token", "mask_token"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"), ("embeddings.patch_embeddings", "patch_embed.proj"),
    ("model.layer.", "blocks."), ("layers.", "blocks."), ("attention.o_proj", "attn.proj"),
    ("layernorm_before", "norm1"), ("layernorm_after", "norm2"), ("layernorm", "norm"),
    ("lambda_1", "gamma_1"), ("lambda_2", "gamma_2"), ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"), ("mlp.up_proj", "mlp.fc1"), ("mlp.down_proj", "mlp.fc2"),
    ("shared_position_bias.relative_position_bias_table", "rel_pos_bias.relative_position_bias_table"),
)  # fmt: skip


def reworded(weights: Weights, words: tuple[tuple[str, str], ...]) -> Weights:
    for theirs, published in words:
        weights = {key.replace(theirs, published): value for key, value in weights.items()}
    return weights


def as_vit(weights: Weights) -> Weights:
    """Transformers' words for a ViT in those of the original code, with query, key and value in one."""
    words = reworded(weights, VIT_WORDS)
    for block in sorted({key.partition(".attention.")[0] for key in words if ".attention." in key}):
        for last in ("weight", "bias"):
            parts = {p: words.pop(f"{block}.attention.{p}_proj.{last}", None) for p in "qkv"}
            if last == "bias" and parts["k"] is None:  # BEiT and DINOv3 have none for the key
                words |= {f"{block}.attn.{p}_bias": cast("torch.Tensor", parts[p]) for p in "qv"}
            else:
                words[f"{block}.attn.qkv.{last}"] = torch.cat([cast("torch.Tensor", parts[p]) for p in "qkv"])
    return words


def as_mae(weights: Weights) -> Weights:
    more = {"mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 17, 8)}
    return (
        weights | more | {"decoder_embed.weight": torch.zeros(8, WIDTH), "decoder_blocks.0.norm1.bias": torch.zeros(8)}
    )


def as_urfm(weights: Weights) -> dict[str, object]:
    ema = {f"module.{key}": value for key, value in as_mae(weights).items()}
    raw = {key: torch.zeros_like(value) for key, value in ema.items()}
    return {"model": "mae_vit_base_patch16_dec768d8b", "state_dict": raw, "ema_state_dict": ema}


def as_ultrafedfm(weights: Weights) -> dict[str, object]:
    return {"model": as_mae(weights), "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=1e-3)}


def as_tinyusfm(weights: Weights) -> Weights:
    return {f"model.{key}": value for key, value in weights.items()} | {"model.head.bias": torch.zeros(2)}


def as_biomedclip(weights: Weights) -> Weights:
    text = {"text.transformer.embeddings.word_embeddings.weight": torch.zeros(3, 4), "logit_scale": torch.zeros(())}
    head = {"visual.head.proj.weight": torch.zeros(5, WIDTH)}
    return {f"visual.trunk.{key}": value for key, value in weights.items()} | text | head


def as_ijepa(weights: Weights) -> dict[str, object]:
    named = {f"module.{key}": value for key, value in weights.items()}
    other = {key: torch.zeros_like(value) for key, value in named.items()}
    return {
        "encoder": named,
        "predictor": other,
        "opt": {"state": {}},
        "scaler": None,
        "target_encoder": other,
        "epoch": 300,
    }


VITS = [
    ("urfm", as_urfm), ("usf-mae", as_mae), ("ultrafedfm", as_ultrafedfm), ("tinyusfm", as_tinyusfm),
    ("biomedclip", as_biomedclip), ("i-jepa", as_ijepa),
]  # fmt: skip


@pytest.mark.parametrize(("name", "published"), VITS)
def test_plain_vits_give_what_transformers_gives(
    name: str, published: Callable[[Weights], Any], small: Callable[..., None], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference; pip install -e .[probe]")
    patch, size = (14, 56) if name == "i-jepa" else (16, SIZE)
    config = CONFIG | {"patch_size": patch, "image_size": size}
    if name == "i-jepa":
        model = transformers.IJepaModel(transformers.IJepaConfig(**config), add_pooling_layer=False)
    else:
        model = transformers.ViTModel(transformers.ViTConfig(**config), add_pooling_layer=False)
    torch.save(published(as_vit(randomised(model).state_dict())), tmp_path / "w.pth")
    small(name, SMALL | {"img_size": size}, size)
    images = torch.rand(2, 1, size, size)
    with torch.no_grad():
        hidden = model(pixel_values=prepared(name, images)).last_hidden_state
    first = 0 if name == "i-jepa" else 1
    check(name, tmp_path / "w.pth", hidden[:, first:], images, hidden[:, 0] if first else None)


@pytest.mark.parametrize(("name", "published"), VITS)
def test_plain_vits_give_what_timm_gives(
    name: str, published: Callable[[Weights], Any], small: Callable[..., None], tmp_path: Path
) -> None:
    small(name, SMALL | {"img_size": 56 if name == "i-jepa" else SIZE}, 56 if name == "i-jepa" else SIZE)
    row = PUBLISHED[name]
    model = randomised(timm_model(row.arch, row.args))
    torch.save(published(model.state_dict()), tmp_path / "w.pth")
    images = torch.rand(2, 1, row.size, row.size)
    with torch.no_grad():
        hidden = model.forward_features(prepared(name, images))
    first = 0 if name == "i-jepa" else 1
    check(name, tmp_path / "w.pth", hidden[:, first:], images, hidden[:, 0] if first else None)


def test_usfm_gives_what_transformers_beit_gives(small: Callable[..., None], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference; pip install -e .[probe]")
    config = transformers.BeitConfig(
        **CONFIG, use_shared_relative_position_bias=True, use_mean_pooling=False, layer_scale_init_value=0.5
    )
    model = randomised(transformers.BeitModel(config, add_pooling_layer=False))
    more = {"mask_token": torch.zeros(1, 1, WIDTH), "rel_pos_bias.relative_position_index": torch.zeros(17, 17)}
    torch.save(as_vit(model.state_dict()) | more, tmp_path / "USFM_latest.pth")
    small("usfm", SMALL)
    images = torch.rand(2, 1, SIZE, SIZE)
    with torch.no_grad():
        hidden = model(pixel_values=prepared("usfm", images)).last_hidden_state
    check("usfm", tmp_path / "USFM_latest.pth", hidden[:, 1:], images, hidden[:, 0])


def test_dinov3_gives_what_transformers_gives(small: Callable[..., None], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference; pip install -e .[probe]")
    config = CONFIG | {"layer_norm_eps": 1e-5}
    model = randomised(transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**config, num_register_tokens=4)))
    weights = as_vit(model.state_dict())
    for number in range(DEPTH):  # Meta stores one bias of three parts, and a mask that silences the key's
        start = f"blocks.{number}.attn"
        query, value = weights.pop(f"{start}.q_bias"), weights.pop(f"{start}.v_bias")
        weights[f"{start}.qkv.bias"] = torch.cat([query, torch.full_like(query, 7.0), value])
        weights[f"{start}.qkv.bias_mask"] = torch.cat([torch.ones(WIDTH), torch.zeros(WIDTH), torch.ones(WIDTH)])
    weights["mask_token"], weights["rope_embed.periods"] = torch.zeros(1, WIDTH), torch.zeros(6)
    torch.save(weights, tmp_path / "dinov3.pth")
    small("dinov3", SMALL)
    images = torch.rand(2, 1, SIZE, SIZE)
    with torch.no_grad():
        hidden = model(pixel_values=prepared("dinov3", images)).last_hidden_state
    check("dinov3", tmp_path / "dinov3.pth", hidden[:, 5:], images, hidden[:, 0])


SAM_WORDS = (
    ("vision_encoder.", "backbone."), ("layer_norm1", "ln1"), ("layer_norm2", "ln2"),
    ("mlp.lin1", "ffn.layers.0.0"), ("mlp.lin2", "ffn.layers.1"),
    ("neck.conv1", "channel_reduction.0"), ("neck.ln1", "channel_reduction.1"),
    ("neck.conv2", "channel_reduction.2"), ("neck.ln2", "channel_reduction.3"),
)  # fmt: skip


def test_ultrasam_gives_what_transformers_sam_gives(small: Callable[..., None], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference; pip install -e .[probe]")
    config = {key: value for key, value in CONFIG.items() if key != "intermediate_size"} | {"mlp_dim": 4 * WIDTH}
    sizes = {"output_channels": 24, "window_size": 3, "global_attn_indexes": [1, 3]}
    model = randomised(transformers.SamVisionModel(transformers.SamVisionConfig(**config, **sizes)))
    weights = reworded(model.state_dict(), SAM_WORDS)
    weights |= {"prompt_encoder.label_encoder.weight": torch.zeros(2), "bbox_head.bias": torch.zeros(2)}
    torch.save({"meta": {"epoch": 1}, "state_dict": weights}, tmp_path / "UltraSam.pth")
    small("ultrasam", SMALL | SAM | {"neck_chans": 24})
    images = torch.rand(2, 1, SIZE, SIZE)
    with torch.no_grad():
        maps = model(pixel_values=prepared("ultrasam", images)).last_hidden_state
    check("ultrasam", tmp_path / "UltraSam.pth", maps.flatten(2).transpose(1, 2), images, None)


def test_echocare_gives_what_monai_gives(small: Callable[..., None], tmp_path: Path) -> None:
    swin = pytest.importorskip("monai.networks.nets.swin_unetr", reason="the reference; pip install -e .[probe]")
    model = randomised(swin.SwinTransformer(**MONAI))
    torch.save(model.state_dict() | {"mask_token": torch.zeros(1, 8)}, tmp_path / "echocare_encoder.pth")
    small("echocare", MONAI, 128)
    images = torch.rand(2, 1, 128, 128)
    with torch.no_grad():
        maps = model(images.expand(-1, 3, -1, -1))[4]
    check("echocare", tmp_path / "echocare_encoder.pth", maps.flatten(2).transpose(1, 2), images, None)


TIMM_WORDS = {  # of the published file, from timm's
    "dinov3": (("reg_token", "storage_tokens"), ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma")),
    "ultrasam": (
        ("patch_embed.proj", "patch_embed.projection"), ("blocks.", "layers."), ("norm1", "ln1"), ("norm2", "ln2"),
        ("mlp.fc1", "ffn.layers.0.0"), ("mlp.fc2", "ffn.layers.1"), ("neck.", "channel_reduction."),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["dinov3", "ultrasam", "usfm"])
def test_other_layouts_give_what_timm_gives(name: str, small: Callable[..., None], tmp_path: Path) -> None:
    small(name, SMALL | (SAM if name == "ultrasam" else {}))
    row = PUBLISHED[name]
    model = randomised(timm_model(row.arch, row.args))
    weights = reworded(model.state_dict(), TIMM_WORDS.get(name, ()))
    if name == "ultrasam":
        weights = {f"backbone.{key}": value for key, value in weights.items()}
    if name == "dinov3":
        for key in [key for key in weights if key.endswith("q_bias")]:
            value = weights.pop(key.replace("q_bias", "v_bias"))
            weights[key.replace("q_bias", "qkv.bias")] = torch.cat([weights.pop(key), torch.zeros(WIDTH), value])
    torch.save(weights, tmp_path / "w.pth")
    images = torch.rand(2, 1, SIZE, SIZE)
    with torch.no_grad():
        hidden = model.forward_features(prepared(name, images))
    if name == "ultrasam":
        check(name, tmp_path / "w.pth", hidden.flatten(2).transpose(1, 2), images, None)
    else:
        check(name, tmp_path / "w.pth", hidden[:, model.num_prefix_tokens :], images, hidden[:, 0])


@pytest.mark.parametrize("name", [name for name, row in PUBLISHED.items() if not row.not_loadable])
def test_a_file_of_something_else_is_refused_naming_keys(name: str, small: Callable[..., None], tmp_path: Path) -> None:
    row = PUBLISHED[name]
    if row.layout == "monai":
        pytest.importorskip("monai", reason="builds the model; pip install -e .[probe]")
        small(name, MONAI, 128)
    elif row.layout != "efficientnet_lite":
        small(name, SMALL)
    torch.save({"stranger.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=rf"other.pth of encoder {name} .*: \d+ missing \['.*all \d+ must fit"):
        open_encoder(name, tmp_path / "other.pth")


def test_a_partial_file_is_refused_naming_what_is_missing(small: Callable[..., None], tmp_path: Path) -> None:
    small("urfm", SMALL)
    weights = timm_model("vit_base_patch16_224", SMALL).state_dict()
    torch.save(as_urfm({k: v for k, v in weights.items() if k != "blocks.2.norm1.bias"}), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"1 missing \['blocks.2.norm1.bias'\], 0 unknown"):
        open_encoder("urfm", tmp_path / "w.pth")


@pytest.mark.parametrize("name", [name for name, row in PUBLISHED.items() if not (row.not_loadable or row.package)])
def test_without_a_file_the_message_says_which_and_whence(name: str) -> None:
    with pytest.raises(InputError, match=rf"encoder {name}: needs its weights, as {name}=FILE; FILE is .* from "):
        open_encoder(name)


def test_what_no_library_has_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"encoder samus: cannot be loaded: it is a SAM ViT with a CNN branch"):
        open_encoder("samus", tmp_path / "any.pth")


def test_a_row_that_claims_a_proof_has_one_here() -> None:
    proven = {name for name, _ in VITS} | {"usfm", "dinov3", "ultrasam", "echocare"}
    same_code = {"urfm-l": "urfm", "dinov3-l": "dinov3"}  # another depth and width of a proven row
    for name, row in PUBLISHED.items():
        shown = name in proven or same_code.get(name) in proven or name == "efficientnet-lite0"
        assert bool(row.proven) == shown == (not row.not_loadable), name


@pytest.mark.parametrize(("name", "table"), [("encoders", encoders_table()), ("sets", sets_table())])
def test_the_readme_s_tables_are_those_of_the_code(name: str, table: str) -> None:
    text = (ROOT / "README.md").read_text()
    shown = text.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- /{name} -->")[0]
    assert shown == table, f"put what {name}_table() returns between the marks in README.md"
    assert len(table.splitlines()) == 2 + len({"encoders": PUBLISHED, "sets": BENCH_SETS}[name])

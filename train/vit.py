"""Vision transformers. The only importer of timm.

Dimensions: B images, S pixels a side, N patches, K patches that are shown, T targets of L tokens, D width.
"""

import json
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sharding.recording import InputError
from train.tensor_file import file_sha256


def _define_missing_torchvision_operators() -> None:
    """Let a CUDA build of torchvision import beside a CPU build of torch: it registers fakes for two operators.

    The operators themselves detect boxes; nothing here calls them.
    """
    for name in ("torchvision::nms", "torchvision::qnms"):
        if not hasattr(torch.ops.torchvision, name.partition("::")[2]):
            torch.library.define(name, "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_define_missing_torchvision_operators()
import timm  # noqa: E402
from timm.layers import build_sincos2d_pos_embed  # noqa: E402
from timm.models import save_for_hf  # noqa: E402
from timm.models.vision_transformer import Block, VisionTransformer  # noqa: E402

TimmModel: TypeAlias = Any  # the attributes of timm's models have no types


def is_timm_name(name: str) -> bool:
    """Whether timm knows a model of that name, with or without a `.tag`."""
    known: bool = timm.is_model(name)
    return known


def timm_model(arch: str, model_args: dict[str, Any]) -> TimmModel:
    """Build a timm model without its classifier.

    Raises:
        InputError: unknown name or arguments, or with `pretrained=True` nothing to download.

    """
    try:
        return timm.create_model(arch, num_classes=0, **model_args)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise InputError(f"encoder {arch} with {model_args}: timm cannot build it: {error}") from error


class Encoder(nn.Module):
    """A timm model that maps grey images to patch tokens.

    Args:
        arch: timm name.
        model_args: keyword arguments of timm.create_model that define the model; stored with its weights.
        mean: grey level in 0..1 that becomes 0.
        std: deviation that becomes 1.

    """

    def __init__(self, arch: str, model_args: dict[str, Any], mean: float = 0.5, std: float = 0.5) -> None:
        super().__init__()
        self.arch, self.model_args = arch, model_args
        self.mean, self.std = mean, std
        self.checkpoint_activations = False
        self.vit = timm_model(arch, model_args)
        if not isinstance(self.vit, VisionTransformer):
            raise InputError(
                f"encoder {arch}: is a {type(self.vit).__name__}; a plain timm VisionTransformer is needed"
            )

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return int(self.vit.patch_embed.patch_size[0])

    @property
    def grid(self) -> int:
        """Patches per side; N is its square."""
        return int(self.vit.patch_embed.grid_size[0])

    @property
    def image_size(self) -> int:
        """S."""
        return self.grid * self.patch

    @property
    def width(self) -> int:
        """D."""
        return int(self.vit.embed_dim)

    def forward(self, images: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens of all patches, or of some.

        Args:
            images: (B, 1, S', S') float in 0..1; resized to S where S' differs.
            ids: (B, K) int64 patches to show; the others never enter a block. None shows all.

        Returns:
            (B, N or K, D), after the final norm, without prefix tokens.

        """
        if images.shape[-1] != self.image_size:
            images = functional.interpolate(images, size=self.image_size, mode="bilinear", antialias=True)
        channels = self.vit.patch_embed.proj.in_channels
        tokens = self.vit.patch_embed(((images - self.mean) / self.std).expand(-1, channels, -1, -1))
        tokens = self.vit._pos_embed(tokens)
        num_prefix = self.vit.num_prefix_tokens
        if ids is not None:
            shown = tokens[:, num_prefix:].gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))
            tokens = torch.cat([tokens[:, :num_prefix], shown], dim=1)
        tokens = self.vit.norm_pre(tokens)
        for block in self.vit.blocks:
            if self.checkpoint_activations and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        normed: torch.Tensor = self.vit.norm(tokens)[:, num_prefix:]
        return normed


def new_student(arch: str, image_size: int, args: dict[str, Any] | None = None) -> Encoder:
    """A randomly initialised student: 1 channel, no class token, the final norm on the tokens.

    Positions start at the fixed 2-D sine-cosine code and are learned from there.

    Args:
        arch: timm name of a plain vision transformer.
        image_size: S in pixels.
        args: further keyword arguments of the timm model, such as patch_size, depth or embed_dim.

    Raises:
        InputError: timm cannot build it, or S is no multiple of the patch.

    """
    model_args = {
        "img_size": image_size,
        "in_chans": 1,
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,  # else timm moves the final norm behind the pooling
    }
    student = Encoder(arch, model_args | (args or {}))
    if student.image_size != image_size:
        raise InputError(f"student.image_size {image_size}: is no multiple of the patch of {student.patch} pixels")
    with torch.no_grad():  # registers, where args ask for them, come first
        student.vit.pos_embed[:, -(student.grid**2) :].copy_(position_code(student.grid, student.width))
    return student


def position_code(grid: int, width: int) -> torch.Tensor:
    """Fixed 2-D sine-cosine code of a square grid, (1, N, width) float32."""
    code: torch.Tensor = build_sincos2d_pos_embed([grid, grid], dim=width)
    return code[None]


class Predictor(nn.Module):
    """Context tokens to latents at the targets.

    Args:
        grid: patches per side.
        student_width: D of the student.
        latent_width: D of the targets.
        width, depth, num_heads: of its own blocks.
        mode: `joint`: one packed sequence of context and the mask tokens of all targets, which see each other's
            positions. `per_block`: each target by itself after the context, as in I-JEPA.

    """

    def __init__(
        self,
        grid: int,
        student_width: int,
        latent_width: int,
        *,
        width: int,
        depth: int,
        num_heads: int,
        mode: Literal["joint", "per_block"] = "joint",
    ) -> None:
        super().__init__()
        self.is_joint = mode == "joint"
        self.embed = nn.Linear(student_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, num_heads, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, latent_width)
        self.register_buffer("positions", position_code(grid, width), persistent=False)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, context: torch.Tensor, context_ids: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
        """Predict; context (B, K, D), context_ids (B, K), target_ids (B, T, L) -> (B, T, L, D of the targets)."""
        shown = self.embed(context) + self._positions(context_ids)
        if self.is_joint:
            return self._predict(shown, target_ids.flatten(1)).view(*target_ids.shape, -1)
        repeated = shown.repeat_interleave(target_ids.shape[1], dim=0)
        return self._predict(repeated, target_ids.flatten(0, 1)).view(*target_ids.shape, -1)

    def _predict(self, shown: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Context (b, K, width) and ids (b, n) of the asked patches -> (b, n, D of the targets)."""
        tokens = torch.cat([shown, self.mask_token + self._positions(ids)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        predicted: torch.Tensor = self.project(self.norm(tokens[:, shown.shape[1] :]))
        return predicted

    def _positions(self, ids: torch.Tensor) -> torch.Tensor:
        code = self.get_buffer("positions")
        return code.expand(len(ids), -1, -1).gather(1, ids[..., None].expand(-1, -1, code.shape[-1]))


def save_encoder(encoder: Encoder, directory: Path, facts: dict[str, Any]) -> None:
    """Write a self-describing folder: model.safetensors and config.json, which timm opens as `local-dir:`.

    Args:
        encoder: with its weights.
        directory: made if it does not exist.
        facts: where the weights come from; stored in config.json under `us_jepa`, with the sha256 of the weights' file.

    """
    save_for_hf(encoder.vit, str(directory), model_config={"model_args": encoder.model_args}, safe_serialization=True)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    channels = encoder.vit.patch_embed.proj.in_channels
    config["pretrained_cfg"] = {  # timm copies the base model's entry, with its licence and its statistics
        "tag": "us-jepa",
        "custom_load": False,
        "input_size": [channels, encoder.image_size, encoder.image_size],
        "fixed_input_size": True,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "mean": [encoder.mean] * channels,
        "std": [encoder.std] * channels,
        "num_classes": 0,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    config["model_args"].pop("num_classes", None)  # stands beside it, too, and transformers would pass it twice
    config["us_jepa"] = facts | {"weights_sha256": file_sha256(directory / "model.safetensors")}
    path.write_text(json.dumps(config, indent=1) + "\n")


def load_encoder(directory: Path) -> Encoder:
    """Load an encoder folder; every weight must be there and fit.

    Raises:
        InputError: no such folder, not one of ours, weights that were altered or cut off, or that do not fit; names
            the first keys.

    """
    path = directory / "config.json"
    if not path.is_file():
        raise InputError(f"encoder {directory}: no config.json in it; give a folder that a run wrote as `encoder/`")
    config = json.loads(path.read_text())
    described = config["pretrained_cfg"]
    model_args = {key: value for key, value in config["model_args"].items() if key != "num_classes"}
    encoder = Encoder(config["architecture"], model_args, described["mean"][0], described["std"][0])
    weights, known = directory / "model.safetensors", config["us_jepa"].get("weights_sha256")
    if known is not None and file_sha256(weights) != known:
        raise InputError(f"encoder {weights}: is not the file that was saved (another sha256); copy it again")
    load_strictly(encoder.vit, load_file(weights), str(directory))
    return encoder


def load_strictly(module: nn.Module, weights: dict[str, torch.Tensor], where: str) -> None:
    """Load weights that must match in name and shape.

    Raises:
        InputError: names what is missing, left over or of another shape.

    """
    own = module.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = sorted(key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape)
    if missing or extra or shapes:
        raise InputError(
            f"weights {where}: {len(missing)} missing {missing[:3]}, {len(extra)} unknown {extra[:3]}, "
            f"{len(shapes)} of another shape {shapes[:3]}; all {len(own)} must fit"
        )
    module.load_state_dict(weights)

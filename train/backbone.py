"""Where the teacher's network comes from: a run directory, an encoder folder, or a timm name with or without a file."""

from dataclasses import dataclass
from pathlib import Path

import torch

from sharding.recording import InputError
from train.config import TeacherConfig
from train.published import read_weights, to_timm
from train.vit import TimmModel, is_timm_name, load_encoder, load_strictly, timm_model

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # what USF-MAE, UltraFedFM and USFM normalise by
_FAMILIES = {"timm": "", "mae": "vit_", "beit": "beit", "efficientnet_lite": "tf_efficientnet_lite"}  # by layout


@dataclass(frozen=True)
class Backbone:
    """What a source gives.

    Attributes:
        model: timm model with its weights.
        arch: timm name.
        mean, std: per channel, of images in 0..1.
        image_size: the only input side in pixels that it takes; None: others, too.

    """

    model: TimmModel
    arch: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int | None


def find_backbone(cfg: TeacherConfig) -> Backbone:
    """Build and load what a config names.

    Raises:
        InputError: no such source or file, no download, or weights that do not fit in name and shape.

    """
    kind, colon, name = cfg.source.partition(":")
    if colon and kind == "random" and is_timm_name(name):  # a control, and what --smoke takes
        with torch.random.fork_rng(devices=[]):  # the same weights on every rank and after every restart
            torch.manual_seed(0)
            return described_backbone(timm_model(name, {}), name)
    return _folder(cfg) if Path(cfg.source).is_dir() else _timm_name(cfg)


def described_backbone(model: TimmModel, arch: str) -> Backbone:
    """Describe a timm model by what timm says of its weights."""
    described = model.pretrained_cfg
    is_fixed = hasattr(model, "num_prefix_tokens") and not hasattr(model, "set_input_size")
    size = described["input_size"][-1] if is_fixed else None
    return Backbone(model, arch, tuple(described["mean"]), tuple(described["std"]), size)


def _folder(cfg: TeacherConfig) -> Backbone:
    """A run directory or an encoder folder: the size that it was trained at is the one it gets."""
    source = Path(cfg.source)
    if cfg.weights is not None:
        raise InputError(f"teacher.weights {cfg.weights}: {source} is a folder with weights of its own; drop the key")
    inner = source / "encoder"
    encoder = load_encoder(inner if inner.is_dir() else source)
    return Backbone(encoder.vit, encoder.arch, (encoder.mean,) * 3, (encoder.std,) * 3, encoder.image_size)


def _timm_name(cfg: TeacherConfig) -> Backbone:
    if not is_timm_name(cfg.source):
        raise InputError(
            f"teacher.source {cfg.source}: neither a folder (run directory or its encoder/) nor a timm model name, "
            "which may follow `random:`"
        )
    if cfg.weights is None:
        if cfg.layout != "timm":
            raise InputError(f"teacher.layout {cfg.layout}: describes a file; name it in teacher.weights")
        return described_backbone(downloaded(cfg.source), cfg.source)
    if not cfg.source.startswith(_FAMILIES[cfg.layout]):
        raise InputError(
            f"teacher.source {cfg.source}: layout {cfg.layout} is one of {_FAMILIES[cfg.layout]}... models"
        )
    # BEiT's norm stands behind the pooling unless timm is told to pool by token
    model = timm_model(cfg.source, {"global_pool": "token"} if cfg.layout == "beit" else {})
    load_strictly(model, to_timm(read_weights(cfg.weights), cfg.layout, model), str(cfg.weights))
    backbone = described_backbone(model, cfg.source)
    if cfg.layout in ("mae", "beit"):  # whatever statistics timm has for its own weights of that name
        return Backbone(model, cfg.source, *_IMAGENET, backbone.image_size)
    return backbone


def downloaded(name: str, what: str = "teacher.source") -> TimmModel:
    """A timm model with timm's own weights; `what` names the setting in messages.

    Raises:
        InputError: they cannot be downloaded.

    """
    try:
        return timm_model(name, {"pretrained": True})
    except OSError as error:  # what a hub client without a network raises
        raise InputError(
            f"{what} {name}: timm could not download its weights ({type(error).__name__}); give a local file"
            + (" as teacher.weights" if what == "teacher.source" else f", as {name}=FILE")
        ) from error

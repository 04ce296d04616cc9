"""Frozen encoders of every source behind one call: ours, published ones, any timm or Hugging Face model, raw pixels."""

import hashlib
import json
from importlib.util import find_spec
from math import isqrt
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from eval.hugging_face import open_folder
from eval.networks import (
    HuggingFaceNetwork,
    MonaiNetwork,
    Network,
    PixelNetwork,
    TeacherNetwork,
    TimmNetwork,
    Tokens,
)
from eval.published_encoders import PUBLISHED, PublishedEncoder
from sharding.names import printable
from sharding.recording import InputError
from train.backbone import Backbone, described_backbone, downloaded
from train.config import PretrainConfig
from train.config_file import load_config
from train.published import read_weights, to_timm
from train.teacher import Teacher, load_teacher, weights_hash
from train.vit import Encoder, is_timm_name, load_encoder, load_strictly, new_student, timm_model

PREPROCESSING = 1  # raised when resizing or normalising changes: cached features are then made again
_GREY = ((0.0,), (1.0,))
_TRIED_SIZE = 64  # pixels, of networks that take any size


class FrozenEncoder(nn.Module):
    """A network that is never trained, with the preprocessing that it wants.

    Args:
        name: what tables print.
        network: maps normalised pixels to tokens; see eval/networks.py.
        size: side in pixels to which images are resized; None: as they come.
        mean, std: per channel, of images in 0..1; a grey image is repeated to as many channels.
        note: to be printed beside the name, such as "random weights".

    Attributes:
        identity: sha256 (hex) over all weights and the preprocessing.
        grid: patches per side; N is its square.
        width: D.

    Raises:
        InputError: the network takes no image of that size, or does not give a square grid of tokens.

    """

    def __init__(
        self,
        name: str,
        network: Network,
        size: int | None,
        mean: tuple[float, ...] = _GREY[0],
        std: tuple[float, ...] = _GREY[1],
        note: str = "",
    ) -> None:
        super().__init__()
        self.name, self.size, self.note = printable(name), size, note
        self.network: Network = network.eval().requires_grad_(requires_grad=False)
        for key, values in (("mean", mean), ("std", std)):
            self.register_buffer(key, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        self.grid, self.width, self.has_cls = self._measured()
        described = (PREPROCESSING, type(network).__name__, size, mean, std, self.grid, weights_hash(network))
        self.identity = hashlib.sha256(json.dumps(described).encode()).hexdigest()

    @property
    def num_layers(self) -> int:
        """How many layers `last_layers` can give; 0: none."""
        return self.network.num_layers if isinstance(self.network, TimmNetwork | HuggingFaceNetwork) else 0

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stay in eval mode, whatever a caller asks for."""
        return super().train(mode=False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> Tokens:
        """Tokens of grey images.

        Args:
            images: (B, 1, S, S) float in 0..1, of any S.

        Returns:
            patches (B, N, D) float32 in row-major order, and cls (B, D) float32 or None.

        """
        patches, cls = self.network(self._prepared(images))
        return Tokens(patches.float(), None if cls is None else cls.float())

    @torch.no_grad()
    def last_layers(self, images: torch.Tensor, count: int) -> list[torch.Tensor]:
        """Patch tokens (B, N, D) float32 of the last `count` layers.

        Raises:
            InputError: it has not that many.

        """
        if not isinstance(self.network, TimmNetwork | HuggingFaceNetwork) or self.num_layers < count:
            raise InputError(f"encoder {self.name}: has {self.num_layers} layers to pool over, {count} are asked for")
        return [layer.float() for layer in self.network.last_layers(self._prepared(images), count)]

    def _prepared(self, images: torch.Tensor) -> torch.Tensor:
        if self.size is not None and images.shape[-1] != self.size:
            images = functional.interpolate(images, size=self.size, mode="bilinear", antialias=True)
        return (images - self.get_buffer("mean")) / self.get_buffer("std")

    def _measured(self) -> tuple[int, int, bool]:
        """Grid, width and whether there is a class token, seen on a black image."""
        side = self.size or _TRIED_SIZE
        try:
            patches, cls = self(torch.zeros(1, 1, side, side))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise InputError(f"encoder {self.name}: cannot take images of {side} x {side} pixels: {error}") from error
        grid = isqrt(patches.shape[1])
        if grid**2 != patches.shape[1]:
            raise InputError(f"encoder {self.name}: gives {patches.shape[1]} tokens, which are no square grid")
        return grid, int(patches.shape[2]), cls is not None


def parse_encoder(text: str) -> tuple[str, Path | None]:
    """Split `SPEC` or `SPEC=FILE` of a command line into what open_encoder takes."""
    spec, equals, file = text.partition("=")
    return (text, None) if not equals or Path(text).exists() else (spec, Path(file))


def open_encoder(spec: str, weights: Path | None = None) -> FrozenEncoder:
    """Open what a spec names, on the CPU.

    Args:
        spec: a run directory, its `encoder/` or an exported folder; `init:RUN`, the student of a run as it started;
            `teacher:RUN`, the teacher of a run as its student sees it; a name in PUBLISHED; a timm name, alone (timm's
            own download) or with a file; `random:` and a timm name; `hf:` and the folder of a transformers model;
            `pixels`.
        weights: local file; only of a published or a timm name.

    Raises:
        InputError: no such encoder, weights that are needed, not wanted, or do not fit in every name and shape.

    """
    kind, colon, rest = spec.partition(":")
    if spec in PUBLISHED:
        return _published(PUBLISHED[spec], weights)
    if is_timm_name(spec):
        return _timm(spec, weights)
    if weights is not None:
        raise InputError(f"encoder {spec}: takes no file ({weights}); those of {', '.join(PUBLISHED)} and timm do")
    openers = {"init": _initial, "teacher": _teacher, "random": _random, "hf": _hugging_face}
    if colon and kind in openers:
        return openers[kind](rest)
    if spec == "pixels":
        return FrozenEncoder("pixels", PixelNetwork(), None)
    return _ours(Path(spec))


def of_student(encoder: Encoder, name: str, note: str = "") -> FrozenEncoder:
    """One of our encoders, in memory."""
    channels = encoder.vit.patch_embed.proj.in_channels
    mean, std = (encoder.mean,) * channels, (encoder.std,) * channels
    return FrozenEncoder(name, TimmNetwork(encoder.vit), encoder.image_size, mean, std, note)


def of_teacher(teacher: Teacher, name: str) -> FrozenEncoder:
    """A teacher in memory: it resizes and normalises by itself, which becomes part of its identity."""
    frozen = FrozenEncoder(name, TeacherNetwork(teacher), None)
    own = [teacher.get_buffer(key).flatten().tolist() for key in ("mean", "std")]
    described = json.dumps([frozen.identity, teacher.arch, teacher.layers, teacher.input_size, own])
    frozen.identity = hashlib.sha256(described.encode()).hexdigest()
    return frozen


def _ours(folder: Path) -> FrozenEncoder:
    inner = folder / "encoder"
    place = inner if inner.is_dir() else folder
    if not place.is_dir():
        raise InputError(
            f"encoder {folder}: no such folder, and no name that is known; give a run directory, an encoder folder, "
            f"a timm name, random:NAME, hf:FOLDER, init:RUN, teacher:RUN, pixels, or one of {', '.join(PUBLISHED)}"
        )
    return of_student(load_encoder(place), folder.name)


def _config(run: str) -> PretrainConfig:
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise InputError(f"encoder {run}: no config.yaml in it; init: and teacher: want a run directory")
    return load_config(path, [])


def _initial(run: str) -> FrozenEncoder:
    cfg = _config(run)
    return of_student(_new_student(cfg), f"{Path(run).name} at its start", "random weights")


def _new_student(cfg: PretrainConfig) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.data.seed)
        return new_student(cfg.student.arch, cfg.student.image_size, cfg.student.args)


def _teacher(run: str) -> FrozenEncoder:
    cfg = _config(run)
    if cfg.teacher is None:
        raise InputError(f"encoder teacher:{run}: objective {cfg.objective} has no teacher")
    teacher = cfg.teacher.model_copy(update={"precision": "fp32"})  # as all others
    return of_teacher(
        load_teacher(teacher, _new_student(cfg).grid, cfg.target.layers)[0], f"{Path(run).name}'s teacher"
    )


def _random(name: str) -> FrozenEncoder:
    if not is_timm_name(name):
        raise InputError(f"encoder random:{name}: {name} is no timm name")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _of_backbone(f"random {name}", described_backbone(timm_model(name, {}), name), "random weights")


def _timm(name: str, weights: Path | None) -> FrozenEncoder:
    if weights is None:
        return _of_backbone(name, described_backbone(downloaded(name, "encoder"), name))
    model = timm_model(name, {})
    load_strictly(model, to_timm(read_weights(weights, f"encoder {name}"), "timm", model), str(weights))
    return _of_backbone(name, described_backbone(model, name))


def _of_backbone(name: str, backbone: Backbone, note: str = "") -> FrozenEncoder:
    described = backbone.model.pretrained_cfg
    return FrozenEncoder(
        name, TimmNetwork(backbone.model), int(described["input_size"][-1]), backbone.mean, backbone.std, note
    )


def _hugging_face(folder: str) -> FrozenEncoder:
    opened = open_folder(Path(folder))
    return FrozenEncoder(Path(folder).name, opened.network, opened.size, opened.mean, opened.std, opened.note)


def _published(row: PublishedEncoder, weights: Path | None) -> FrozenEncoder:
    if row.not_loadable:
        raise InputError(f"encoder {row.name}: cannot be loaded: it is {row.not_loadable}")
    file = weights or _packaged(row)
    if file is None:
        raise InputError(
            f"encoder {row.name}: needs its weights, as {row.name}=FILE; FILE is {row.file}, from {row.source}"
        )
    network = MonaiNetwork(row.args) if row.layout == "monai" else TimmNetwork(timm_model(row.arch, row.args))
    found = to_timm(read_weights(file, f"encoder {row.name}"), row.layout, network.model)
    load_strictly(network.model, found, f"{file} of encoder {row.name} ({row.layout} layout)")
    return FrozenEncoder(row.name, network, row.size, row.mean, row.std)


def _packaged(row: PublishedEncoder) -> Path | None:
    """The file inside an installed package, where there is one."""
    module, _, inside = row.package.partition("/")
    spec = find_spec(module) if module else None
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / inside

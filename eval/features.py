"""Features of a frozen encoder: one pass per encoder and set, kept on disk, joined by key.

A cache is a folder of pieces. Its name is a hash of all that determines the numbers (encoder with its preprocessing,
pooling, the set's content), and every piece holds the keys of its rows: neither a set made otherwise nor rows in
another order can be mistaken for what was asked for. A killed pass goes on with the first piece that is missing.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.progress import track
from torch.nn import functional

from eval.datasets import LabelledSet
from eval.encoders import FrozenEncoder
from sharding.recording import InputError
from sharding.store import Store

Pooling = Literal["mean", "cls", "last4"]

_VERSION = 1  # of pooling and of what a piece holds; encoders have a version of their own in their identity
_PIECE = 256  # rows
_BATCH_PIXELS = 64 * 224 * 224
_LAST = 4

Compute = Callable[[np.ndarray], np.ndarray]


def extract(encoder: FrozenEncoder, dataset: LabelledSet, pooling: Pooling, folder: Path) -> np.ndarray:
    """Features of a set, from the cache where it has them.

    Args:
        encoder: moved to the GPU where there is one.
        dataset: with unique keys.
        pooling: `mean` of the patches with a pixel inside the region (of all where there is none); `cls`, the class
            token; `last4`, the means of the last four layers side by side.
        folder: of all caches; made if it does not exist.

    Returns:
        (n, D) float32, in the order of the set; (n, 4 D) of `last4`.

    Raises:
        InputError: keys that are not unique, an encoder without class token or layers, features that are not finite,
            or a damaged piece; names it.

    """
    device = _on_device(encoder)
    return _cached(encoder, dataset, pooling, folder, lambda squares: _pooled(encoder, squares, pooling, device))


def extract_tokens(encoder: FrozenEncoder, dataset: LabelledSet, folder: Path) -> np.ndarray:
    """Patch tokens of a set, (n, N, D) float16 in the order of the set, cached like `extract`.

    All of it is held in memory: 300 kB for an image of a ViT-B/16 at 224 pixels.

    Raises:
        InputError: what `extract` raises; values that float16 cannot hold.

    """
    device = _on_device(encoder)
    return _cached(encoder, dataset, "tokens", folder, lambda squares: _tokens(encoder, squares, device))


def pooled(encoder: FrozenEncoder, squares: np.ndarray, description: str, pooling: Pooling = "mean") -> np.ndarray:
    """Features (n, D) float32 of squares (n, 2, S, S) uint8, in their order, without a cache; see `extract`."""
    device = _on_device(encoder)
    starts = track(range(0, len(squares), _PIECE), description=f"features of {description}")
    return np.concatenate([_pooled(encoder, squares[s : s + _PIECE], pooling, device) for s in starts])


def cache_of(encoder: FrozenEncoder, dataset: LabelledSet, kind: str, folder: Path) -> Path:
    """Folder of the pieces; kind is a pooling or `tokens`."""
    described = [_VERSION, encoder.identity, kind, dataset.sha256, list(dataset.squares.shape[1:])]
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    return folder / digest[:32]


def _cached(encoder: FrozenEncoder, dataset: LabelledSet, kind: str, folder: Path, compute: Compute) -> np.ndarray:
    order = np.argsort(dataset.keys)
    keys = dataset.keys[order]
    if (keys[1:] == keys[:-1]).any():
        raise InputError(f"set {dataset.name}: key {keys[1:][keys[1:] == keys[:-1]][0]} is there twice")
    place = cache_of(encoder, dataset, kind, folder)
    place.mkdir(parents=True, exist_ok=True)
    pieces = []
    for start in track(range(0, len(order), _PIECE), description=f"{encoder.name} on {dataset.name}"):
        rows, path = order[start : start + _PIECE], place / f"{start:08d}.npz"
        if not path.exists():
            _write(path, dataset.keys[rows], _finite(compute(dataset.squares[rows]), encoder))
        pieces.append(_read(path, dataset.keys[rows]))
    found = np.concatenate(pieces)
    in_order = np.empty_like(found)
    in_order[order] = found
    return in_order


def _write(path: Path, keys: np.ndarray, values: np.ndarray) -> None:
    with Store(path.parent).writing(path.name) as file:
        np.savez(file, keys=keys.astype(str), values=values)


def _read(path: Path, keys: np.ndarray) -> np.ndarray:
    """Values of a piece, whose rows must be those of `keys`."""
    try:
        with np.load(path, allow_pickle=False) as piece:
            found, values = piece["keys"], piece["values"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"cached features {path}: damaged ({error}); delete the file, it is made again") from error
    if not np.array_equal(found, keys) or len(values) != len(keys):
        raise InputError(f"cached features {path}: of other rows than the set has; delete the file, it is made again")
    return np.asarray(values)


def _finite(values: np.ndarray, encoder: FrozenEncoder) -> np.ndarray:
    if not np.isfinite(values).all():
        raise InputError(f"encoder {encoder.name}: gives values that {values.dtype} cannot hold, or no numbers")
    return values


def _on_device(encoder: FrozenEncoder) -> torch.device:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder.to(device)
    return device


def _batches(encoder: FrozenEncoder, squares: np.ndarray, device: torch.device) -> list[torch.Tensor]:
    """(B, 2, S, S) float32 in 0..1; fewer images where the encoder enlarges them."""
    side = encoder.size or squares.shape[-1]
    size = max(1, min(_PIECE, _BATCH_PIXELS // side**2))
    return [torch.from_numpy(part).to(device) / 255.0 for part in np.split(squares, range(size, len(squares), size))]


def _tokens(encoder: FrozenEncoder, squares: np.ndarray, device: torch.device) -> np.ndarray:
    parts = [encoder(batch[:, :1]).patches.half().cpu().numpy() for batch in _batches(encoder, squares, device)]
    return np.concatenate(parts)


def _pooled(encoder: FrozenEncoder, squares: np.ndarray, pooling: Pooling, device: torch.device) -> np.ndarray:
    parts = [_pool(encoder, batch, pooling).cpu().numpy() for batch in _batches(encoder, squares, device)]
    return np.concatenate(parts)


def _pool(encoder: FrozenEncoder, batch: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    images, region = batch[:, :1], batch[:, 1:]
    if pooling == "last4":
        layers = encoder.last_layers(images, _LAST)
        return torch.cat([mean_inside(layer, region, encoder.grid) for layer in layers], dim=1)
    tokens = encoder(images)
    if pooling == "mean":
        return mean_inside(tokens.patches, region, encoder.grid)
    if tokens.cls is None:
        raise InputError(f"encoder {encoder.name}: has no class token; pool by `mean`")
    cls: torch.Tensor = tokens.cls
    return cls


def patches_inside(squares: np.ndarray, grid: int) -> np.ndarray:
    """(n, grid x grid) bool, the patches with a pixel inside the region, of squares (n, 2, S, S) uint8."""
    pieces = np.split(squares[:, 1:], range(_PIECE, len(squares), _PIECE))
    return np.concatenate([_inside(torch.from_numpy(piece).float(), grid).numpy() > 0 for piece in pieces])


def _inside(region: torch.Tensor, grid: int) -> torch.Tensor:
    return functional.adaptive_max_pool2d(region, grid).flatten(1)


def mean_inside(patches: torch.Tensor, region: torch.Tensor, grid: int) -> torch.Tensor:
    """Mean over the patches with a pixel inside the region, over all where there is none."""
    inside = _inside(region, grid)
    weight = torch.where(inside.any(dim=1, keepdim=True), inside, torch.ones_like(inside))[..., None]
    mean: torch.Tensor = (patches * weight).sum(dim=1) / weight.sum(dim=1)
    return mean

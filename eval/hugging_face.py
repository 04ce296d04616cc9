"""A Hugging Face vision model on disk, opened by transformers (optional: the `probe` extra)."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from eval.networks import HuggingFaceNetwork, TransformersModel, library
from sharding.recording import InputError

_VISION_PARTS = ("vision_model", "vision_encoder")  # of models that also read text or prompts
_POOLER = "pooler."  # a head over the class token; its output is not used


@dataclass(frozen=True)
class OpenedFolder:
    """What a folder gives; size, mean and std as in eval/encoders.py."""

    network: HuggingFaceNetwork
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str


def open_folder(folder: Path) -> OpenedFolder:
    """Open a model that transformers' AutoModel knows, without running code of the folder.

    Args:
        folder: config.json, weights, and preprocessor_config.json, from which size and statistics are read.

    Raises:
        InputError: transformers or a file is missing, or weights do not fit; names them.

    """
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise InputError(
                f"encoder hf:{folder}: no {name}; give a folder that save_pretrained wrote for model and images"
            )
    size, mean, std = _preprocessing(folder / "preprocessor_config.json")
    model, note = _model(folder)
    return OpenedFolder(HuggingFaceNetwork(model, _grid(model, size)), size, mean, std, note)


def _model(folder: Path) -> tuple[TransformersModel, str]:
    auto_model = library("transformers", "transformers").AutoModel
    try:
        model, report = auto_model.from_pretrained(  # float32 whatever the file has: it is what all others get
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"encoder hf:{folder}: transformers cannot open it: {reason}") from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(_POOLER) and f".{_POOLER}" not in key)
    shapes = sorted(str(found[0]) for found in report["mismatched_keys"])
    if missing or shapes:
        raise InputError(
            f"encoder hf:{folder}: {len(missing)} weights missing {missing[:3]}, "
            f"{len(shapes)} of another shape {shapes[:3]}; all must fit"
        )
    unused = sorted(report["unexpected_keys"])
    note = f"{len(unused)} weights of its file are not used: {', '.join(unused[:3])}" if unused else ""
    return next((getattr(model, part) for part in _VISION_PARTS if hasattr(model, part)), model), note


def _preprocessing(path: Path) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Side in pixels, mean and deviation; nothing is guessed."""
    described = json.loads(path.read_text())
    size = described.get("crop_size") if described.get("do_center_crop", True) else None
    size = size or described.get("size")
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or size.get("longest_edge")
    statistics = [described.get(key) for key in ("image_mean", "image_std")]
    if not described.get("do_normalize", True):
        statistics = [[0.0] * 3, [1.0] * 3]
    if not isinstance(size, int) or None in statistics:
        raise InputError(f"{path}: needs size (or crop_size), image_mean and image_std; found {sorted(described)}")
    mean, std = (tuple(float(value) for value in values) for values in statistics)
    return size, mean, std


def _grid(model: TransformersModel, size: int) -> int | None:
    patch = getattr(model.config, "patch_size", None)
    return None if patch is None else size // int(patch if isinstance(patch, int) else patch[0])

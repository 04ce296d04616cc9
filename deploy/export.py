"""An encoder in the format that other people's tools read, with a model card: `us-jepa export`.

Formats:
    hf     config.json, model.safetensors, preprocessor_config.json: transformers, timm (also from the Hub)
    timm   config.json, model.safetensors: timm.create_model("local-dir:FOLDER", pretrained=True)
    onnx   model.onnx with pooling, any batch size: onnxruntime
    torch  model.pt2 with pooling, any batch size: torch.export.load

Every folder has a README.md (the card) and SHA256SUMS, which `sha256sum -c SHA256SUMS` checks.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from deploy.card import model_card
from deploy.embedder import Embedder
from eval.probe_tables import ProbeTable
from sharding.recording import InputError
from train.config_file import load_config
from train.tensor_file import file_sha256
from train.vit import load_encoder

Format = Literal["hf", "timm", "onnx", "torch"]

_SUMS = "SHA256SUMS"
_OPSET = 20
_TOLERANCE = 1e-3  # of what onnxruntime gives, against torch
_NAMES = (["images", "regions"], ["embeddings", "tokens"])


def export_encoder(
    run_dir: Path, out: Path, to: Format = "hf", tables: Sequence[ProbeTable] = (), data_licence: str = ""
) -> Path:
    """Write a run's encoder as a folder; it is loaded and compared before it is handed over.

    Args:
        run_dir: finished run.
        out: folder to make; an earlier export there is replaced.
        to: see the module.
        tables: probe results for the card.
        data_licence: of the data that it was trained on, for the card.

    Returns:
        out.

    Raises:
        InputError: the run has no encoder, its weights do not fit or were altered, `out` holds something else, or a
            package is missing.

    """
    if out.exists() and not (out / _SUMS).is_file():
        raise InputError(f"export {out}: is there and is no earlier export (no {_SUMS}); give another folder")
    embedder = Embedder(load_encoder(run_dir / "encoder"))
    cfg = load_config(run_dir / "config.yaml", [])
    making = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    shutil.copy(run_dir / "encoder" / "config.json", making)
    _WRITERS[to](embedder, run_dir / "encoder", making)
    (making / "README.md").write_text(
        model_card(json.loads((making / "config.json").read_text()), cfg, to, tables, data_licence)
    )
    names = sorted(path.name for path in making.iterdir())
    (making / _SUMS).write_text("".join(f"{file_sha256(making / name)}  {name}\n" for name in names))
    shutil.rmtree(out, ignore_errors=True)
    making.replace(out)
    return out


def _write_timm(_: Embedder, source: Path, out: Path) -> None:
    shutil.copy(source / "model.safetensors", out)
    load_encoder(out)


def _write_hf(embedder: Embedder, source: Path, out: Path) -> None:
    """The processor of transformers' timm wrapper reads the preprocessing from config.json, and this file names it."""
    config = json.loads((source / "config.json").read_text())
    said = {
        "image_processor_type": "TimmWrapperImageProcessor",
        "architecture": config["architecture"],
        "pretrained_cfg": config["pretrained_cfg"],
    }
    (out / "preprocessor_config.json").write_text(json.dumps(said, indent=1) + "\n")
    _write_timm(embedder, source, out)


def _write_torch(embedder: Embedder, _: Path, out: Path) -> None:
    torch.export.save(_program(embedder), out / "model.pt2")
    run = torch.export.load(out / "model.pt2").module()
    _compare(embedder, lambda *arrays: run(*map(torch.from_numpy, arrays)), "model.pt2")


def _write_onnx(embedder: Embedder, _: Path, out: Path) -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise InputError(f"export to onnx: needs {', '.join(missing)}; pip install -e '.[export]'")
    import onnxruntime  # noqa: PLC0415 - of the extra `export`

    torch.onnx.export(
        _program(embedder), (), out / "model.onnx", input_names=_NAMES[0], output_names=_NAMES[1],
        opset_version=_OPSET, dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    _compare(embedder, lambda *arrays: session.run(None, dict(zip(_NAMES[0], arrays, strict=True))), "model.onnx")


_WRITERS: dict[Format, Callable[[Embedder, Path, Path], None]] = {
    "hf": _write_hf,
    "timm": _write_timm,
    "onnx": _write_onnx,
    "torch": _write_torch,
}


def _program(embedder: Embedder) -> torch.export.ExportedProgram:
    any_batch = {0: torch.export.Dim("batch", min=1)}
    return torch.export.export(embedder, embedder.example(), dynamic_shapes=(any_batch, any_batch))


def _compare(embedder: Embedder, run: Callable[..., Sequence[np.ndarray | torch.Tensor]], name: str) -> None:
    """Run what was written on one image and on three; it must give what the encoder gives."""
    for num in (1, 3):
        example = [part[:num] for part in embedder.example()]
        wanted = embedder(*example)
        found = run(*(part.numpy() for part in example))
        worst = max(float(np.abs(np.asarray(a) - b.numpy()).max()) for a, b in zip(found, wanted, strict=True))
        if worst > _TOLERANCE:
            raise RuntimeError(f"export {name}: differs by {worst:.1e} from the encoder, at most {_TOLERANCE}")

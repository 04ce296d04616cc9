"""Exports, loaded by the tools that they are for, without a line of ours."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.embedder import Embedder
from deploy.export import Format, export_encoder
from sharding.recording import InputError
from tests.conftest import ROOT
from train.config_file import load_config, save_config
from train.vit import load_encoder, new_student, save_encoder

FORMATS: tuple[Format, ...] = ("hf", "timm", "onnx", "torch")
SIZE = 64

# Each is a program of a stranger: images.npz and FOLDER in, tokens (and embeddings) out
TIMM = """
import sys, numpy, torch
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import timm
images = torch.from_numpy(numpy.load("example.npz")["images"])
model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True).eval()
settings = timm.data.resolve_model_data_config(model)
x = (images - torch.tensor(settings["mean"])) / torch.tensor(settings["std"])
with torch.no_grad():
    numpy.savez("found.npz", tokens=model.forward_features(x).numpy())
"""
TRANSFORMERS = """
import sys, numpy, torch
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from transformers import AutoModel
images = torch.from_numpy(numpy.load("example.npz")["images"])
model = AutoModel.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    numpy.savez("found.npz", tokens=model(pixel_values=(images - 0.5) / 0.5).last_hidden_state.numpy())
"""
ONNX = """
import sys, numpy, onnxruntime
example = dict(numpy.load("example.npz"))
session = onnxruntime.InferenceSession(f"{sys.argv[1]}/model.onnx", providers=["CPUExecutionProvider"])
embeddings, tokens = session.run(None, example)
numpy.savez("found.npz", tokens=tokens, embeddings=embeddings)
assert not {"torch", "timm"} & set(sys.modules)
"""
TORCH = """
import sys, numpy, torch
example = numpy.load("example.npz")
run = torch.export.load(f"{sys.argv[1]}/model.pt2").module()
embeddings, tokens = run(*(torch.from_numpy(example[name]) for name in ("images", "regions")))
numpy.savez("found.npz", tokens=tokens.numpy(), embeddings=embeddings.numpy())
assert "timm" not in sys.modules
"""


@pytest.fixture(scope="module")
def run_dir(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory whose student has random weights."""
    run = tmp_path_factory.mktemp("run") / "student"
    run.mkdir()
    overrides = [
        f"data.shards=[{shards}]", f"run.dir={run}", f"student.image_size={SIZE}", "masks.context_tokens=6",
        "masks.target_tokens=2", "masks.min_patches=1",
    ]  # fmt: skip
    save_config(load_config(ROOT / "train" / "configs" / "demo.yaml", overrides), run / "config.yaml")
    torch.manual_seed(1)
    facts = {"objective": "salt", "data_sha256": "ab" * 32, "teacher_sha256": "cd" * 32}
    save_encoder(new_student("vit_tiny_patch16_224", SIZE, {"depth": 2}), run / "encoder", facts)
    return run


def needs(to: Format) -> None:
    if to == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason=f"{package} is in the extra `export`")


def found_by(program: str, out: Path, folder: Path) -> dict[str, np.ndarray]:
    """What a program finds of 5 frames, in a folder where none of our packages can be imported."""
    rng = np.random.default_rng(0)
    regions = np.zeros((5, 1, SIZE, SIZE), np.float32)
    regions[:, :, 10:40, 20:60] = 1
    np.savez(folder / "example.npz", images=rng.random((5, 1, SIZE, SIZE), np.float32) * regions, regions=regions)
    command = [sys.executable, "-P", "-c", program, str(out)]
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(folder / "found.npz"))


@pytest.mark.parametrize(
    ("to", "program"),
    [("hf", TIMM), ("timm", TIMM), ("onnx", ONNX), ("torch", TORCH), ("hf", TRANSFORMERS)],
    ids=["hf by timm", "timm by timm", "onnx by onnxruntime", "torch by torch", "hf by transformers"],
)
def test_others_find_the_features_that_we_find(to: Format, program: str, run_dir: Path, tmp_path: Path) -> None:
    needs(to)
    if program == TRANSFORMERS:
        pytest.importorskip("transformers", reason="transformers is not installed")
    out = export_encoder(run_dir, tmp_path / "out", to)
    found = found_by(program, out, tmp_path)
    example = [torch.from_numpy(np.load(tmp_path / "example.npz")[name]) for name in ("images", "regions")]
    embeddings, tokens = Embedder(load_encoder(run_dir / "encoder"))(*example)
    tolerance = 1e-3 if to == "onnx" else 1e-4
    assert np.abs(found["tokens"] - tokens.numpy()).max() < tolerance
    if "embeddings" in found:
        assert np.abs(found["embeddings"] - embeddings.numpy()).max() < tolerance


@pytest.mark.parametrize("to", ["hf", "timm"])
def test_what_was_saved_is_described_and_summed(to: Format, run_dir: Path, tmp_path: Path) -> None:
    out = export_encoder(run_dir, tmp_path / "out", to, data_licence="CC BY 4.0")
    for line in (out / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert (out / "preprocessor_config.json").exists() == (to == "hf")
    card = (out / "README.md").read_text()
    for said in (
        "ab" * 32,
        "cd" * 32,
        "- tiny: ",
        "CC BY 4.0",
        "Not probed when it was exported.",
        "No medical device",
    ):
        assert said in card
    assert str(run_dir) not in card
    assert str(run_dir.parent) not in (out / "config.json").read_text()


def test_an_altered_or_truncated_file_is_refused(run_dir: Path, tmp_path: Path) -> None:
    out = export_encoder(run_dir, tmp_path / "out", "timm")
    weights = out / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (whole[:-100], whole[:-1] + bytes([whole[-1] ^ 1])):
        weights.write_bytes(broken)
        with pytest.raises(InputError, match=r"model.safetensors: is not the file that was saved"):
            load_encoder(out)


def test_an_export_is_replaced_and_nothing_else_is(run_dir: Path, tmp_path: Path) -> None:
    out = export_encoder(run_dir, tmp_path / "out", "hf")
    assert export_encoder(run_dir, out, "timm") == out
    assert not (out / "preprocessor_config.json").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="is no earlier export"):
        export_encoder(run_dir, mine, "timm")
    assert (mine / "thesis.txt").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "mine"}


def test_a_card_is_never_empty(run_dir: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    (bare / "encoder").mkdir(parents=True)
    for path in (run_dir / "encoder").iterdir():
        (bare / "encoder" / path.name).write_bytes(path.read_bytes())
    (bare / "config.yaml").write_bytes((run_dir / "config.yaml").read_bytes())
    config = json.loads((bare / "encoder" / "config.json").read_text())
    (bare / "encoder" / "config.json").write_text(json.dumps(config | {"us_jepa": {}}))
    with pytest.raises(InputError, match="says nothing of its training"):
        export_encoder(bare, tmp_path / "out", "timm")


def test_the_embedder_pools_inside_the_region_or_everywhere(run_dir: Path) -> None:
    embedder = Embedder(load_encoder(run_dir / "encoder"))
    images, regions = embedder.example()
    embeddings, tokens = embedder(images, regions)
    assert torch.allclose(embeddings[0], tokens[0, :4].mean(0), atol=1e-6)  # the first row of patches
    assert torch.allclose(embeddings[2], tokens[2].mean(0), atol=1e-6)

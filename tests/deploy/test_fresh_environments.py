"""Exports in virtual environments of strangers: timm alone, onnxruntime alone, transformers alone, and no line of ours.

What loads an export there is the code of its own model card, so a wrong card fails, too. Minutes: torch is installed
twice.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch

from deploy.embedder import Embedder
from deploy.export import Format, export_encoder
from sharding.policy import Policy
from sharding.preprocess import stretch, to_square
from sharding.reader import ShardReader
from sharding.recording import FrameChoice, InputError
from tests.conftest import ROOT, SHARED, make_shards
from train.config_file import load_config, save_config
from train.vit import load_encoder, new_student, save_encoder

pytestmark = pytest.mark.slow

SIZE = 224
NUM_FRAMES = 32

# Beside a CPU build of torch, a CUDA build of torchvision (what the registry has) imports only with these two defined.
GUARD = """
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
NORMALISE = 'x = torch.from_numpy(numpy.load("example.npz")["images"]) / 0.5 - 1\n'
SAVE = 'numpy.savez("found.npz", tokens=tokens.numpy())\n'


@dataclass(frozen=True)
class Stranger:
    """A fresh environment and what its owner does with an export.

    Attributes:
        to: format.
        packages: given to pip.
        absent: must not be importable there.
        before, after: around the card's code.
        card_part: which of the card's ways to load.
        file: with the weights.
        tolerance: of features.

    """

    to: Format
    packages: tuple[str, ...]
    absent: tuple[str, ...]
    before: str
    after: str
    card_part: int
    file: str
    tolerance: float


TORCH = f"torch=={version('torch').partition('+')[0]}"  # the release, of whatever build pip finds
NO_GRAD = "torch.set_grad_enabled(False)\n"
STRANGERS = {
    "timm": Stranger(
        "timm", (TORCH, f"timm=={version('timm')}"), ("transformers", "onnxruntime"),
        "import numpy, torch\n" + GUARD + "import timm\n" + NO_GRAD + NORMALISE, SAVE, 0, "model.safetensors", 1e-4,
    ),
    "onnxruntime": Stranger(
        "onnx", ("onnxruntime", "numpy"), ("torch", "timm", "onnx"),
        'import numpy, onnxruntime\nimages, regions = (numpy.load("example.npz")[k] for k in ("images", "regions"))\n',
        'numpy.savez("found.npz", tokens=tokens, embeddings=embeddings)\n', 0, "model.onnx", 1e-3,
    ),
    "transformers": Stranger(  # its wrapper of timm models wants timm: the extra is transformers' own
        "hf", (TORCH, f"transformers[timm]=={version('transformers')}"), ("onnxruntime", "deepspeed"),
        "import numpy, torch\n" + GUARD + "import transformers\n" + NO_GRAD + NORMALISE, SAVE, 1, "model.safetensors",
        1e-4,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Home:
    """A stranger with an environment, an export and frames."""

    stranger: Stranger
    python: Path
    export: Path
    folder: Path

    def load(self, export: Path) -> subprocess.CompletedProcess[str]:
        """Run the card's code on the example, where none of our packages can be imported."""
        card = (self.export / "README.md").read_text()
        code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].split("# or\n")[self.stranger.card_part]
        program = self.stranger.before + code.replace("FOLDER", str(export)) + "\n" + self.stranger.after
        return self.run(program)

    def run(self, program: str) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        command = [str(self.python), "-P", "-c", program]
        return subprocess.run(
            command, check=False, cwd=self.folder, env=clean, capture_output=True, text=True, timeout=300
        )

    def copy_with(self, name: str, data: bytes) -> Path:
        """The export with other bytes in the file of its weights."""
        out = self.folder / name
        shutil.copytree(self.export, out)
        (out / self.stranger.file).write_bytes(data)
        return out


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, torch.Tensor]:
    """32 real frames (32, 1, S, S) and their regions, through sharding."""
    folder = tmp_path_factory.mktemp("real")
    wheel = Path(pydicom.__file__).parent / "data" / "test_files"  # its real ultrasound, where there is no more
    source = SHARED / "dicom" if SHARED.is_dir() else folder / "wheel"
    if not SHARED.is_dir():
        source.mkdir()
        shutil.copy(wheel / "examples_ybr_color.dcm", source)
        shutil.copy(wheel / "examples_rgb_color.dcm", source)
    policy = Policy("real", FrameChoice(max_frames=NUM_FRAMES), val_share=0, pixels="public")
    squares = []
    for tar in sorted(make_shards(source, folder / "out", policy).glob("*.tar")):
        with ShardReader(tar) as reader:
            squares += [
                to_square(stretch(one.frame, one.region, one.meta.percentiles), one.region, SIZE) for one in reader
            ]
    assert len(squares) >= NUM_FRAMES
    evenly = np.linspace(0, len(squares) - 1, NUM_FRAMES).round().astype(int)
    batch = torch.from_numpy(np.stack([squares[index] for index in evenly])) / 255
    return batch[:, :1], batch[:, 1:]


@pytest.fixture(scope="module")
def run_dir(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose student is a whole ViT-Small; no weight is 0 or 1, so that a lost bias would show."""
    run = tmp_path_factory.mktemp("run") / "student"
    run.mkdir()
    overrides = [f"data.shards=[{shards}]", f"run.dir={run}", f"student.image_size={SIZE}"]
    save_config(load_config(ROOT / "train" / "configs" / "demo.yaml", overrides), run / "config.yaml")
    torch.manual_seed(1)
    student = new_student("vit_small_patch16_224", SIZE)
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    save_encoder(student, run / "encoder", {"objective": "salt", "data_sha256": "ab" * 32})
    return run


@pytest.fixture(scope="module", params=STRANGERS)
def home(
    request: pytest.FixtureRequest, run_dir: Path, example: tuple[torch.Tensor, torch.Tensor],
    tmp_path_factory: pytest.TempPathFactory,
) -> Home:  # fmt: skip
    """Really installed, from nothing; removed when its tests are done."""
    stranger, folder = STRANGERS[request.param], tmp_path_factory.mktemp("stranger")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", *stranger.packages],
        check=False, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    np.savez(folder / "example.npz", **dict(zip(("images", "regions"), (p.numpy() for p in example), strict=True)))
    yield Home(stranger, python, export_encoder(run_dir, folder / "export", stranger.to), folder)
    shutil.rmtree(folder / "venv")


def test_the_environment_is_that_of_a_stranger(home: Home) -> None:
    for name in (*home.stranger.absent, "sharding", "train", "deploy"):
        done = home.run(f"import {name}")
        assert f"No module named '{name}'" in done.stderr


def test_the_cards_code_gives_our_features_of_real_frames(
    home: Home, run_dir: Path, example: tuple[torch.Tensor, torch.Tensor]
) -> None:
    done = home.load(home.export)
    assert done.returncode == 0, done.stderr[-3000:]
    found = dict(np.load(home.folder / "found.npz"))
    with torch.no_grad():
        embeddings, tokens = Embedder(load_encoder(run_dir / "encoder"))(*example)
    worst = {"tokens": np.abs(found["tokens"] - tokens.numpy()).max()}
    if "embeddings" in found:
        worst["embeddings"] = np.abs(found["embeddings"] - embeddings.numpy()).max()
    print(f"{home.stranger.packages[-1]}: worst difference of {NUM_FRAMES} frames {worst}, std {tokens.std():.2f}")
    assert max(worst.values()) < home.stranger.tolerance
    assert tokens.std() > 0.5  # else the difference says nothing
    assert (tokens[0] - tokens[-1]).abs().max() > 0.1


def test_a_truncated_file_is_refused_by_the_tool_itself(home: Home) -> None:
    whole = (home.export / home.stranger.file).read_bytes()
    for name, kept in (("cut", len(whole) // 2), ("clipped", len(whole) - 100)):
        done = home.load(home.copy_with(name, whole[:kept]))
        assert done.returncode != 0
        assert re.search(r"SafetensorError|InvalidProtobuf|INVALID_PROTOBUF|OSError", done.stderr), done.stderr[-2000:]


def test_an_altered_file_is_refused_by_its_sum_and_by_us(home: Home) -> None:
    """The tools load an altered weight without a word, so a card says to check the sums first."""
    whole = bytearray((home.export / home.stranger.file).read_bytes())
    whole[len(whole) // 2] ^= 64
    altered = home.copy_with("altered", bytes(whole))
    assert "sha256sum -c SHA256SUMS" in (altered / "README.md").read_text()
    for folder, code, said in ((home.export, 0, "OK"), (altered, 1, "FAILED")):
        done = subprocess.run(
            ["sha256sum", "-c", "SHA256SUMS"], check=False, cwd=folder, capture_output=True, text=True
        )
        assert (done.returncode, f"{home.stranger.file}: {said}" in done.stdout) == (code, True)
    if home.stranger.file == "model.safetensors":
        with pytest.raises(InputError, match="is not the file that was saved"):
            load_encoder(altered)

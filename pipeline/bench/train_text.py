"""Make the weights of the text detector, sharding/text.onnx and text_frame.onnx.

    python -m pipeline.bench.train_text [--backgrounds FOLDER]
    python -m pipeline.bench.text_limits          # then: its limits and figures, sharding/text.json

FOLDER holds real pictures and videos without text inside; without one the network learns from generated ones alone.

The committed weights: seed 0, 4500 steps (10 min on two cores), and a folder of 148 real sources looked at by eye: HC18
fetal heads (CC BY), lung clips (CC BY) and the inner part of muscle frames (CC0). 108 of them, by groups of name, were
learned from. Many of these sources are also in the real part of text_limits, which measures how often tissue is taken
for text: that figure is therefore a little better than for devices that the network never saw.
"""

import argparse
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from pipeline.bench import text_pictures as pictures
from pipeline.bench.onnx_writer import to_onnx
from pipeline.bench.text_samples import IGNORED, Background, Samples
from sharding.text import FRAME_WEIGHTS, WEIGHTS, looks

_BATCH = 16


def network() -> nn.Sequential:
    """(B, 3, H, W) of 0..255 to (B, 1, H / 8, W / 8) logits; patches first, since they are cheap on a CPU."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 4),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(32, 1, 1),
    )


def loss_of(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Focal loss over the judged cells, so that the many easy ones weigh little."""
    truth = (target == 1).float()
    each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    miss = (torch.sigmoid(logits) - truth).abs() ** 1.5
    weight = torch.where(truth > 0, 2.0, 1.0) * (target != IGNORED)
    return (each * miss * weight).sum() / (truth.sum() + 50)


def train(pools: tuple[list[Background], ...], steps: int, seed: int) -> nn.Sequential:
    """Fit the network; one process draws while this one learns."""
    torch.manual_seed(seed)
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps, pct_start=0.1)
    batches = iter(DataLoader(Samples(pools, seed), _BATCH, num_workers=1, prefetch_factor=8))
    mean, started = 0.0, time.monotonic()
    for step in range(steps):
        tiles, target = next(batches)
        loss = loss_of(net(tiles.float() / 255)[:, 0], target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        mean += (loss.item() - mean) / min(step + 1, 100)
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}  loss {mean:.4f}  {time.monotonic() - started:.0f} s", flush=True)
    return net


def save(net: nn.Sequential) -> None:
    """Write the weights for grey levels 0..255 and with probabilities at the end."""
    first = net[0]
    assert isinstance(first, nn.Conv2d)
    with torch.no_grad():
        first.weight /= 255
    WEIGHTS.write_bytes(to_onnx(nn.Sequential(*net, nn.Sigmoid())))
    FRAME_WEIGHTS.write_bytes(to_onnx(nn.Sequential(for_one_picture(first), *list(net)[1:], nn.Sigmoid())))


def for_one_picture(first: nn.Conv2d) -> nn.Conv2d:
    """The layer that computes from one picture what `first` does from three copies of it."""
    assert isinstance(first.kernel_size, tuple)
    assert isinstance(first.stride, tuple)
    layer = nn.Conv2d(1, first.out_channels, first.kernel_size, first.stride)  # type: ignore[arg-type]
    assert first.bias is not None
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(first.weight.sum(dim=1, keepdim=True))
        layer.bias.copy_(first.bias)
    return layer


def make_pools(seed: int, folder: Path | None, size: int = 240) -> tuple[list[Background], ...]:
    """Backgrounds of the generator, of procedural speckle, and of real frames if a folder is given."""
    rng = np.random.default_rng((seed, 0))
    generated: list[Background] = []
    for _ in range(size):
        frames, region = pictures.synthetic_frames(rng)
        generated.append((pictures.tiles_of(frames, region), region))
    speckle: list[Background] = [
        (looks(pictures.speckle_frames(rng, (320, 400), int(rng.choice([1, 5, 8])))), None) for _ in range(2 * size)
    ]
    real: list[Background] = [(looks(pictures.real_frames(path)), None) for path in real_files(folder, seen=True)]
    return (generated, speckle, real) if real else (generated, speckle)


def real_files(folder: Path | None, seen: bool) -> list[Path]:
    """Text-free pictures and videos of a folder; a quarter of the groups (name up to the first -) is for evaluation."""
    files = [] if folder is None else sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if (zlib.crc32(path.stem.split("-")[0].encode()) % 4 > 0) == seen]


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backgrounds", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    save(train(make_pools(args.seed, args.backgrounds), args.steps, args.seed))
    print(f"{WEIGHTS}: {WEIGHTS.stat().st_size} bytes; now run python -m pipeline.bench.text_limits")


if __name__ == "__main__":
    main()

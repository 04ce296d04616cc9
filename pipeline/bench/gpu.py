"""The step on a CUDA device: ViT-S, B and L at 224 pixels in bf16: `make bench-gpu`.

    python -m pipeline.bench.gpu [--sizes small base large] [--rounds 5] [--folder build/bench-gpu]

Beside it, in the same run, a plain-PyTorch I-JEPA step: eager, bf16 autocast, masks drawn before the clock starts, as
loader workers would. All ways of a size stay on the device and take turns; a turn is 20 steps between two
synchronisations. `useful` counts what the model needs (train/flops.py), over the rate of a large bf16 matrix product
measured in the same rounds. Raw numbers go to gpu.json, profiles beside it. Exit code 1 when a gate fails, 2 without
CUDA. The gates are judgement from arithmetic until a first run has set them below what it measured.
"""

import argparse
import copy
import gc
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from pipeline.bench.gpu_ways import (
    MATMUL,
    STEPS,
    OurWay,
    PlainWay,
    compiled_graphs,
    host_syncs,
    matmul_way,
    peak_gib,
    synchronised_clock,
    write_profile,
)
from pipeline.bench.our_step import IJEPA_MASKS, OurStep, bench_config, plain_shape
from pipeline.bench.timing import Gate, Timing, machine_facts
from train.engine import start_distributed
from train.flops import costs_of, step_flops
from train.teacher import random_teacher

_IMAGE = 224  # pixels
_FP8_CAPABILITY = (8, 9)
_NO_CUDA = 2  # exit code
PLAIN, EAGER, COMPILED = "plain I-JEPA", "eager", "compiled"
AHEAD, SMALLER = "compiled, side stream", "compiled, less teacher"


@dataclass(frozen=True)
class Size:
    """A shipped config by its stem, its student, a smaller teacher, the batch, and gates.

    The gates are the useful share of the matrix product's rate, and compiled over eager.
    """

    config: str
    arch: str
    smaller: str
    batch: int
    useful: float
    compiled: float


SIZES = {
    "small": Size("vit_small", "vit_small_patch16_224", "vit_tiny_patch16_224", 512, 0.28, 1.5),
    "base": Size("vit_base", "vit_base_patch16_224", "vit_small_patch16_224", 256, 0.40, 1.15),
    "large": Size("vit_large", "vit_large_patch16_224", "vit_base_patch16_224", 128, 0.50, 1.0),
}


@dataclass(frozen=True)
class Row:
    """One way at one size.

    Attributes:
        rate: images per second.
        memory: peak GiB over what lay on the device before.
        useful: TFLOP/s that the model needs.
        share: useful over the measured matrix product; None for the plain step, whose shapes vary.
        recompiles: graphs compiled after the third step.
        syncs: places where the host waited for the device within 20 steps, with how often.

    """

    size: str
    way: str
    rate: float
    memory: float
    useful: float | None
    share: float | None
    recompiles: int
    syncs: dict[str, int]

    def __str__(self) -> str:
        useful = "       -         -" if self.useful is None else f"{self.useful:8.1f}  {self.share:8.1%}"
        speed = f"{self.rate:9,.0f}  {self.memory:6.1f}  {useful}"
        return f"  {self.size:<6} {self.way:<22} {speed}  {self.recompiles:10}  {sum(self.syncs.values()):5}"


def main() -> None:
    """Print the tables and gates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-gpu"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench-gpu needs a CUDA device, and torch sees none here; `make bench-step` measures a CPU")
        sys.exit(_NO_CUDA)
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # else the rest would run eagerly and be called compiled
    start_distributed()
    facts = machine_facts() | {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print("\n  size   way                     images/s     GiB  TFLOP/s  of matmul  recompiles  syncs")
    rows = [row for name in args.sizes for row in bench_size(name, args.rounds, args.folder)]
    cosine = fp8_cosine()
    print(f"\nfp8 teacher: {'no such precision here' if cosine is None else f'cosine to bf16 {cosine:.5f}'}")
    gates = gates_of(rows)
    print("\ngates", *gates, sep="\n")
    raw = {"machine": facts, "rows": [asdict(row) for row in rows], "fp8_cosine": cosine}
    (args.folder / "gpu.json").write_text(json.dumps(raw, indent=1) + "\n")
    sys.exit(not all(gate.passed for gate in gates))


def bench_size(name: str, rounds: int, folder: Path) -> list[Row]:
    """Build all ways of a size, let them take turns, then look at each by itself."""
    size, device = SIZES[name], torch.device("cuda")
    images = torch.rand(size.batch, 1, _IMAGE, _IMAGE, device=device)
    ways: dict[str, PlainWay | OurWay] = {}
    memory: dict[str, float] = {}
    for way, build in _builders(size, images).items():
        memory[way], ways[way] = peak_gib(build)
    timing = Timing(synchronised_clock)
    timing.measure({**ways, "matmul": matmul_way(device)}, rounds)
    rows = [_row(name, way, ways[way], timing, memory[way]) for way in ways]
    print(*rows, sep="\n", flush=True)
    for row in rows:
        if row.syncs and row.way == COMPILED:
            print(f"    waits: {', '.join(f'{place} {count} x' for place, count in row.syncs.items())}")
    write_profile(ways[COMPILED], folder / f"vit_{name}")
    ways.clear()
    torch._dynamo.reset()  # a size must not use up the next one's limit of compilations
    gc.collect()  # engines refer to themselves
    torch.cuda.empty_cache()
    return rows


def _builders(size: Size, images: torch.Tensor) -> dict[str, Callable[[], PlainWay | OurWay]]:
    def ours(teacher: str, *, compiled: bool, ahead: bool = False) -> OurWay:
        switch = f"run.compile={str(compiled).lower()}"
        cfg = bench_config(size.config, len(images), "bf16", *IJEPA_MASKS, switch)
        return OurWay(images, OurStep(cfg, random_teacher(teacher, _IMAGE // 16), images.device), ahead=ahead)

    return {
        PLAIN: lambda: PlainWay(images, plain_shape(bench_config(size.config, len(images), "bf16"))),
        EAGER: lambda: ours(size.arch, compiled=False),
        COMPILED: lambda: ours(size.arch, compiled=True),
        AHEAD: lambda: ours(size.arch, compiled=True, ahead=True),
        SMALLER: lambda: ours(size.smaller, compiled=True),
    }


def _row(size: str, name: str, way: PlainWay | OurWay, timing: Timing, memory: float) -> Row:
    num_images, seconds = STEPS * len(way.images), timing.median(name)
    useful, share = None, None
    if isinstance(way, OurWay):
        teacher: Any = way.ours.objective.teacher
        useful = step_flops(costs_of(way.ours.cfg, teacher.width, teacher)) * num_images / seconds / 1e12
        share = useful * 1e12 * timing.median("matmul") / (2 * MATMUL**3 * STEPS)
    before = compiled_graphs()  # all have done more than three steps by now
    syncs = host_syncs(way)
    return Row(size, name, num_images / seconds, memory, useful, share, compiled_graphs() - before, syncs)


def gates_of(rows: list[Row]) -> list[Gate]:
    """What must hold; rows of each size come with all ways."""
    gates: list[Gate] = []
    for name in dict.fromkeys(row.size for row in rows):
        way = {row.way: row for row in rows if row.size == name}
        rate = {key: row.rate for key, row in way.items()}
        gates += [
            Gate(f"ViT {name}: useful over measured matmul", way[COMPILED].share, SIZES[name].useful),
            Gate(f"ViT {name}: compiled over eager", rate[COMPILED] / rate[EAGER], SIZES[name].compiled),
            Gate(f"ViT {name}: teacher on a side stream over inline", rate[AHEAD] / rate[COMPILED], 1.03),
            Gate(f"ViT {name}: recompiles after step 3", way[COMPILED].recompiles, 0, at_most=True),
            Gate(f"ViT {name}: host syncs in {STEPS} steps", sum(way[COMPILED].syncs.values()), 0, at_most=True),
        ]
        if name == "base":
            gates.append(Gate("ViT base: over plain I-JEPA, same-size teacher", rate[COMPILED] / rate[PLAIN], 2.0))
            gates.append(Gate("ViT base: ViT-S teacher over same-size", rate[SMALLER] / rate[COMPILED], 1.25))
    return gates


def fp8_cosine() -> float | None:
    """Mean cosine between a ViT-B teacher's latents in fp8 and in bf16; None where the device has no fp8."""
    if torch.cuda.get_device_capability() < _FP8_CAPABILITY:
        return None
    exact = random_teacher(SIZES["base"].arch, _IMAGE // 16).cuda()
    rough = copy.deepcopy(exact)
    exact.set_precision("bf16")
    rough.set_precision("fp8")
    images = torch.rand(64, 1, _IMAGE, _IMAGE, device="cuda")
    return float(functional.cosine_similarity(exact(images), rough(images), dim=-1).mean())


if __name__ == "__main__":
    main()

"""Our training step beside a plain-PyTorch I-JEPA step, on this CPU, in one run: `make bench-step`.

    python -m pipeline.bench.step [--batch 16] [--rounds 3] [--threads 1] [--folder build/bench-step]

Same model, batch, threads and precision, the same images, already cropped; every round runs each way once; median and
spread over the rounds. One thread is timed by the CPU time of the process, which neighbours disturb little, more
threads by the wall clock. Ratios are the gates, never absolute speeds; the raw seconds go to step.json.
"""

import argparse
import copy
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from pipeline.bench.our_step import IJEPA_MASKS, OurStep, bench_config, loss_of, plain_shape
from pipeline.bench.plain_ijepa import Collator, PlainIjepa
from pipeline.bench.timing import Gate, Timing, Way, machine_facts
from train.config import PretrainConfig
from train.engine import start_distributed
from train.flops import Cost, costs_of, params_of, step_flops
from train.masks import draw_masks
from train.teacher import random_teacher

_SIZE, _GRID = 224, 14  # pixels, patches per side
_SMALL, _TINY = "vit_small_patch16_224", "vit_tiny_patch16_224"
_IJEPA_SCALE, _US_SCALE = (0.15, 0.2), (0.075, 0.125)
_DRAWS = 101  # of masks, to find a typical one
_MASK_BATCHES = (128, 1024)  # of one GPU, of eight: ours draws all images at once
_MASK_IMAGES = 4096
_ENGINE_ROUNDS = 15  # for each round of the large steps, which take a hundred times as long
_ENGINE_MASKS = ("masks.context_tokens=4", "masks.target_tokens=1", "masks.min_patches=1")
_MATMUL = 1024  # rows and columns
_CPU = torch.device("cpu")


class PlainWay:
    """The plain I-JEPA step with its collator.

    The collator runs each time, but every step takes the one draw of many with the median number of tokens: a few
    rounds would otherwise say more about the draws than about the step.
    """

    def __init__(self, images: torch.Tensor, target_scale: tuple[float, float]) -> None:
        self.shape = plain_shape(bench_config("vit_small", len(images), "fp32"))
        self.model, self.collator, self.images = PlainIjepa(self.shape), Collator(_GRID, target_scale), images
        draws = [self.collator(len(images)) for _ in range(_DRAWS)]
        self.masks = sorted(draws, key=_num_tokens)[_DRAWS // 2]

    def __call__(self) -> None:
        """One step."""
        self.collator(len(self.images))
        self.model.step(self.images * 2 - 1, self.masks)

    def config(self) -> PretrainConfig:
        """Ours with the same model and number of tokens, to count operations with."""
        context_ids, targets = self.masks
        masks = (f"masks.context_tokens={context_ids.shape[1]}", f"masks.target_tokens={targets[0].shape[1]}")
        cfg = bench_config("vit_small", len(self.images), "fp32", *masks, "predictor.mode=per_block")
        return cfg.model_copy(update={"objective": "ema", "teacher": None})

    def costs(self) -> dict[str, Cost | None]:
        """Of this step."""
        return costs_of(self.config(), self.shape.encoder[0])


def _num_tokens(masks: tuple[torch.Tensor, list[torch.Tensor]]) -> int:
    """Of the student and of all predictor passes, per image."""
    context_ids, targets = masks
    return context_ids.shape[1] + sum(context_ids.shape[1] + ids.shape[1] for ids in targets)


class OurWay:
    """Our step with a teacher of some size."""

    def __init__(self, images: torch.Tensor, teacher: str, precision: str, *overrides: str) -> None:
        self.images, self.step, self.teacher = images, 0, random_teacher(teacher, _GRID)
        self.ours = OurStep(bench_config("vit_small", len(images), precision, *overrides), self.teacher, _CPU)

    def __call__(self) -> None:
        """One step."""
        self.step += 1
        self.ours(self.images, self.step)

    def config(self) -> PretrainConfig:
        """Of this step."""
        return self.ours.cfg

    def costs(self) -> dict[str, Cost | None]:
        """Of this step."""
        return costs_of(self.ours.cfg, self.teacher.width, self.teacher)


def main() -> None:
    """Print tables and gates; exit code 1 when a gate fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-step"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    start_distributed()
    timing = Timing(time.process_time if args.threads == 1 else time.perf_counter)
    clock = "CPU time" if args.threads == 1 else "wall clock"
    facts = machine_facts() | {"threads": args.threads, "batch": args.batch, "rounds": args.rounds, "clock": clock}
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    gates = [*bench_masks(timing, args.rounds), *bench_engine(timing, args.rounds)]
    gates = [*bench_steps(timing, args.batch, args.rounds, bf16=bool(facts["avx512_bf16"])), *gates]
    print("\ngates", *gates, sep="\n")
    args.folder.mkdir(parents=True, exist_ok=True)
    raw = {"machine": facts, "seconds": timing.seconds, "gates": [asdict(gate) for gate in gates]}
    (args.folder / "step.json").write_text(json.dumps(raw, indent=1) + "\n")
    sys.exit(not all(gate.passed for gate in gates))


def bench_steps(timing: Timing, batch: int, rounds: int, *, bf16: bool) -> list[Gate]:
    """Ours and the plain step; the rate of a large matrix product is taken in the same rounds."""
    images = torch.rand(batch, 1, _SIZE, _SIZE)
    plain, ours, tiny = "plain I-JEPA", "ours, I-JEPA's blocks", "ours, ViT-Ti teacher"
    plain_us, ours_us, ours_bf16 = "plain, US-JEPA's blocks", "ours, US-JEPA's blocks", "ours, bf16"
    ways: dict[str, PlainWay | OurWay] = {
        plain: PlainWay(images, _IJEPA_SCALE),
        ours: OurWay(images, _SMALL, "fp32", *IJEPA_MASKS),
        tiny: OurWay(images, _TINY, "fp32", *IJEPA_MASKS),
        plain_us: PlainWay(images, _US_SCALE),
        ours_us: OurWay(images, _SMALL, "fp32"),
    }
    if bf16:
        ways[ours_bf16] = OurWay(images, _SMALL, "bf16", *IJEPA_MASKS)
    products = {"matmul fp32": _matmul(torch.float32), "matmul bf16": _matmul(torch.bfloat16)}
    timing.measure({**ways, **products}, rounds)
    print(f"\n{'ViT-S/16 at 224, median step':<26} images/s  spread  GFLOP/s  of matmul  tokens K, L")
    for name, way in ways.items():
        print(_row(timing, name, way, batch), flush=True)
    return [
        Gate("ours over plain I-JEPA, same-size teacher, I-JEPA's blocks, fp32", timing.ratio(plain, ours), 1.15),
        Gate("ours with a ViT-Ti teacher over plain I-JEPA, fp32", timing.ratio(plain, tiny), 1.4),
        Gate("ours over plain, both under US-JEPA's blocks, fp32", timing.ratio(plain_us, ours_us), 1.15),
        Gate(
            "our bf16 over our fp32" + ("" if bf16 else ": no avx512_bf16 here"),
            timing.ratio(ours, ours_bf16) if bf16 else None,
            1.3,
        ),
    ]


def _row(timing: Timing, name: str, way: PlainWay | OurWay, batch: int) -> str:
    cfg, seconds = way.config(), timing.median(name)
    rate = step_flops(way.costs()) * batch / seconds
    ceiling = 2 * _MATMUL**3 / timing.median(f"matmul {cfg.optim.precision}")
    speed = f"{batch / seconds:8.2f}  {timing.spread(name):6.1%}  {rate / 1e9:7.1f}  {rate / ceiling:9.1%}"
    return f"  {name:<24} {speed}  {cfg.masks.context_tokens}, {cfg.masks.target_tokens}"


def _matmul(dtype: torch.dtype) -> Way:
    left, right = (torch.rand(_MATMUL, _MATMUL, dtype=dtype) for _ in range(2))
    return lambda: left @ right


def bench_masks(timing: Timing, rounds: int) -> list[Gate]:
    """Masks of I-JEPA's scales by ours and by its collator, whose time per image does not depend on the batch."""
    print(f"\n{'masks':<26} images/s  spread  shapes")
    for batch in _MASK_BATCHES:
        ratio, num_shapes = _masks_row(timing, rounds, batch)
    return [
        Gate(f"masks per second over I-JEPA's collator, batch {batch}", ratio, 10),
        Gate("distinct shapes of our masks", num_shapes, 1, at_most=True),
    ]


def _masks_row(timing: Timing, rounds: int, batch: int) -> tuple[float, int]:
    """Ours over the collator, and how many shapes ours have."""
    cfg = bench_config("vit_small", batch, "fp32", *IJEPA_MASKS).masks
    valid, collator = torch.ones(batch, _GRID**2, dtype=torch.bool), Collator(_GRID, _IJEPA_SCALE)
    names = (f"ours, batch {batch}", f"collator, batch {batch}")
    shapes: dict[str, set[tuple[int, int]]] = {name: set() for name in names}
    turns = range(_MASK_IMAGES // batch)

    def ours() -> None:
        for number in turns:
            masks = draw_masks(valid, torch.arange(batch) + number * batch, cfg, 0)
            shapes[names[0]].add((masks.context_ids.shape[1], masks.target_ids.shape[2]))

    def theirs() -> None:
        for _ in turns:
            context_ids, targets = collator(batch)
            shapes[names[1]].add((context_ids.shape[1], targets[0].shape[1]))

    timing.measure({names[0]: ours, names[1]: theirs}, rounds)
    for name, seen in shapes.items():
        rate = _MASK_IMAGES / timing.median(name)
        print(f"  {name:<24} {rate:8,.0f}  {timing.spread(name):6.1%}  {len(seen):6}", flush=True)
    return timing.ratio(names[1], names[0]), len(shapes[names[0]])


def bench_engine(timing: Timing, rounds: int) -> list[Gate]:
    """What ZeRO-1 at world 1 adds to a bare loop over the same module, masks and targets.

    On a CPU it copies every gradient and weight, so what it adds grows with the model; the gate is on a small one,
    where the host's time shows. ViT-Ti is printed beside it.
    """
    print(f"\n{'ZeRO-1 at world 1, batch 8':<26}  bare ms  ZeRO-1 ms  added")
    small = _zero_adds(timing, rounds, ("test_vit", 160, 64))
    _zero_adds(timing, rounds, (_TINY, 64, 96))
    return [Gate("ZeRO-1 at world 1 over a bare loop, ms a step", small, 5, at_most=True)]


def _zero_adds(timing: Timing, rounds: int, shape: tuple[str, int, int]) -> float:
    """Milliseconds a step; the shape is the student's name, the image size, and the predictor's width."""
    arch, size, width = shape
    model = (f"student.arch={arch}", f"student.image_size={size}", "predictor.depth=2", f"predictor.width={width}")
    heads = ("predictor.num_heads=2", "run.zero_stage=1")
    cfg = bench_config("vit_small", 8, "fp32", *model, *heads, *_ENGINE_MASKS)
    images = torch.rand(8, 1, size, size)
    ours = OurStep(cfg, random_teacher(arch, size // 16), _CPU)
    bare = copy.deepcopy(ours.module)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=cfg.optim.lr, betas=cfg.optim.betas, fused=True)
    prepared = ours.prepare(images, 0)

    def bare_loop() -> None:
        loss_of(bare, prepared).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(bare.parameters(), cfg.optim.clip)
        optimizer.step()
        optimizer.zero_grad()

    zero, loop = f"ZeRO-1, {arch}", f"bare loop, {arch}"
    timing.measure({zero: lambda: ours.update(prepared), loop: bare_loop}, _ENGINE_ROUNDS * rounds)
    added = (timing.median(zero) - timing.median(loop)) * 1e3
    line = f"{timing.median(loop) * 1e3:7.1f}  {timing.median(zero) * 1e3:9.1f}  {added:5.1f}"
    print(f"  {f'{arch}, {params_of(bare) / 1e6:.1f} M':<24}  {line}", flush=True)
    return added


if __name__ == "__main__":
    main()

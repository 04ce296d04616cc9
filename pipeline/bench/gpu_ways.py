"""What `bench-gpu` times, turn by turn, and what it looks at beside the clock: memory, compilations, waits."""

import gc
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from pipeline.bench.our_step import OurStep
from pipeline.bench.plain_ijepa import Collator, PlainIjepa, Shape
from pipeline.bench.timing import Way
from train.step import keep_until_used

STEPS = 20  # of a turn
MATMUL = 8192  # rows and columns
_SYNC_WARNING = "synchronizing CUDA operation"  # in torch's text

Built = TypeVar("Built", bound=Way)


class PlainWay:
    """Turns of plain I-JEPA steps."""

    def __init__(self, images: torch.Tensor, shape: Shape) -> None:
        self.model, self.images = PlainIjepa(shape).to(images.device), images
        collator = Collator(shape.grid, (0.15, 0.2))
        drawn = [collator(len(images)) for _ in range(STEPS)]
        self.masks = [(ids.to(images.device), [t.to(images.device) for t in targets]) for ids, targets in drawn]

    def __call__(self) -> None:
        """One turn."""
        for masks in self.masks:
            with torch.autocast(self.images.device.type, torch.bfloat16):
                self.model.step(self.images * 2 - 1, masks)


class OurWay:
    """Turns of our step, with the teacher inline or one batch ahead on a stream of its own."""

    def __init__(self, images: torch.Tensor, ours: OurStep, *, ahead: bool) -> None:
        self.images, self.ours, self.number = images, ours, 0
        self.stream = torch.cuda.Stream() if ahead else None  # type: ignore[no-untyped-call]
        self.prepared = ours.prepare(images, 0)

    def __call__(self) -> None:
        """One turn."""
        for _ in range(STEPS):
            self.step()

    def step(self) -> None:
        """One step."""
        self.number += 1
        if self.stream is None:
            self.ours(self.images, self.number)
            return
        main = torch.cuda.current_stream()
        self.stream.wait_stream(main)
        with torch.cuda.stream(self.stream):
            following = self.ours.prepare(self.images, self.number + 1)
        self.ours.update(self.prepared)
        main.wait_stream(self.stream)
        keep_until_used([following])
        self.prepared = following


def matmul_way(device: torch.device) -> Way:
    """Turns of a large bf16 matrix product."""
    left, right = (torch.rand(MATMUL, MATMUL, device=device, dtype=torch.bfloat16) for _ in range(2))

    def turn() -> None:
        for _ in range(STEPS):
            left @ right

    return turn


def synchronised_clock() -> float:
    """Seconds, once the device is done."""
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_gib(build: Callable[[], Built]) -> tuple[float, Built]:
    """Build a way, run a turn, and see how much more memory was taken at most."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    way = build()
    way()
    return (torch.cuda.max_memory_allocated() - before) / 2**30, way


def compiled_graphs() -> int:
    """Graphs that torch.compile has made in this process so far."""
    return int(counters["stats"]["unique_graphs"])


def host_syncs(way: Way) -> dict[str, int]:
    """Lines of code that make the host wait for the device during one turn, and how often."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        way()
    torch.cuda.set_sync_debug_mode("default")
    return sync_places(caught)


def sync_places(caught: list[warnings.WarningMessage]) -> dict[str, int]:
    """Count torch's warnings about synchronising operations by file and line."""
    places: dict[str, int] = {}
    for warning in caught:
        if "synchronizing CUDA operation" in str(warning.message):
            place = f"{Path(warning.filename).name}:{warning.lineno}"
            places[place] = places.get(place, 0) + 1
    return places


def write_profile(way: Way, path: Path) -> None:
    """Profile one turn: a table by device time in PATH.txt, a trace for chrome://tracing in PATH.json."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        way()
        torch.cuda.synchronize()
    path.with_suffix(".txt").write_text(profiler.key_averages().table("self_cuda_time_total", row_limit=40))
    profiler.export_chrome_trace(str(path.with_suffix(".json")))

"""Ways of doing the same thing, timed in turn, and the limits that their ratios must keep."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

Way = Callable[[], object]  # one step of something


@dataclass(frozen=True)
class Gate:
    """A number that must not fall below its limit, or not rise above it.

    Attributes:
        name: what is measured, and what the limit is for.
        value: None where this machine cannot measure it; that does not fail.
        limit: in the value's unit.
        at_most: the limit is an upper one.

    """

    name: str
    value: float | None
    limit: float
    at_most: bool = False

    @property
    def passed(self) -> bool:
        """Whether the limit is kept."""
        if self.value is None:
            return True
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self) -> str:
        if self.value is None:
            return f"  skipped  {self.name}"
        verdict, sign = "ok " if self.passed else "BAD", "at most" if self.at_most else "at least"
        return f"  {verdict}  {self.name:<64} {self.value:7.2f}, {sign} {self.limit:g}"


@dataclass
class Timing:
    """Seconds of each way, one entry a round."""

    clock: Callable[[], float]
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, ways: dict[str, Way], rounds: int) -> None:
        """Run every way once to warm up, then once a round, one after the other."""
        for way in ways.values():
            way()
        for _ in range(rounds):
            for name, way in ways.items():
                started = self.clock()
                way()
                self.seconds.setdefault(name, []).append(self.clock() - started)

    def median(self, name: str) -> float:
        """Seconds of a way."""
        return statistics.median(self.seconds[name])

    def spread(self, name: str) -> float:
        """Slowest minus fastest round over the median."""
        return (max(self.seconds[name]) - min(self.seconds[name])) / self.median(name)

    def ratio(self, slow: str, fast: str) -> float:
        """How many times `fast` is faster, at the medians."""
        return self.median(slow) / self.median(fast)


def machine_facts() -> dict[str, object]:
    """Versions, processor, and whether it multiplies in bf16."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    libraries: dict[str, object] = {name: version(name) for name in ("torch", "timm", "deepspeed")}
    return libraries | {"processor": model, "avx512_bf16": any("avx512_bf16" in line for line in lines)}

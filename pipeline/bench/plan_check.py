"""`us-jepa plan` beside a job that really runs: measure a small sample, foresee 10^4 frames, shard and train on them.

    python -m pipeline.bench.plan_check [--frames 10000] [--config train/configs/demo.yaml] [--folder build/plan-check]

The sample and the job are other recordings of the same synthetic source. Exit code 1 where something is off by more
than 25 %. Times are CPU time, in seconds: those hardly depend on what else the machine has to do.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.measure import FRAMES_PER_CINE, measure, pretrain, shard, write_cines
from pipeline.plan import Size, model_of, plan
from pipeline.rates import Rates
from sharding.manifest import load_manifest
from train.config import PretrainConfig
from train.config_file import load_config

_SIZE = (240, 320)  # rows and columns; larger ones take longer to generate than to shard
_SAMPLE = 100  # cines to measure with
_LIMIT = 0.25


@dataclass(frozen=True)
class Compared:
    """A number that was foreseen and found.

    Attributes:
        name: of the quantity.
        foreseen, found: in the same unit.

    """

    name: str
    foreseen: float
    found: float

    def off_by(self) -> float:
        """Share of what was found."""
        return abs(self.foreseen - self.found) / self.found

    def __str__(self) -> str:
        verdict = "ok  " if self.off_by() <= _LIMIT else "BAD "
        return (
            f"{verdict} {self.name:<18} {self.foreseen:>14,.1f} {self.found:>14,.1f} {self.foreseen / self.found:6.2f}"
        )


def main() -> None:
    """Print foreseen over found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--config", type=Path, default=Path("train/configs/demo.yaml"))
    parser.add_argument("--folder", type=Path, default=Path("build/plan-check"))
    args = parser.parse_args()
    cfg, num_files = load_config(args.config, []), -(-args.frames // FRAMES_PER_CINE)
    sample = write_cines(args.folder / "sample", _SAMPLE, 1, _SIZE)
    source = write_cines(args.folder / "source", num_files, 2, _SIZE)
    rates = measure(cfg, args.config, args.folder / "measured", sample, _SAMPLE)
    rates.save(args.folder / "rates.json")
    compared = compare(cfg, args.config, rates, source, args.folder)
    print(f"{'':<23} {'foreseen':>14} {'found':>14}  ratio", *compared, sep="\n", flush=True)
    sys.exit(any(one.off_by() > _LIMIT for one in compared))


def compare(cfg: PretrainConfig, config: Path, rates: Rates, source: Path, folder: Path) -> list[Compared]:
    """Run what the plan foresees: one job over all sources, one epoch over all frames."""
    num_files = len(list(source.glob("*.dcm")))
    size = Size(num_files * rates.frames_per_source.value, 0, 1, cores_per_node=len(os.sched_getaffinity(0)))
    foreseen = {one.name: one.value for one in plan(size, rates, model_of(config.stem, cfg))}
    shards, run_dir = folder / "shards", folder / "runs" / "job"
    sharding = shard(source, shards, folder / "key")
    manifest = load_manifest(shards)
    training = pretrain(cfg, config, shards, run_dir, int(foreseen["steps"]))
    found = {
        "sources": num_files,
        "bytes of sources": sum(path.stat().st_size for path in source.glob("*.dcm")),
        "bytes of shards": sum(one.num_bytes for one in manifest.shards),
        "shards": len(manifest.shards),
        "CPU hours, sharding": sharding.cpu,
        "CPU hours, training": training.cpu,
        "a checkpoint": max(path.stat().st_size for path in (run_dir / "checkpoints").glob("*.safetensors")),
    }
    print(f"by the wall clock: sharding {sharding.wall:.0f} s, training {training.wall:.0f} s", flush=True)
    frames = Compared("frames", size.frames, manifest.num_samples())
    seconds = {name: name.replace("hours", "seconds") for name in found}
    return [frames, *(Compared(seconds[name], foreseen[name], value) for name, value in found.items())]


if __name__ == "__main__":
    main()

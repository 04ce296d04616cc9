"""Shard thousands of broken and hostile files: the job must end, each file must have one outcome, memory must hold.

python -m pipeline.bench.fuzz [--files 5000] [--folder build/fuzz] [--seed 0]
"""

import argparse
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
from rich.progress import track

from pipeline.bench.hostile import bombs, mutate, write_seeds
from pipeline.shards import watch
from sharding.job import on_processes, run
from sharding.plan import make_plan
from sharding.policy import Job, Limits, Policy
from sharding.recording import FrameChoice
from sharding.store import Store
from sharding.unit import read_lines

_LIMITS = Limits(seconds=10, memory=2 << 30)
_WORKERS = 2


def main() -> None:
    """Run it; exit code 1 when a file has not exactly one outcome or a process outgrew its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    source = args.folder / "source"
    num_files = _write_files(source, args.folder / "seeds", args.files, args.seed)
    job = Job(
        str(source), str(args.folder / "out"), Policy("fuzz", FrameChoice(8)), args.folder / "key", limits=_LIMITS
    )
    plan = make_plan(job)
    started = time.monotonic()
    with _Peak() as peak:
        watch(run(job, plan, on_processes(_WORKERS)), plan, plan.num_units)
    print(f"{num_files} files in {time.monotonic() - started:.0f} s, seed {args.seed}")
    raise SystemExit(_judge(job, plan.num_units, num_files, peak.resident))


def _write_files(source: Path, seeds: Path, num_files: int, seed: int) -> int:
    source.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    whole = [path.read_bytes() for path in write_seeds(seeds)]
    suffixes = [path.suffix for path in sorted(seeds.iterdir())]
    for name, data in bombs():
        (source / name).write_bytes(data)
    num_bombs = len(list(source.iterdir()))
    for number in track(range(num_files - num_bombs), description="mutate"):
        chosen = int(rng.integers(len(whole)))
        (source / f"{number:05d}{suffixes[chosen]}").write_bytes(mutate(whole[chosen], rng))
    return num_files


class _Peak:
    """Largest resident memory of any process below this one, looked at ten times a second."""

    def __init__(self) -> None:
        self.resident = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "_Peak":
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.1):
            for process in me.children(recursive=True):
                try:
                    self.resident = max(self.resident, process.memory_info().rss)
                except psutil.NoSuchProcess:  # ended while we looked
                    continue


def _judge(job: Job, num_units: int, num_files: int, resident: int) -> int:
    lines = [line for unit in range(num_units) for line in read_lines(Store(job.out), unit)]
    sources = Counter(line["source"] for line in lines)
    archives = len(lines) - num_files  # members of archives have outcomes of their own
    outcomes = Counter(line["outcome"] for line in lines)
    faults = Counter(line["fault"] for line in lines if "fault" in line)
    for name, count in outcomes.most_common():
        print(f"  {name:<22}{count:6}")
    print(f"  {len(lines)} outcomes ({archives} more than files: members of archives)")
    print(f"  named twice: {sum(count > 1 for count in sources.values())}; faults of our own: {dict(faults) or 'none'}")
    print(f"  largest process {resident / 2**30:.2f} GiB of {_LIMITS.memory / 2**30:.0f} GiB")
    return int(len(sources) != len(lines) or archives < 0 or bool(faults) or resident > _LIMITS.memory)


if __name__ == "__main__":
    main()

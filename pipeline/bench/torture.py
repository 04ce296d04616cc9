"""Kill a sharding job again and again, finish it, and compare every byte with an undisturbed run.

    python -m pipeline.bench.torture [--kills 50] [--folder build/torture]

Each moment and each victim (the job itself, or one of its processes) is drawn at random from the printed seed.
"""

import argparse
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from sharding.sources.synthetic_files import write_demo_set

_PATIENTS = 60


def main() -> None:
    """Run it; exit code 1 when a byte differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--folder", type=Path, default=Path("build/torture"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    source = write_demo_set(args.folder / "source", _PATIENTS, seed=3).parent
    started = time.monotonic()
    _start(source, args.folder / "whole").wait()
    seconds = time.monotonic() - started
    expected = _bytes_of(args.folder / "whole")
    print(f"undisturbed: {len(expected)} files in {seconds:.1f} s; seed {args.seed}", flush=True)
    sys.exit(_torture(args, source, seconds, expected))


def _torture(args: argparse.Namespace, source: Path, seconds: float, expected: dict[str, bytes]) -> int:
    rng = random.Random(args.seed)
    num_kills = num_jobs = num_different = 0
    while num_kills < args.kills:
        out = args.folder / f"job-{num_jobs}"
        killed_here = 0
        while True:
            victim = _run_and_kill(source, out, rng, seconds)
            if victim is None:
                break
            killed_here += 1
            print(f"kill {num_kills + killed_here}: {victim}", flush=True)
        num_kills += killed_here
        num_jobs += 1
        found = _bytes_of(out)
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        num_different += bool(different)
        print(f"job {num_jobs}: {killed_here} kills, {len(found)} files, different: {different or 'none'}", flush=True)
        shutil.rmtree(out)
    print(f"{num_kills} kills over {num_jobs} jobs; {num_different} jobs with other bytes than the undisturbed one")
    return 1 if num_different else 0


def _run_and_kill(source: Path, out: Path, rng: random.Random, seconds: float) -> str | None:
    """Start or continue a job and kill something of it; None when it finished first."""
    job = _start(source, out)
    moment, whole = rng.uniform(0, seconds), rng.random() < 0.5  # noqa: PLR2004 - one half
    try:
        job.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        victims = [] if whole else psutil.Process(job.pid).children(recursive=True)
        victim = rng.choice(victims) if victims else psutil.Process(job.pid)
        name = f"{'job' if victim.pid == job.pid else 'child'} after {moment:.2f} s"
        victim.kill()
        job.wait()
        return name
    if job.returncode:
        raise RuntimeError(f"the job ended with exit code {job.returncode} though nobody killed it") from None
    return None


def _start(source: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [Path(sys.executable).parent / "us-jepa", "shards", source, out, "--dataset", "torture"]
    command += ["--key-file", out.parent / "key", "--max-frames", "8"]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _bytes_of(folder: Path) -> dict[str, bytes]:
    """Content of every file of a shard directory but its locks; nothing unfinished may be left."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


if __name__ == "__main__":
    main()

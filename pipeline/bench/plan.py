"""Plan ten million files that do not exist: time and memory of the listing, its hash, its units. Then run one unit of
100 and one of 800 real cines: memory of the worker must not follow their number.

python -m pipeline.bench.plan [--files 10000000]
"""

import argparse
import dataclasses
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pydicom

from sharding.plan import write_plan
from sharding.policy import Job, Policy
from sharding.unit import run_unit

_FILES_PER_FOLDER = 1000
_FILE_BYTES = 5_000_000
_KILO = 1024
_UNIT_FILES = (100, 800)


def main() -> None:
    """Print seconds and peak memory; exit code 1 above 5 minutes or 2 GB."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000_000)
    args = parser.parse_args()
    few, many = (_unit_memory(count) for count in _UNIT_FILES)  # first: a process inherits the peak of its parent
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        plan = write_plan(_listing(args.files), Path(folder) / "plan.txt")
        listed = time.monotonic() - started
        sizes = [len(plan.unit(number)) for number in (0, plan.num_units // 2, plan.num_units - 1)]
    seconds = time.monotonic() - started
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KILO / 1e9
    print(f"{plan.num_sources:,} files in {plan.num_units:,} units of {min(sizes)} to {max(sizes)} files")
    print(f"listed in {listed:.0f} s, first units after {seconds:.0f} s, peak memory {gigabytes:.2f} GB")
    print(f"one unit of {_UNIT_FILES[0]} cines: {few:.0f} MB, of {_UNIT_FILES[1]}: {many:.0f} MB, in the worker")
    raise SystemExit(seconds > 300 or gigabytes > 2)  # noqa: PLR2004 - the limits above


def _unit_memory(count: int) -> float:
    """Peak memory in MB of a fresh process that runs a unit of that many cines."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_run_unit, count).result()


def _run_unit(count: int) -> float:
    cine = Path(pydicom.__file__).parent / "data" / "test_files" / "examples_ybr_color.dcm"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "source").mkdir()
        shutil.copy(cine, folder / "source" / "0.dcm")
        for number in range(1, count):
            (folder / "source" / f"{number}.dcm").hardlink_to(folder / "source" / "0.dcm")
        plan = write_plan(((f"{number}.dcm", 0) for number in range(count)), folder / "plan.txt")
        one_unit = dataclasses.replace(plan, num_units=1)
        job = Job(str(folder / "source"), str(folder / "out"), Policy("memory"), folder / "key")
        (folder / "out" / "outcomes").mkdir(parents=True)
        run_unit(job, one_unit, 0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KILO / 1e6


def _listing(num_files: int) -> Iterator[tuple[str, int]]:
    for number in range(num_files):
        folder, file = divmod(number, _FILES_PER_FOLDER)
        yield f"archive/{folder // 100:04d}/study-{folder:06d}/IM{file:06d}.dcm", _FILE_BYTES


if __name__ == "__main__":
    main()

"""Plan ten million files that do not exist: time and memory of the listing, its hash, its units.

python -m pipeline.bench.plan [--files 10000000]
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sharding.plan import write_plan

_FILES_PER_FOLDER = 1000
_FILE_BYTES = 5_000_000
_KILO = 1024


def main() -> None:
    """Print seconds and peak memory; exit code 1 above 5 minutes or 2 GB."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000_000)
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        plan = write_plan(_listing(args.files), Path(folder) / "plan.txt")
        listed = time.monotonic() - started
        sizes = [len(plan.unit(number)) for number in (0, plan.num_units // 2, plan.num_units - 1)]
    seconds = time.monotonic() - started
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KILO / 1e9
    print(f"{plan.num_sources:,} files in {plan.num_units:,} units of {min(sizes)} to {max(sizes)} files")
    print(f"listed in {listed:.0f} s, first units after {seconds:.0f} s, peak memory {gigabytes:.2f} GB")
    raise SystemExit(seconds > 300 or gigabytes > 2)  # noqa: PLR2004 - the limits above


def _listing(num_files: int) -> Iterator[tuple[str, int]]:
    for number in range(num_files):
        folder, file = divmod(number, _FILES_PER_FOLDER)
        yield f"archive/{folder // 100:04d}/study-{folder:06d}/IM{file:06d}.dcm", _FILE_BYTES


if __name__ == "__main__":
    main()

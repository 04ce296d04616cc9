"""Sharding beside the obvious pipeline, on one core, on the same JPEG baseline cines (YBR_FULL_422, as
scanners write them), interleaved in one run.

    python -m pipeline.bench.sharding [--rounds 3] [--folder build/bench-sharding]

The obvious pipeline: pydicom `pixel_array` -> cv2 grey, resize, JPEG -> `webdataset.ShardWriter`; no de-identification,
no region, no limits, one process. Ours: `certified` with everything on, and `as_is` without region, text and colour.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import cv2
import pydicom
import webdataset

from sharding.job import Execute, on_processes, run
from sharding.plan import make_plan
from sharding.policy import Job, Policy
from sharding.preprocess import SHORT_SIDE, Pixels
from sharding.sources.synthetic import Geometry, SyntheticSpec, generate
from sharding.sources.synthetic_files import write_dicom

_GENERATED = ((600, 800, 24), (768, 1024, 16), (240, 320, 48))  # rows, columns, files
_REAL = "examples_ybr_color.dcm"  # 30 frames of a heart, 320 x 240, in the pydicom wheel
_FRAMES = 30
_COPIES, _COPIES_OF_SMALL = 12, 40  # whole jobs long enough that the start of the processes hardly counts
_PIN = "--one-core"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-sharding"))
    parser.add_argument(_PIN, type=Path, metavar="CINES", help="only the rows on one core")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    if args.one_core:
        _bench_one_core(args.one_core, args.folder / "out", args.rounds)
        return
    print(f"median of {args.rounds} rounds, {_FRAMES}-frame JPEG baseline cines, frames/s")
    for source in (_copy_real(args.folder / "real-heart"), *(_write_cines(args.folder, *size) for size in _GENERATED)):
        copies = _COPIES_OF_SMALL if source.name == "real-heart" else _COPIES
        # Pinned in a process of its own: a fork server keeps the cores that it was started on.
        command = [sys.executable, "-m", "pipeline.bench.sharding", "--rounds", str(args.rounds)]
        subprocess.run([*command, "--folder", str(args.folder), _PIN, str(source)], check=True)
        _bench_two_workers(source, copies, args.folder / "out", args.rounds)


def _copy_real(folder: Path) -> Path:
    """Copies of one file: all are decoded and cut, then all but one are taken out as duplicates."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(32):
        shutil.copy(Path(pydicom.__file__).parent / "data" / "test_files" / _REAL, folder / f"{number:03d}.dcm")
    return folder


def _write_cines(folder: Path, rows: int, columns: int, num_files: int) -> Path:
    folder /= f"{rows}x{columns}"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_files):
        path = folder / f"{number:03d}.dcm"
        if not path.exists():
            geometry = get_args(Geometry)[number % 3]
            spec = SyntheticSpec(
                geometry, number % 3, _FRAMES, rows, columns, number, patient_id=f"P{number}", colour=True
            )
            write_dicom(generate(spec), spec, path)
    return folder


def _bench_one_core(source: Path, out: Path, rounds: int) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # children inherit it
    num_files = len(list(source.glob("*.dcm")))
    ways: dict[str, Callable[[], None]] = {
        "obvious pipeline": lambda: _obvious(source, out),
        "certified": lambda: _ours(source, out, "certified", on_processes(1)),
        "as_is": lambda: _ours(source, out, "as_is", on_processes(1)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # warm: imports, page cache, fork server
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(_time(way))
    base = statistics.median(seconds["obvious pipeline"])
    for name, taken in seconds.items():
        rate = num_files * _FRAMES / statistics.median(taken)
        print(f"  {source.name:>10}  {name:<18} {rate:7.0f}  {base / statistics.median(taken):5.2f}x", flush=True)


def _bench_two_workers(source: Path, copies: int, out: Path, rounds: int) -> None:
    """Whole jobs, start of the processes included, on many copies (hard links)."""
    many = source.parent / f"{source.name}-many"
    many.mkdir(exist_ok=True)
    for path in source.glob("*.dcm"):
        for copy in range(copies):
            (many / f"{copy}-{path.name}").unlink(missing_ok=True)
            (many / f"{copy}-{path.name}").hardlink_to(path)
    taken = {1: [0.0] * 0, 2: [0.0] * 0}
    for _ in range(rounds):
        for num_workers, seconds in taken.items():
            seconds.append(_time(lambda n=num_workers: _ours(many, out, "certified", on_processes(n))))  # type: ignore[misc]
    ratio = statistics.median(taken[1]) / statistics.median(taken[2])
    print(f"  {source.name:>10}  2 workers over 1, whole jobs: {ratio:.2f}x", flush=True)


def _time(way: Callable[[], None]) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


def _obvious(source: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with webdataset.ShardWriter(f"{out}/%05d.tar", verbose=0) as writer:
        for path in sorted(source.glob("*.dcm")):
            dataset = pydicom.dcmread(path)
            for number, frame in enumerate(dataset.pixel_array):
                grey = frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)  # noqa: PLR2004
                scale = min(1.0, SHORT_SIDE / min(grey.shape))
                small = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                jpg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
                said = json.dumps({"frame": number, "rows": dataset.Rows}).encode()
                writer.write({"__key__": f"{path.stem}-{number:05d}", "jpg": jpg, "json": said})


def _ours(source: Path, out: Path, pixels: Pixels, execute: Execute) -> None:
    shutil.rmtree(out, ignore_errors=True)
    job = Job(str(source), str(out), Policy("bench", pixels=pixels), out.parent / "key")
    for _ in run(job, make_plan(job), execute):
        pass


if __name__ == "__main__":
    main()

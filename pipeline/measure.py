"""`us-jepa plan --measure`: the rates of this machine, from small jobs that go through the real commands.

A short and a longer job tell the start of a job from its rate. What runs on processors is timed by the CPU time of all
processes, so that a rate is that of a core which has nothing else to do; what runs on a GPU by the wall clock.
"""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

import numpy as np

from pipeline.doctor import decode_rate
from pipeline.plan import device_name
from pipeline.rates import PROCESSOR, Rate, Rates, today
from pipeline.timed import Took, run_timed
from sharding.cache import ShardCache
from sharding.manifest import load_manifest
from sharding.order import Mixture
from sharding.recording import InputError
from sharding.shard_set import find_shards
from sharding.sources.synthetic import Geometry, SyntheticSpec, generate
from sharding.sources.synthetic_files import write_dicom
from sharding.stream import PositionDataset
from sharding.tar_index import cache_folder
from train.config import PretrainConfig
from train.smoke import teacher_arch

_SIZE, FRAMES_PER_CINE = (480, 640), 30  # rows and columns of generated cines
_SHORT, _FEWEST, _REPEATS = 0.2, 10, 3  # share of the sources that make the short job; sources; times
_STEPS, _LONGER = 2, 4  # of the short pretraining; factor, until the start is at most half of the long one
_CPU_BATCH = 16  # images of a step on a processor, whose rate hardly depends on it
_DECODE_BATCH, _CANVAS, _CACHE_BYTES = 64, 256, 50 << 30


def measure(cfg: PretrainConfig, config: Path, folder: Path, source: Path | None, num_files: int) -> Rates:
    """Measure sharding, reading, and training by a config.

    Args:
        cfg: trained for a few steps, with a random teacher of the same size.
        config: its file; the stem names it in the rates.
        folder: to work in; made if it does not exist.
        source: some of the user's own scans; None generates cines.
        num_files: that are generated.

    Raises:
        InputError: what the commands say, or too few sources.

    """
    source = source or write_cines(folder / "source", num_files, seed=1)
    sharding = measure_sharding(source, folder)
    train, start = measure_training(cfg, config, folder / "shards-1", folder / "runs" / config.stem)
    key = f"{config.stem} on {device_name()}"
    return Rates(
        machine=f"{os.cpu_count()} cores, {_processor()}", date=today(), **sharding,
        decode=_decode(folder / "shards-1"), train={key: train}, train_start={key: start},
    )  # fmt: skip


def write_cines(folder: Path, num_files: int, seed: int, size: tuple[int, int] = _SIZE) -> Path:
    """Generated cines as JPEG baseline DICOM, one patient each, on all cores; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(num_files) if not (folder / f"{number:06d}.dcm").exists()]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        list(pool.map(_write_cine, [folder] * len(missing), missing, [(seed, *size)] * len(missing), chunksize=4))
    return folder


def _write_cine(folder: Path, number: int, how: tuple[int, int, int]) -> None:
    seed, rows, columns = how
    spec = SyntheticSpec(
        get_args(Geometry)[number % 3], number // 3 % 3, FRAMES_PER_CINE, rows, columns, seed * 1_000_003 + number,
        patient_id=f"PLAN-{seed}-{number}",
    )  # fmt: skip
    temporary = folder / f".{number:06d}.tmp"
    write_dicom(generate(spec), spec, temporary)
    temporary.rename(folder / f"{number:06d}.dcm")


def shard(source: Path, out: Path, key: Path) -> Took:
    """Shard a folder from the shell, on all cores.

    Raises:
        InputError: the command failed.

    """
    shutil.rmtree(out, ignore_errors=True)
    words = ["shards", str(source), str(out), "--dataset", "plan", "--key-file", str(key)]
    return _run([*words, "--workers", str(len(os.sched_getaffinity(0)))], out.parent)


def measure_sharding(source: Path, folder: Path) -> dict[str, Rate]:
    """The fields of Rates that sharding gives.

    Raises:
        InputError: fewer than 10 files, or the command failed.

    """
    files = sorted(path for path in source.rglob("*") if path.is_file())
    if len(files) < _FEWEST:
        raise InputError(f"plan: {source} has {len(files)} files; give at least {_FEWEST} to measure with")
    short, long = files[: round(len(files) * _SHORT)], files
    seconds, frames = [], []
    for number, some in enumerate((short, long)):
        out = folder / f"shards-{number}"
        linked = _linked(some, source, folder / f"source-{number}")
        # neighbours on a machine can only add to it
        seconds.append(min(shard(linked, out, folder / "key").cpu for _ in range(_REPEATS)))
        frames.append(load_manifest(out).num_samples())
    rate, start = _line(frames, seconds)
    num_bytes = sum(one.num_bytes for one in load_manifest(folder / "shards-1").shards)
    said = f"{len(files)} sources, {frames[1]} frames"
    return {
        "shard": Rate(value=rate, unit="frames/s per core", source=said),
        "shard_start": Rate(value=start, unit="s", source=f"jobs of {frames[0]} and {frames[1]} frames"),
        "frames_per_source": Rate(value=frames[1] / len(files), unit="frames", source=said),
        "source_bytes": Rate(
            value=sum(path.stat().st_size for path in files) / frames[1], unit="bytes per frame", source=said
        ),
        "shard_bytes": Rate(value=num_bytes / frames[1], unit="bytes per frame", source=said),
    }


def _line(amounts: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Rate and start of two jobs, a short one and a long one.

    Raises:
        InputError: the long one was no longer.

    """
    if seconds[1] <= seconds[0]:
        raise InputError(
            f"plan: {amounts[1]:g} took {seconds[1]:.1f} s and {amounts[0]:g} took {seconds[0]:.1f} s, so this machine "
            "is too busy to be measured; try again"
        )
    rate = (amounts[1] - amounts[0]) / (seconds[1] - seconds[0])
    return rate, max(0.0, seconds[0] - amounts[0] / rate)


def _linked(files: list[Path], source: Path, folder: Path) -> Path:
    """A folder with links to some files of another. InputError where they lie on two disks."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in files:
        (folder / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        try:
            (folder / path.relative_to(source)).hardlink_to(path)  # no copy of a scan is made
        except OSError as error:
            raise InputError(f"plan: {folder} is on another disk than {source}; give a --folder beside it") from error
    return folder


def measure_training(cfg: PretrainConfig, config: Path, shards: Path, run_dir: Path) -> tuple[Rate, Rate]:
    """Images per second of a GPU or of a core, and seconds before the first step and after the last.

    Raises:
        InputError: the command failed.

    """
    on_cpu = device_name() == PROCESSOR
    batch = min(cfg.optim.batch, _CPU_BATCH) if on_cpu else cfg.optim.batch
    words = [f"optim.batch={batch}", f"run.micro_batch={min(batch, cfg.run.micro_batch)}", "data.val_samples=0"]

    def seconds(steps: int) -> float:
        took = pretrain(cfg, config, shards, run_dir, steps, *words, f"run.save_every={steps}")
        return took.cpu if on_cpu else took.wall

    short = min(seconds(_STEPS) for _ in range(2))  # the first start on a machine compiles
    steps = _STEPS * _LONGER
    while (long := seconds(steps)) < 2 * short:
        steps *= _LONGER
    rate, start = _line([_STEPS * batch, steps * batch], [short, long])
    said = f"runs of {_STEPS} and {steps} steps of {batch} images"
    return (
        Rate(value=rate, unit=f"images/s per {'core' if on_cpu else 'GPU'}", source=said),
        Rate(value=start, unit="s", source=said),
    )


def _decode(shards: Path) -> Rate:
    cache = ShardCache(cache_folder() / "shards", _CACHE_BYTES)
    found = find_shards(str(shards), cache)
    counts = (np.array([shard.num_samples for shard in found.shards]),)
    dataset = PositionDataset([found], Mixture(counts, 0, _DECODE_BATCH, 0), _CANVAS, cache)
    started = time.process_time()
    _, num_read, _ = decode_rate(dataset)
    rate = num_read / (time.process_time() - started)
    return Rate(value=rate, unit="frames/s per core", source=f"{num_read} frames")


def pretrain_overrides(cfg: PretrainConfig, shards: Path, run_dir: Path, steps: int) -> list[str]:
    """A config on some shards for some steps, with a random teacher of the same size, recorded in the run's folder."""
    words = [f"data.shards=[{shards}]", f"run.dir={run_dir}", f"optim.steps={steps}", "optim.warmup_steps=0"]
    words += ["run.copy_to=null", "run.probe=null", "data.weights=[]"]
    words += [f"run.tracking_uri=sqlite:///{run_dir.resolve().parent}/mlflow.db"]
    if cfg.teacher is not None:
        words += [f"teacher.source=random:{teacher_arch(cfg)}", "teacher.weights=null"]
    return words


def pretrain(cfg: PretrainConfig, config: Path, shards: Path, run_dir: Path, steps: int, *more: str) -> Took:
    """Pretrain from the shell, on one device, from nothing.

    Raises:
        InputError: the command failed.

    """
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    words = ["pretrain", "--config", str(config), *pretrain_overrides(cfg, shards, run_dir, steps), *more]
    return _run(words, run_dir.parent)


def _run(words: list[str], folder: Path) -> Took:
    command = [sys.executable, "-m", "pipeline.cli", *words]
    return run_timed(command, f"`us-jepa {words[0]}`", folder / "took.json")


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(": ")[2] if names else "unknown processor"

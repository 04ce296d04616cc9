"""`us-jepa doctor`: is this machine ready, and are these shards?"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from sharding.manifest import load_manifest
from sharding.recording import InputError

_MIN_SHM = 1 << 30
_MIN_DISK = 5 << 30


def examine(shards: list[Path]) -> int:
    """Print one line per check; the exit code is 1 when one of them fails."""
    failures = 0
    for good, text in [*_machine(), *_shards(shards)]:
        print(f"{'ok  ' if good else 'BAD '} {text}")
        failures += not good
    return 1 if failures else 0


def _machine() -> Iterator[tuple[bool, str]]:
    yield sys.version_info >= (3, 11), f"python {sys.version.split()[0]} (3.11 or newer)"
    yield True, f"torch {torch.__version__}, {torch.cuda.device_count()} GPU, {os.cpu_count()} cores"
    compiler = shutil.which("g++") or shutil.which("clang++")
    yield compiler is not None, f"C++ compiler: {compiler or 'none; DeepSpeed builds its CPU communication with one'}"
    launcher = Path(sys.executable).parent / "deepspeed"
    yield launcher.exists(), f"deepspeed launcher: {launcher}"
    for name, place, least in (("/dev/shm", Path("/dev/shm"), _MIN_SHM), ("disk here", Path.cwd(), _MIN_DISK)):
        free = shutil.disk_usage(place).free if place.exists() else 0
        yield free >= least, f"{name}: {free / 2**30:.1f} GiB free (at least {least / 2**30:.0f})"


def _shards(directories: list[Path]) -> Iterator[tuple[bool, str]]:
    for directory in directories:
        try:
            manifest = load_manifest(directory)
        except InputError as error:
            yield False, str(error)
            continue
        train = manifest.num_samples("train")
        yield (
            train > 0,
            f"{directory}: {train} training frames of {manifest.num_samples()} in {len(manifest.shards)} shards",
        )

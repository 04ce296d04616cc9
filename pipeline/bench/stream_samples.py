"""The samples of `make bench-stream`, once in every loader's format: the same bytes."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from pipeline.bench import stream_peers as peers
from sharding.reader import ShardReader
from sharding.sample import Meta, Sample, encode
from sharding.sources.synthetic import SyntheticSpec, generate
from sharding.store import Store
from sharding.writer import write_shard

_PER_SHARD = 1000
_FRAMES = 32  # per generated recording
_ROWS, _COLUMNS = 256, 340


def write_samples(folder: Path, num_samples: int) -> None:
    """Write tars of JPEGs, the same as zstd with region, and what litdata and mosaic streaming read."""
    if (folder / "complete").exists() and (folder / "complete").read_text() == str(num_samples):
        return
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("tars", "zstd"):
        (folder / name).mkdir(parents=True)
    samples = list(track(_samples(num_samples), total=num_samples, description="generate frames"))
    for start in range(0, num_samples, _PER_SHARD):
        some = samples[start : start + _PER_SHARD]
        name = f"{start // _PER_SHARD:05d}.tar"
        write_shard(Store(folder / "tars"), name, ((f"{s.key}.jpg", _jpeg(s)) for s in some))
        write_shard(Store(folder / "zstd"), name, (item for s in some for item in encode(s, "zstd").items()))
    jpegs = read_samples(folder)
    peers.write_litdata(folder / "litdata", jpegs)
    peers.write_mosaic(folder / "mosaic", jpegs)
    (folder / "complete").write_text(str(num_samples))


def read_samples(folder: Path) -> dict[int, bytes]:
    """JPEG by number of the sample."""
    jpegs = {}
    for path in sorted((folder / "tars").glob("*.tar")):
        with ShardReader(path) as reader:
            for index in range(len(reader)):
                key, members = reader.raw(index)
                jpegs[int(key)] = members["jpg"]
    return jpegs


def _jpeg(sample: Sample) -> bytes:
    return encode(sample)[f"{sample.key}.jpg"]


def _samples(num_samples: int) -> Iterator[Sample]:
    for number in range(num_samples):
        if number % _FRAMES == 0:
            spec = SyntheticSpec("fan", number % 3, _FRAMES, 2 * _ROWS, 2 * _COLUMNS, number)
            recording = generate(spec)
            region = cv2.resize(recording.region.astype(np.uint8), (_COLUMNS, _ROWS)) > 0
        frame = cv2.resize(recording.frames[number % _FRAMES], (_COLUMNS, _ROWS), interpolation=cv2.INTER_AREA)
        meta = Meta("bench", f"c{number // _FRAMES}", number % _FRAMES, (2, 200), "dicom", "tag")
        yield Sample(f"{number:06d}", frame * region, region, meta)

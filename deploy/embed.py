"""Vectors of every frame and clip of finished shards, as Parquet: `us-jepa embed`.

The frames went through sharding, so decoding, region, de-identification and pseudonyms are those of the training data,
and a table holds no more about a patient than a shard does. One part per shard is kept until all are there: a job that
was killed goes on with the first missing one, and the bytes of the table do not depend on it.
"""

import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet
from rich.progress import track

from deploy.index import open_table, vectors_in
from eval.encoders import FrozenEncoder, open_encoder, parse_encoder
from eval.features import mean_inside
from sharding.cache import ShardCache
from sharding.names import name_bytes
from sharding.preprocess import stretch, to_square
from sharding.reader import BadSampleError, open_shard
from sharding.recording import InputError
from sharding.sample import Sample
from sharding.shard import Shard
from sharding.shard_set import find_shards
from sharding.store import Store
from sharding.tar_index import cache_folder

_BATCH = 32  # frames
_VERSION = 1  # of what a part holds
_FACTS = ("dataset", "clip", "frame", "time_ms", "patient", "label")  # of Meta
_CACHE_GIB = 50
_SIZE = 224  # pixels a side, of encoders that take any


@dataclass(frozen=True)
class Embedding:
    """What to embed with.

    Attributes:
        encoder: as `us-jepa probe --encoders` takes it.
        num_workers: processes.

    """

    encoder: str
    num_workers: int = 1


def embed(cfg: Embedding, shards: str, out: Path) -> Path:
    """Write OUT, a row per frame, and OUT's sibling `.clips.parquet`, a row per clip (the mean of its frames).

    Columns: key, dataset, clip, frame, time_ms, patient, label, embedding (fixed-size list of float16). Rows are in
    the order of the shards.

    Args:
        cfg: encoder and processes.
        shards: a shard directory, local or remote.
        out: ends in .parquet.

    Returns:
        the table of clips.

    Raises:
        InputError: no shards, no such encoder, another suffix, or a frame that does not decode.

    """
    if out.suffix != ".parquet":
        raise InputError(f"embed {out}: the table is Parquet; give a name that ends in .parquet")
    found = find_shards(shards, _cache())
    every = sorted(found.shards + found.val_shards, key=lambda shard: shard.place)
    parts = _parts(cfg, every, out)
    tables = [open_table(part) for part in parts]
    frames = pa.concat_tables(tables)
    _write(frames, out)
    clips = out.with_suffix(".clips.parquet")
    _write(_mean_of_clips(frames), clips)
    shutil.rmtree(parts[0].parent)
    return clips


def open_on_device(encoder: str) -> FrozenEncoder:
    """An encoder as `us-jepa probe --encoders` takes it, on the GPU where there is one.

    Raises:
        InputError: no such encoder.

    """
    return open_encoder(*parse_encoder(encoder)).to(_device())


def squares_of(frames: Sequence[np.ndarray], region: np.ndarray, percentiles: tuple[int, int], size: int) -> np.ndarray:
    """Stored frames (h, w) uint8 and their region (h, w) bool as an encoder sees them, (n, 2, size, size) uint8."""
    return np.stack([to_square(stretch(frame, region, percentiles), region, size) for frame in frames])


def vectors_of(encoder: FrozenEncoder, squares: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors (n, D) of squares (n, 2, S, S) uint8, the mean of the patches inside the region; and the patches.

    Returns:
        vectors (n, D) and patches (n, N, D), float32, on the encoder's device.

    """
    batch = torch.from_numpy(squares).to(encoder.get_buffer("mean").device) / 255.0
    patches = encoder(batch[:, :1]).patches
    return mean_inside(patches, batch[:, 1:], encoder.grid), patches


def size_of(encoder: FrozenEncoder) -> int:
    """Side in pixels of the squares that it is given."""
    return encoder.size or _SIZE


def _parts(cfg: Embedding, shards: list[Shard], out: Path) -> list[Path]:
    """One file per shard, made where it is missing."""
    encoder = open_encoder(*parse_encoder(cfg.encoder))
    parts = out.with_name(f".{out.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    paths = [parts / f"{_digest(encoder, shard)}.parquet" for shard in shards]
    missing = [(shard, path) for shard, path in zip(shards, paths, strict=True) if not path.exists()]
    done = _in_order(missing, encoder) if cfg.num_workers <= 1 else _by_processes(missing, cfg)
    for _ in track(done, total=len(missing), description=f"embed {len(missing)} shards"):
        pass
    return paths


def _digest(encoder: FrozenEncoder, shard: Shard) -> str:
    said = f"{_VERSION} {encoder.identity} {size_of(encoder)} {shard.sha256 or shard}"
    return hashlib.sha256(name_bytes(said)).hexdigest()[:32]


def _in_order(missing: list[tuple[Shard, Path]], encoder: FrozenEncoder) -> Iterator[None]:
    encoder.to(_device())
    for shard, path in missing:
        _embed_shard(encoder, shard, path)
        yield


def _by_processes(missing: list[tuple[Shard, Path]], cfg: Embedding) -> Iterator[None]:
    num_workers = max(1, min(cfg.num_workers, len(missing)))
    num_threads = max(1, len(os.sched_getaffinity(0)) // num_workers)
    context = multiprocessing.get_context("spawn")  # a forked process would wait for locks of torch's threads
    with ProcessPoolExecutor(num_workers, context, _open, (cfg, num_threads)) as pool:
        for future in as_completed([pool.submit(_embed_in_worker, shard, path) for shard, path in missing]):
            yield future.result()


_opened: list[FrozenEncoder] = []  # of a worker


def _open(cfg: Embedding, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    _opened.append(open_on_device(cfg.encoder))


def _embed_in_worker(shard: Shard, path: Path) -> None:
    _embed_shard(_opened[0], shard, path)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _embed_shard(encoder: FrozenEncoder, shard: Shard, path: Path) -> None:
    """One part.

    Raises:
        InputError: a sample that cannot be read: our own shards have none, unless they were damaged.

    """
    rows: list[dict[str, object]] = []
    try:
        with open_shard(shard, _cache()) as reader:
            for start in range(0, len(reader), _BATCH):
                samples = [reader[index] for index in range(start, min(start + _BATCH, len(reader)))]
                rows += _rows(encoder, samples)
    except BadSampleError as bad:  # its class does not survive the way to the parent process
        raise InputError(f"{bad}; `us-jepa verify` checks all of them") from bad
    _write(pa.Table.from_pylist(rows, schema=_schema(encoder.width)), path)


def _rows(encoder: FrozenEncoder, samples: Sequence[Sample]) -> Iterator[dict[str, object]]:
    size = size_of(encoder)
    squares = [squares_of([one.frame], one.region, one.meta.percentiles, size) for one in samples]
    vectors = vectors_of(encoder, np.concatenate(squares))[0].half().cpu().numpy()
    for one, vector in zip(samples, vectors, strict=True):
        yield {"key": one.key, "embedding": vector} | {name: getattr(one.meta, name) for name in _FACTS}


def _schema(width: int) -> pa.Schema:
    text = [(name, pa.string()) for name in ("key", "dataset", "clip")]
    more = [("frame", pa.int32()), ("time_ms", pa.float64()), ("patient", pa.string()), ("label", pa.string())]
    return pa.schema([*text, *more, ("embedding", pa.list_(pa.float16(), width))])


def _mean_of_clips(frames: pa.Table) -> pa.Table:
    """Clips in the order of their first frame."""
    clips, first, inverse = np.unique(frames["clip"].to_numpy(), return_index=True, return_inverse=True)
    vectors = vectors_in(frames)
    counts = np.bincount(inverse)
    means = np.zeros((len(clips), vectors.shape[1]), np.float32)
    np.add.at(means, inverse, vectors)
    means /= counts[:, None]
    order = np.argsort(first)
    facts = frames.select(["dataset", "clip", "patient", "label"]).take(first[order])
    width = pa.list_(pa.float16(), vectors.shape[1])
    column = pa.FixedSizeListArray.from_arrays(pa.array(means[order].astype(np.float16).ravel()), type=width)
    return facts.append_column("num_frames", pa.array(counts[order])).append_column("embedding", column)


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with Store(path.parent).writing(path.name) as file:
        parquet.write_table(table, file, compression="zstd")


def _cache() -> ShardCache:
    return ShardCache(cache_folder() / "shards", _CACHE_GIB * 2**30)

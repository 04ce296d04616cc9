"""`us-jepa embed`: shards of whatever was given, then vectors of them."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pyarrow import parquet
from rich.console import Console
from rich.table import Table

from deploy.embed import Embedding, embed
from deploy.index import nearest, open_table
from pipeline.shards import make_shards
from sharding.manifest import MANIFEST
from sharding.names import path_for_decoders
from sharding.policy import Job, Policy
from sharding.preprocess import Pixels
from sharding.recording import FrameChoice
from sharding.store import Store

_COLUMNS = ("dataset", "clip", "frame", "patient", "label")


@dataclass(frozen=True)
class Raw:
    """What to embed.

    Attributes:
        source: shard directory, or folder or file of recordings.
        max_frames: per clip.
        pixels: what vouches for them.
        key_file: secret of the pseudonyms.

    """

    source: str
    max_frames: int
    pixels: Pixels
    key_file: Path


def write_table(cfg: Embedding, raw: Raw, out: Path) -> None:
    """Embed a source; shards that had to be made lie beside OUT until the tables are there.

    Raises:
        InputError: see make_shards and embed.

    """
    made = out.with_name(f".{out.name}.shards")
    clips = embed(cfg, _shards(raw, made, cfg.num_workers), out)
    shutil.rmtree(made, ignore_errors=True)
    with path_for_decoders(out) as place:
        num_rows = parquet.read_metadata(place).num_rows
    print(f"frames:  {out}, {num_rows} rows\nclips:   {clips}")


def print_nearest(cfg: Embedding, raw: Raw, table: Path, num: int) -> None:
    """Print the frames of a table that are most like a query: the mean of its frames.

    Raises:
        InputError: see make_shards, embed and nearest.

    """
    with tempfile.TemporaryDirectory() as folder:
        query = Path(folder) / "query.parquet"
        embed(cfg, _shards(raw, Path(folder) / "shards", cfg.num_workers), query)
        vectors = np.stack(open_table(query)["embedding"].to_pylist()).astype(np.float32)
    shown = Table("cosine", "key", *_COLUMNS)
    for cosine, facts in nearest(table, vectors.mean(axis=0), num):
        shown.add_row(f"{cosine:.3f}", *(str(facts[name]) for name in ("key", *_COLUMNS)))
    Console().print(shown)


def _shards(raw: Raw, made: Path, num_workers: int) -> str:
    """The source itself where it is a shard directory, else shards that are made (or finished) in a folder."""
    if Store(raw.source).exists(MANIFEST):
        return raw.source
    policy = Policy("embed", FrameChoice(raw.max_frames), val_share=0, pixels=raw.pixels)
    source = raw.source if "://" in raw.source else str(Path(raw.source).resolve())
    make_shards(Job(source, str(made.resolve()), policy, raw.key_file), num_workers)
    return str(made.resolve())

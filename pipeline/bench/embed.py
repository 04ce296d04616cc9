"""`us-jepa embed` beside the bare encoder, on the same frames: `make bench-embed`.

    python -m pipeline.bench.embed [--src ../shared/data/pocus_ccby ...] [--encoder random:vit_small_patch16_224]

The folders are sharded once. Then, interleaved, all frames by `embed` (reading, decoding, squaring, encoding, writing
Parquet) in one process and in two, and by the encoder alone in batches that are in memory already. Wall clock. Exit
code 1 when one process is below 80 % of the bare encoder.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from pyarrow import parquet

from deploy.embed import Embedding, embed
from eval.encoders import open_encoder, parse_encoder
from pipeline.bench.timing import Gate, Timing
from pipeline.shards import make_shards
from sharding.policy import Job, Policy
from sharding.recording import FrameChoice, InputError

_ROUNDS = 3
_BATCH = 32
_SHARD_BYTES = 2 << 20  # small, so that two processes have something to share
_LEAST = 0.8


def main() -> None:
    """Print the table."""
    args = _parse()
    with tempfile.TemporaryDirectory() as folder:
        shards = _shards(args.src, Path(folder))
        out = Path(folder) / "frames.parquet"
        embed(Embedding(args.encoder), shards, out)
        frames = parquet.read_metadata(out).num_rows
        encoder = open_encoder(*parse_encoder(args.encoder))
        images = torch.rand(frames, 1, encoder.size or 224, encoder.size or 224)
        timing = Timing(time.perf_counter)
        ways = {
            "bare encoder": lambda: [encoder(images[at : at + _BATCH]) for at in range(0, frames, _BATCH)],
            "embed": lambda: embed(Embedding(args.encoder), shards, out),
            "embed, 2 processes": lambda: embed(Embedding(args.encoder, 2), shards, out),
        }
        timing.measure(ways, args.rounds)
    print(f"\n{frames} frames, {args.encoder}, {torch.get_num_threads()} threads, median of {args.rounds} rounds")
    for name in ways:
        print(f"  {name:<20} {frames / timing.median(name):8.1f} frames/s  {timing.spread(name):6.1%}")
    gate = Gate("embed over the bare encoder", timing.ratio("bare encoder", "embed"), _LEAST)
    print(gate)
    sys.exit(not gate.passed)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", type=Path, default=Path("../shared/data/pocus_ccby"), help="folder of recordings")
    parser.add_argument("--encoder", default="random:vit_small_patch16_224")
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    return parser.parse_args()


def _shards(source: Path, folder: Path) -> str:
    if not source.is_dir():
        raise InputError(f"bench {source}: no such folder; give one with recordings as --src")
    key = folder / "key"
    key.touch(mode=0o600)
    key.write_bytes(np.random.default_rng(0).bytes(32))
    policy = Policy("bench", FrameChoice(8), val_share=0, pixels="public", shard_bytes=_SHARD_BYTES)
    out = folder / "shards"
    make_shards(Job(str(source.resolve()), str(out), policy, key), 2)
    return str(out)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(2)

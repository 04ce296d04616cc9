"""What several ranks lose and see twice in one pass: real processes, part of `make bench-stream`.

    python -m pipeline.bench.stream_ranks READER FOLDER OUT   # one rank, told by RANK and WORLD_SIZE

Each rank goes through one epoch as its loader's documentation says for several ranks. Ranks must take equally many
batches, or the collectives of training hang, so every rank stops where the shortest one does.
"""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import distributed

from pipeline.bench import stream_peers as peers
from sharding.cache import ShardCache
from sharding.order import Mixture, slice_of_rank
from sharding.shard_set import find_shards
from sharding.stream import PositionDataset

_BATCH = 64  # samples per rank and step
_WORLDS = (1, 2, 3, 5)
_SECONDS = 120  # that the ranks may take


def _ours(folder: Path, rank: int, world: int) -> Iterator[list[int]]:
    found = find_shards(str(folder / "tars"), ShardCache(folder, 0))
    counts = np.array([shard.num_samples for shard in found.shards])
    dataset = PositionDataset([found], Mixture((counts,), 0, _BATCH * world), 256, ShardCache(folder, 0))
    num = dataset.order.num_samples
    for step in range(-(-num // (_BATCH * world))):
        positions = slice_of_rank(dataset.order.of_step(step), _BATCH, rank, world).ravel()
        positions = positions[(positions >= 0) & (positions < num)]
        yield [int(reader.raw(index)[0]) for _, reader, index in dataset.located(positions)]


def _batches(numbers: Iterator[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    for number in numbers:
        batch.append(number)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


READERS: dict[str, Callable[[Path, int, int], Iterator[list[int]]]] = {
    "us-jepa": _ours,
    "webdataset": lambda folder, rank, world: _batches(iter(peers.webdataset_of_rank(folder / "tars"))),
    "litdata": lambda folder, rank, world: _batches(iter(peers.LitdataRaw(folder / "litdata")())),
    "mosaic streaming": lambda folder, rank, world: _batches(iter(peers.MosaicRaw(folder / "mosaic", _BATCH)())),
}


def print_ranks(folder: Path, num_samples: int) -> None:
    """Print samples lost and seen twice per pass, by reader and number of ranks."""
    print(f"\nlost + seen twice of {num_samples} samples in one pass" + "".join(f"{w:>4} ranks  " for w in _WORLDS))
    for reader in READERS:
        cells = []
        for world in _WORLDS:
            came = _run(reader, folder, world)
            steps = min(map(len, came))
            counts = Counter(number for rank in came for batch in rank[:steps] for number in batch)
            cells.append(f"{num_samples - len(counts)} + {sum(counts.values()) - len(counts)}")
        print(f"  {reader:<45}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def _run(reader: str, folder: Path, world: int) -> list[list[list[int]]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    said = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with TemporaryDirectory() as place:
        outputs = [Path(place) / str(rank) for rank in range(world)]
        ranks = [_start(reader, folder, said | {"RANK": str(rank)}, outputs[rank]) for rank in range(world)]
        for rank in ranks:
            rank.wait(timeout=_SECONDS)
        if any(rank.returncode for rank in ranks):
            raise RuntimeError(f"{reader} with {world} ranks ended with {[rank.returncode for rank in ranks]}")
        return [json.loads(output.read_text()) for output in outputs]


def _start(reader: str, folder: Path, environment: dict[str, str], output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipeline.bench.stream_ranks", reader, str(folder), str(output)]
    more = {"LOCAL_RANK": environment["RANK"], "NODE_RANK": "0"}
    return subprocess.Popen(command, env=os.environ | environment | more, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    distributed.init_process_group("gloo")  # litdata and mosaic streaming ask it who they are
    mine = READERS[sys.argv[1]](Path(sys.argv[2]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    Path(sys.argv[3]).write_text(json.dumps(list(mine)))
    distributed.barrier()  # mosaic streaming's ranks share memory
    distributed.destroy_process_group()

"""Our reader against stock webdataset on the same tars, in one run: `make bench SHARDS=build/demo/shards`."""

import sys
import time
from pathlib import Path

import numpy as np
import webdataset

from sharding.manifest import load_manifest
from sharding.reader import ShardReader


def main(directory: Path) -> None:
    """Print decoded samples per CPU second of both, and their ratio."""
    paths = [directory / shard.name for shard in load_manifest(directory).shards]
    ours = _rate(lambda: sum(1 for reader in map(ShardReader, paths) for i in _shuffled(reader) if reader[i].key))
    urls = [str(path) for path in paths]
    stock = webdataset.WebDataset(urls, shardshuffle=False).decode("l8")
    theirs = _rate(lambda: sum(1 for _ in stock))
    print(f"by index, random order {ours:,.0f}/s   webdataset, sequential {theirs:,.0f}/s   ratio {ours / theirs:.2f}")


def _shuffled(reader: ShardReader) -> list[int]:
    return list(np.random.default_rng(0).permutation(len(reader)))


def _rate(work: object) -> float:
    start = time.process_time()
    count = work()  # type: ignore[operator] # a callable that counts
    return float(count / (time.process_time() - start))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The order over 10^6 shards and 10^9 samples: seconds to build, to get a batch, to seek; for `make bench-stream`."""

import resource
import statistics
import time

import numpy as np

from sharding.order import Mixture, Order

_SHARDS, _SAMPLES_PER_SHARD, _BATCH = 10**6, 1000, 4096
_SEEKS = 9


def main() -> None:
    """Print the figures."""
    counts = _SAMPLES_PER_SHARD + np.random.default_rng(0).integers(-100, 100, _SHARDS)
    started = time.perf_counter()
    order = Order(Mixture((counts,), seed=1, batch=_BATCH))
    print(f"{order.num_samples:,} samples in {_SHARDS:,} shards: built in {time.perf_counter() - started:.4f} s")
    seeks, batches = [], []
    for number in range(_SEEKS):
        step = (number * 7 + 3) * order.num_samples // _BATCH + number  # in a pass that was not looked at before
        seeks.append(_seconds(order, step))
        batches += [_seconds(order, step + later) for later in (1, 1000, 50_000)]
    print(f"seek to a random step: median {statistics.median(seeks) * 1e3:.1f} ms, most {max(seeks) * 1e3:.1f} ms")
    print(f"batch of {_BATCH}: median {statistics.median(batches) * 1e3:.1f} ms, most {max(batches) * 1e3:.1f} ms")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def _seconds(order: Order, step: int) -> float:
    started = time.perf_counter()
    order.at(order.of_step(step))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

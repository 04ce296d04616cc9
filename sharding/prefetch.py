"""Fetch remote shards ahead of need: the order is known, so is the need."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO

from sharding.cache import ShardCache
from sharding.recording import InputError
from sharding.shard import Shard

_NUM_THREADS = 4
_MAX_AHEAD = 256  # steps
_MAX_PINS = 512  # shards; each is an open file


class Prefetcher:
    """Fetches and pins what the coming steps need, step by step, as far ahead as its bytes reach.

    Args:
        cache: where to.
        needs: step -> shards of this rank, in order of need.
        start: first step.
        max_bytes: pinned at most: this rank's share of the cache.

    """

    def __init__(self, cache: ShardCache, needs: Callable[[int], list[Shard]], start: int, max_bytes: int) -> None:
        self._cache, self._needs, self._max_bytes = cache, needs, max_bytes
        self._pins: dict[Shard, Future[IO[bytes]]] = {}
        self._last_need: dict[Shard, int] = {}
        self._step = start
        self._changed = threading.Condition()
        self._is_closed = False
        self._pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="fetch")
        self._thread = threading.Thread(target=self._run, args=(start,), daemon=True, name="prefetch")
        self._thread.start()

    def reached(self, step: int) -> None:
        """Say that everything before a step has been read."""
        with self._changed:
            self._step = step
            self._changed.notify()

    def close(self) -> None:
        """Stop and unpin."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)
        for shard in list(self._pins):
            self._unpin(shard)

    def _run(self, step: int) -> None:
        for shard, needed in self._in_order(step):
            self._last_need[shard] = needed
            if shard in self._pins:
                continue
            with self._changed:
                while not self._is_closed and not self._fits(shard, needed):
                    self._changed.wait(timeout=1)
                if self._is_closed:
                    return
                self._pins[shard] = self._pool.submit(self._cache.pin, shard)

    def _in_order(self, step: int) -> Iterator[tuple[Shard, int]]:
        while True:
            with self._changed:
                while step > self._step + _MAX_AHEAD and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
            for shard in self._needs(step):
                yield shard, step
            step += 1

    def _fits(self, shard: Shard, needed: int) -> bool:
        """Unpin what is behind; whether the next one fits. What the current step needs may exceed the bytes.

        What has no place among the pins is fetched by the worker that needs it.
        """
        for old in [old for old, last in self._last_need.items() if last < self._step and old in self._pins]:
            self._unpin(old)
        pinned = sum(other.num_bytes for other in self._pins)
        if len(self._pins) >= _MAX_PINS:
            return False
        return needed <= self._step or pinned + shard.num_bytes <= self._max_bytes

    def _unpin(self, shard: Shard) -> None:
        fetched = self._pins.pop(shard)
        self._last_need.pop(shard, None)
        fetched.add_done_callback(_close)


def _close(fetched: "Future[IO[bytes]]") -> None:
    """A shard that could not be had is said by the worker that needs it."""
    if not fetched.cancelled() and not isinstance(fetched.exception(), InputError):
        fetched.result().close()

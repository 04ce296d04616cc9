"""Frames of many requests in one forward pass.

One thread owns the encoder. It takes what waits, up to a batch, and waits a few milliseconds for more when there is
less: while it computes, the next batch gathers.

Dimensions: n frames, S pixels a side, N patches, D width.
"""

import asyncio
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Thread

import numpy as np
import torch

Forward = Callable[[np.ndarray], tuple[torch.Tensor, torch.Tensor]]  # squares to vectors and patches


@dataclass(frozen=True)
class Encoded:
    """What an encoder says about some frames.

    Attributes:
        vectors: (n, D) float32.
        patches: (N, D) float32 of the one frame for which they were wanted, None where they were not.

    """

    vectors: np.ndarray
    patches: np.ndarray | None = None


@dataclass(frozen=True)
class _Piece:
    """Frames of a request, at most a batch of them; `wanted` is the row whose patches are wanted."""

    squares: np.ndarray
    wanted: int | None
    future: "Future[Encoded]" = field(default_factory=Future)


class Batcher:
    """The thread and its queue, until close().

    Args:
        forward: called in the thread alone.
        max_batch: frames in a pass.
        max_wait: seconds that a frame waits for others.
        observe: told the frames of each pass.

    """

    def __init__(
        self, forward: Forward, max_batch: int, max_wait: float, observe: Callable[[int], object] = lambda _: None
    ) -> None:
        self._forward, self._max_batch, self._max_wait, self._observe = forward, max_batch, max_wait, observe
        self._queue: queue.Queue[_Piece | None] = queue.Queue()  # None: close; its length is bounded by who submits
        self._held: _Piece | None = None  # did not fit into the last batch
        self._thread = Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it still answers."""
        return self._thread.is_alive()

    async def encode(self, squares: np.ndarray, wanted: int | None = None) -> Encoded:
        """Encode squares.

        Args:
            squares: (n, 2, S, S) uint8, at least one.
            wanted: row whose patches are wanted.

        Raises:
            RuntimeError: the pass failed.

        """
        starts = range(0, len(squares), self._max_batch)
        pieces = [_Piece(squares[at : at + self._max_batch], _within(wanted, at, self._max_batch)) for at in starts]
        for piece in pieces:
            self._queue.put(piece)
        parts = await asyncio.gather(*(asyncio.wrap_future(piece.future) for piece in pieces))
        patches = next((part.patches for part in parts if part.patches is not None), None)
        return Encoded(np.concatenate([part.vectors for part in parts]), patches)

    def close(self) -> None:
        """Answer what waits, then end."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while batch := self._gather():
            running = [piece for piece in batch if piece.future.set_running_or_notify_cancel()]
            if running:
                self._answer(running)

    def _gather(self) -> list[_Piece]:
        """The next batch; nothing: close."""
        first = self._held or self._queue.get()
        self._held = None
        if first is None:
            return []
        batch, num_frames, until = [first], len(first.squares), time.monotonic() + self._max_wait
        while num_frames < self._max_batch:
            try:
                piece = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if piece is None:
                self._queue.put(None)  # for the next time
                break
            if num_frames + len(piece.squares) > self._max_batch:
                self._held = piece
                break
            batch.append(piece)
            num_frames += len(piece.squares)
        return batch

    def _answer(self, batch: list[_Piece]) -> None:
        try:
            squares = np.concatenate([piece.squares for piece in batch])
            self._observe(len(squares))
            vectors, patches = self._forward(squares)
            found = vectors.cpu().numpy()
            start = 0
            for piece in batch:
                kept = None if piece.wanted is None else patches[start + piece.wanted].cpu().numpy()
                piece.future.set_result(Encoded(found[start : start + len(piece.squares)], kept))
                start += len(piece.squares)
        except (RuntimeError, ValueError, MemoryError) as error:  # torch: out of memory; the next batch may fit
            for piece in batch:
                if not piece.future.done():
                    piece.future.set_exception(error)


def _within(wanted: int | None, start: int, length: int) -> int | None:
    """Row inside the piece that begins at `start`, None where it lies in another."""
    return None if wanted is None or not start <= wanted < start + length else wanted - start

"""Frames of many requests in one forward pass.

One thread owns the encoder. It takes what waits, up to a batch, and waits a few milliseconds for more when there is
less: while it computes, the next batch gathers. Whatever a pass raises costs its batch, never the thread; what nobody
answers in time costs its request.

Dimensions: n frames, S pixels a side, N patches, D width.
"""

import asyncio
import logging
import queue
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import numpy as np
import torch

_log = logging.getLogger("us_jepa.serve")

Forward = Callable[[np.ndarray], tuple[torch.Tensor, torch.Tensor]]  # squares to vectors and patches


class PassFailedError(RuntimeError):
    """A pass of the encoder raised something."""


class EncoderGoneError(RuntimeError):
    """The thread of the encoder has ended."""


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
        max_seconds: until a request must be answered.

    """

    def __init__(
        self,
        forward: Forward,
        max_batch: int,
        max_wait: float,
        observe: Callable[[int], object] = lambda _: None,
        max_seconds: float = 60,
    ) -> None:
        self._forward, self._max_batch, self._max_wait, self._observe = forward, max_batch, max_wait, observe
        self._max_seconds, self._busy_since = max_seconds, float("inf")
        self._queue: queue.Queue[_Piece | None] = queue.Queue()  # None: close; its length is bounded by who submits
        self._held: _Piece | None = None  # did not fit into the last batch
        self._thread = Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether its thread has not ended."""
        return self._thread.is_alive()

    @property
    def is_stuck(self) -> bool:
        """Whether the present pass takes longer than any request may wait."""
        return time.monotonic() - self._busy_since > self._max_seconds

    async def encode(self, squares: np.ndarray, wanted: int | None = None) -> Encoded:
        """Encode squares.

        Args:
            squares: (n, 2, S, S) uint8, at least one.
            wanted: row whose patches are wanted.

        Raises:
            PassFailedError: the pass raised something; the log has its class and line.
            EncoderGoneError: the thread has ended.
            TimeoutError: no answer in time.

        """
        if not self.is_alive:
            raise EncoderGoneError
        starts = range(0, len(squares), self._max_batch)
        pieces = [_Piece(squares[at : at + self._max_batch], _within(wanted, at, self._max_batch)) for at in starts]
        for piece in pieces:
            self._queue.put(piece)
        async with asyncio.timeout(self._max_seconds):
            parts = await asyncio.gather(*(asyncio.wrap_future(piece.future) for piece in pieces))
        patches = next((part.patches for part in parts if part.patches is not None), None)
        return Encoded(np.concatenate([part.vectors for part in parts]), patches)

    def close(self) -> None:
        """Answer what waits, then end."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        batch: list[_Piece] = []
        try:
            while batch := self._gather():
                running = [piece for piece in batch if piece.future.set_running_or_notify_cancel()]
                if running:
                    self._busy_since = time.monotonic()
                    self._answer(running)
                    self._busy_since = float("inf")
        finally:
            self._leave(batch)

    def _leave(self, batch: list[_Piece]) -> None:
        """Nobody is left to answer the last batch, if it was not, and what still waits."""
        waiting = [*batch, self._held]
        while not self._queue.empty():
            waiting.append(self._queue.get())
        for piece in waiting:
            if piece is not None and not piece.future.done():
                piece.future.set_exception(EncoderGoneError())

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
        except Exception as error:  # whatever it is, the next batch may fit; a text may echo what was sent, a place not
            last = traceback.extract_tb(error.__traceback__)[-1]
            _log.warning("encoder failed: %s at %s:%s", type(error).__name__, Path(last.filename).name, last.lineno)
            failure = PassFailedError(type(error).__name__)
            failure.__cause__ = error
            for piece in batch:
                if not piece.future.done():
                    piece.future.set_exception(failure)


def _within(wanted: int | None, start: int, length: int) -> int | None:
    """Row inside the piece that begins at `start`, None where it lies in another."""
    return None if wanted is None or not start <= wanted < start + length else wanted - start

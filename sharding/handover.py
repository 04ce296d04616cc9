"""Pixels on their way from a decoding process to the training process: no copy, and nobody to ask.

PyTorch's own way asks the worker for a file descriptor over a socket: a worker that hangs would then hang the training
process beyond every time limit. Here the descriptor is opened through /proc, which works for any worker that is there,
and memory without a name is freed by the system however the processes end. Linux only.
"""

import math
import mmap
import os
from collections import deque
from collections.abc import Callable

import numpy as np
import torch

# Of a worker: batches that wait, one in the making, one that the training process still holds. What it has let go is
# freed by the worker, whose processes are many.
_KEPT = 4


class SharedPixels:
    """Zeros in shared memory, which arrive on the other side of a pipe as a tensor.

    Args:
        shape: of the uint8 tensor.

    Attributes:
        pixels: the tensor.

    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._descriptor = os.memfd_create("us-jepa")
        os.ftruncate(self._descriptor, math.prod(shape))
        self.pixels = _mapped(self._descriptor, shape)

    def __del__(self) -> None:
        os.close(self._descriptor)

    def __reduce__(self) -> tuple[Callable[..., torch.Tensor], tuple[int, int, tuple[int, ...]]]:
        return _opened, (os.getpid(), self._descriptor, self._shape)


class Outbox:
    """The last batches of a worker, which must stay open until they have arrived."""

    def __init__(self) -> None:
        self._kept: deque[SharedPixels] = deque(maxlen=_KEPT)

    def zeros(self, *shape: int) -> SharedPixels:
        """Fresh zeros to fill and to send."""
        self._kept.append(SharedPixels(shape))
        return self._kept[-1]


def _opened(process: int, descriptor: int, shape: tuple[int, ...]) -> torch.Tensor:
    mine = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR)
    try:
        return _mapped(mine, shape)
    finally:
        os.close(mine)


def _mapped(descriptor: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(mmap.mmap(descriptor, math.prod(shape)), np.uint8).reshape(shape))

"""Heads trained by AdamW with early stopping: the loop that the paper's and the attentive probe share.

Which rows form a batch depends on what the rows hold, not on their order, so another order of the same rows
gives the same head to the last bit.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from torch import nn

from sharding.recording import InputError

Loss = Callable[[torch.Tensor], torch.Tensor]  # row numbers (b,) to the mean loss of these rows


@dataclass(frozen=True)
class DescentConfig:
    """AdamW with a cosine schedule to 0 over all epochs; the defaults are the US-JEPA paper's (appendix D.2).

    Attributes:
        lr: at the start.
        weight_decay: of all parameters.
        batch: samples per step; the last of an epoch may be smaller.
        epochs: at most.
        patience: epochs without a lower validation loss after which it stops.
        seeds: one head each: its start and the order of its batches.

    """

    lr: float = 1e-3
    weight_decay: float = 1e-4
    batch: int = 32
    epochs: int = 150
    patience: int = 15
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def __post_init__(self) -> None:
        for name in ("lr", "batch", "epochs", "patience"):
            if getattr(self, name) <= 0:
                raise InputError(f"probe: {name} is {getattr(self, name)}; above 0 is needed")
        if not self.seeds:
            raise InputError("probe: no seeds; at least one is needed")


def descend(head: nn.Module, loss: Loss, train: np.ndarray, val: np.ndarray, cfg: DescentConfig, seed: int) -> int:
    """Train a head in place and leave it as it was at its lowest validation loss.

    Args:
        head: what is trained.
        loss: mean loss of some rows by the head.
        train: row numbers to fit on.
        val: row numbers that stop it.
        cfg: the descent.
        seed: of the order of the batches.

    Returns:
        the number of epochs until the lowest validation loss.

    """
    optimizer = torch.optim.AdamW(head.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, cfg.epochs)
    order = torch.Generator().manual_seed(seed)
    rows, best, best_epoch, kept = torch.from_numpy(train), np.inf, 0, copy.deepcopy(head.state_dict())
    for epoch in range(1, cfg.epochs + 1):
        for batch in torch.split(rows[torch.randperm(len(rows), generator=order)], cfg.batch):
            optimizer.zero_grad()
            torch.autograd.backward(loss(batch))
            optimizer.step()
        schedule.step()
        current = _mean_loss(loss, torch.from_numpy(val))
        if current < best:
            best, best_epoch, kept = current, epoch, copy.deepcopy(head.state_dict())
        elif epoch - best_epoch >= cfg.patience:
            break
    head.load_state_dict(kept)
    return best_epoch


@torch.no_grad()
def _mean_loss(loss: Loss, rows: torch.Tensor, chunk: int = 1024) -> float:
    total = math.fsum(float(loss(part)) * len(part) for part in torch.split(rows, chunk))
    return total / len(rows)


def content_order(*columns: np.ndarray) -> np.ndarray:
    """(n,) row numbers sorted by a digest of what the rows of all columns, each (n, ...), hold."""
    digests = [sha256(b"".join(row.tobytes() for row in rows)).digest() for rows in zip(*columns, strict=True)]
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)


def device() -> torch.device:
    """The first CUDA device where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

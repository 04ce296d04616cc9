"""The held-out loss: fixed images of patients that training never sees, fixed masks, no augmentation.

Dimensions: B images, N patches, F channels of the student's features.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import distributed

from sharding.order import slice_of_rank
from sharding.stream import Batch
from train.bad_samples import BadSamples
from train.health import effective_rank, measure_means, pooled, spread
from train.job import Job
from train.step import STATISTICS, View, prepare, summed


class Validation(NamedTuple):
    """What one validation found.

    Attributes:
        metrics: by name; the same on every rank.
        view: the first micro batch of this rank.
        tokens: (B, N, F) float32, the student's of that view.

    """

    metrics: dict[str, float]
    view: View
    tokens: torch.Tensor


@torch.no_grad()
def validate(job: Job) -> Validation | None:
    """Score the val split; None without one. Every rank must call it.

    Raises:
        InputError: more of its samples cannot be read than `data.max_bad_fraction` allows.

    """
    if job.held_out is None:
        return None
    if not job.objective.is_frozen:  # targets moved, and their means with them
        looks = ((view.images, view.valid) for view in _views(job))
        for mean, new in zip(
            job.means, measure_means(job.objective.targets, looks, distributed.all_reduce), strict=True
        ):
            mean.copy_(new)
    job.engine.eval()
    one = torch.ones((), device=job.engine.device)
    totals = torch.zeros(len(STATISTICS) + 1, device=job.engine.device)
    num = min(job.cfg.data.val_samples, job.held_out.order.num_samples)
    bad = BadSamples(num, job.cfg.data.max_bad_fraction, "samples of the val split")
    features, first = [], None
    for view in _views(job, bad):
        part = prepare(view, job.objective, job.means, job.cfg)
        totals += torch.cat([summed(job.engine, [part], one, lambda loss: None), part.weight[None]])
        tokens = job.engine(view.images).float()
        features.append(pooled(tokens, view.valid))
        first = first or (view, tokens)
    job.engine.train()
    assert first is not None
    num_bad = sum(bad.settle(num, job.engine.device).values())
    distributed.all_reduce(totals)
    *sums, weight = totals.tolist()
    metrics = {
        name.replace("train/", "val/"): value / max(weight, 1) for name, value in zip(STATISTICS, sums, strict=True)
    }
    metrics["val/bad_samples"] = num_bad
    return Validation(metrics | _spread_of(torch.cat(features)), *first)


def _views(job: Job, bad: BadSamples | None = None) -> Iterator[View]:
    assert job.held_out is not None
    num, batch = min(job.cfg.data.val_samples, job.held_out.order.num_samples), job.cfg.optim.batch
    for start in range(0, num, batch):
        positions = np.arange(start, min(start + batch, num))
        for micro in slice_of_rank(positions, job.cfg.run.micro_batch, job.rank, job.world):
            found: Batch = job.held_out.batch(micro)
            if bad is not None:
                bad.add([found])
            yield job.look(found, still=True)


def _spread_of(features: torch.Tensor) -> dict[str, float]:
    gathered = [torch.empty_like(features) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, features)
    rows = torch.cat(gathered)
    rows = rows[rows[:, -1] > 0, :-1]
    if len(rows) <= 1:
        return {}
    return {"health/effective_rank": effective_rank(rows), "health/feature_spread": spread(rows)}

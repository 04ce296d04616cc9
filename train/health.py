"""Is it learning? Free baselines, the spread of features, and a sentence.

Dimensions: B images, N patches, D channels of the targets, n features of F channels.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch

from train.objective import Look

_SAME = 0.98  # of a baseline's loss: no better than it
_COLLAPSED_RANK = 2.5  # directions; healthy encoders have tens
_COLLAPSED_SPREAD = 1e-3  # deviation of a feature over its mean size
_DATA_BOUND = 0.2  # share of the time that waits for data


class Means(NamedTuple):
    """What can be said of a target without looking at the image.

    Attributes:
        overall: (D,) float32, the mean target.
        at_position: (N, D) float32, the mean target at each position.

    """

    overall: torch.Tensor
    at_position: torch.Tensor


@torch.no_grad()
def measure_means(
    targets: Callable[[torch.Tensor], torch.Tensor],
    looks: Iterable[Look],
    add_ranks: Callable[[torch.Tensor], object] = lambda total: None,
) -> Means:
    """Means over the valid patches of some images; a position that is never valid has the overall mean.

    Where ranks look at different images, `add_ranks` adds a tensor up over them in place.
    """
    totals: list[torch.Tensor] = []
    for images, valid in looks:
        latents, weight = targets(images).double(), valid.double()[..., None]
        sums = [(latents * weight).sum(dim=0), weight.sum(dim=0)]
        totals = [total + one for total, one in zip(totals, sums, strict=True)] if totals else sums
    for total in totals:
        add_ranks(total)
    summed, count = totals
    overall = summed.sum(dim=0) / count.sum().clamp(min=1)
    at_position = torch.where(count > 0, summed / count.clamp(min=1), overall)
    return Means(overall.float(), at_position.float())


def pooled(tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean of tokens (B, N, F) over the valid patches (B, N), and whether there is one, (B, F + 1)."""
    weight = valid.float()[..., None]
    mean = (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
    return torch.cat([mean, valid.any(dim=1, keepdim=True).float()], dim=1)


def effective_rank(features: torch.Tensor) -> float:
    """RankMe (arXiv 2210.02885) of centred features (n, F): exp of the entropy of their singular values' shares.

    Features that are not finite have a rank that is not: NaN.
    """
    if not features.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals((features - features.mean(dim=0)).double())
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return float(torch.exp(torch.special.entr(shares).sum()))


def spread(features: torch.Tensor) -> float:
    """Deviation of features (n, F) over the images, relative to their size: 0 when all images look the same."""
    size = features.square().mean().sqrt().clamp(min=torch.finfo(features.dtype).tiny)
    return float(features.std(dim=0).square().mean().sqrt() / size)


def is_collapsed(metrics: Mapping[str, float]) -> bool:
    """Whether features of the held-out images lie in hardly any direction."""
    return (
        metrics.get("health/effective_rank", _COLLAPSED_RANK) < _COLLAPSED_RANK
        or metrics.get("health/feature_spread", 1) < _COLLAPSED_SPREAD
    )


def verdict(metrics: Mapping[str, float]) -> str:
    """One line in words about the last logged metrics."""
    kind = "val" if "val/loss" in metrics else "train"
    loss, mean, position = (
        metrics[f"{kind}/loss{rest}"] for rest in ("", "_of_predicting_the_mean", "_of_predicting_the_position")
    )
    against = f"loss {loss:.3f}, of predicting the mean {mean:.3f}, of the position's mean {position:.3f}"
    if is_collapsed(metrics):
        said = (
            f"COLLAPSED: features lie in {metrics['health/effective_rank']:.1f} directions and vary by "
            f"{metrics['health/feature_spread']:.1g} of their size; lower optim.lr or check the teacher"
        )
    elif loss >= _SAME * mean:
        said = "not learning yet: no better than predicting the mean target"
    elif loss >= _SAME * position:
        said = "copying positions: no better than predicting the mean target of each position"
    else:
        said = f"learning: {1 - loss / position:.0%} below what positions alone give"
    if metrics.get("perf/data_wait_share", 0) > _DATA_BOUND:
        said += f"; data-bound: {metrics['perf/data_wait_share']:.0%} of the time waits for the stream"
    return f"{said} ({against})"

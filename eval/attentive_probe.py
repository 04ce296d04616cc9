"""Attentive probe: one learned query looks at the patch tokens, and a linear layer reads what it saw.

JEPA encoders have no trained CLS token, and a mean over patches drowns small findings (V-JEPA, arXiv 2404.08471,
section 4.2, probes by attention for this reason). Here the query has one softmax over the patches per head, keys
and values are the tokens themselves: D more parameters than the linear probe, which small sets can bear. The query
starts at zero, where the pooling is the mean. Dimensions: n samples, N patches, D channels, H heads, C classes.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from eval.descent import DescentConfig, content_order, descend, device
from eval.partition import Partition, ProbeConfig, divided, folds_of, partitions
from eval.probe import ProbeResult, check_features, is_constant
from sharding.recording import InputError

ATTENTIVE = DescentConfig(weight_decay=1e-2, epochs=60, patience=10, seeds=(0,))
_CHUNK = 256  # samples that are predicted at once


class AttentiveHead(nn.Module):
    """Tokens (B, N, D) to logits (B, C); `valid` (B, N) bool excludes patches, unless it excludes all.

    Attributes:
        query: (H, D / H), one softmax over the patches per head.
        mean: (D,) of the fitted tokens.
        spread: (D,) their standard deviation.

    """

    mean: torch.Tensor
    spread: torch.Tensor

    def __init__(self, mean: torch.Tensor, spread: torch.Tensor, num_classes: int, num_heads: int) -> None:
        super().__init__()
        width = len(mean)
        if width % num_heads:
            raise InputError(f"attentive probe: {num_heads} heads do not divide the width {width} of the tokens")
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)
        self.query = nn.Parameter(torch.zeros(num_heads, width // num_heads))
        self.linear = nn.Linear(width, num_classes)

    def forward(self, tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Logits (B, C)."""
        tokens = (tokens.float() - self.mean) / self.spread
        split = torch.unflatten(tokens, 2, tuple(self.query.shape))
        look = torch.einsum("bnhd,hd->bnh", split, self.query) / self.query.shape[1] ** 0.5
        blocked = ~(valid | ~valid.any(dim=1, keepdim=True))
        attention = look.masked_fill(blocked[..., None], -torch.inf).softmax(dim=1)
        logits: torch.Tensor = self.linear(torch.einsum("bnh,bnhd->bhd", attention, split).flatten(1))
        return logits


def attentive_probe(  # noqa: PLR0913 - as the fair probe, and what attends to what
    tokens: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    cfg: ProbeConfig,
    splits: np.ndarray | None = None,
    *,
    valid: np.ndarray | None = None,
    descent: DescentConfig = ATTENTIVE,
    num_heads: int = 4,
) -> ProbeResult:
    """Predict every reported sample from its patch tokens; with several seeds by their mean.

    Args:
        tokens: (n, N, D) float16 or float32, finite; channels are standardised by the fitted rows.
        labels: (n,) integers in 0..C-1.
        groups: (n,) group (patient) of each sample.
        cfg: folds, inner_share and seed count here.
        splits: (n,) "train", "val" or "test"; without val a part of train by group stops the descent.
        valid: (n, N) bool, patches to look at; None: all.
        descent: of the head.
        num_heads: H, a divisor of D.

    Returns:
        the epochs used as `strengths`.

    Raises:
        InputError: what `linear_probe` raises; tokens that are not (n, N, D), valid of another shape.

    """
    valid = np.ones(tokens.shape[:2], dtype=bool) if valid is None else valid
    if tokens.ndim != 3 or valid.shape != tokens.shape[:2]:  # noqa: PLR2004 - (n, N, D)
        raise InputError(f"attentive probe: tokens {tokens.shape}, valid {valid.shape}; (n, N, D), (n, N) are needed")
    check_features(tokens, labels)
    order = content_order(tokens, valid, labels)
    tokens, valid, labels, groups = tokens[order], valid[order], labels[order], groups[order]
    splits = None if splits is None else splits[order]
    folds = folds_of(labels, groups, cfg, splits)
    by_seed = np.full((len(descent.seeds), len(labels), int(labels.max()) + 1), np.nan)
    epochs = []
    for part in partitions(folds, splits):
        inner = Partition(*divided(part, labels, groups, cfg), part.reported)
        for place, seed in enumerate(descent.seeds):
            used, by_seed[place, part.reported] = _one_seed((tokens, valid, labels), inner, descent, seed, num_heads)
            epochs.append(float(used))
    back = np.argsort(order)
    by_seed, folds = by_seed[:, back], folds[back]
    mean = by_seed.mean(axis=0)
    return ProbeResult(mean, folds, tuple(epochs), is_constant(mean, folds), 0, by_seed)


def _one_seed(
    data: tuple[np.ndarray, np.ndarray, np.ndarray], part: Partition, descent: DescentConfig, seed: int, num_heads: int
) -> tuple[int, np.ndarray]:
    """Epochs used and probabilities (m, C) of the reported rows."""
    tokens, valid, labels = (torch.from_numpy(values) for values in data)
    fitted = data[0][part.train].astype(np.float32)
    mean, spread = fitted.mean(axis=(0, 1)), fitted.std(axis=(0, 1))
    spread[spread <= np.finfo(np.float32).eps * np.abs(mean)] = 1  # a constant channel says nothing
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = AttentiveHead(torch.from_numpy(mean), torch.from_numpy(spread), int(labels.max()) + 1, num_heads)
    place = device()
    head = head.to(place)

    def logits(rows: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = head(tokens[rows].to(place), valid[rows].to(place))
        return result

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits(rows), labels[rows].to(place))

    val = part.train if part.val is None else part.val
    used = descend(head, loss, part.train, val, descent, seed)
    with torch.no_grad():
        parts = [
            logits(rows).double().softmax(dim=1).cpu() for rows in torch.split(torch.from_numpy(part.reported), _CHUNK)
        ]
    return used, torch.cat(parts).numpy()

"""The probe of the US-JEPA paper to the letter (arXiv 2602.19322, section 5.2 and appendix D.2).

One linear layer on raw features, AdamW 1e-3 with weight decay 1e-4, batches of 32, cosine over 150 epochs, stopped
by the validation loss with patience 15, five seeds, macro F1. One learning rate serves every encoder whatever the
scale of its features: where that is small, the layer stays at the majority class, and the result says so.
Dimensions: n samples, D features, C classes.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from eval.descent import DescentConfig, content_order, descend
from eval.partition import Partition, ProbeConfig, divided, folds_of, partitions
from eval.probe import ProbeResult, check_features, is_constant

PAPER = DescentConfig()


def paper_probe(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    cfg: ProbeConfig,
    splits: np.ndarray | None = None,
    descent: DescentConfig = PAPER,
) -> ProbeResult:
    """Predict every reported sample by the mean of the seeds' linear layers; `by_seed` has each.

    Args:
        features: (n, D), finite, used as they are.
        labels: (n,) integers in 0..C-1.
        groups: (n,) group (patient) of each sample.
        cfg: folds, inner_share and seed count here; as in the fair probe, so both report on the same folds.
        splits: (n,) "train", "val" or "test"; without val a part of train by group stops the descent.
        descent: the protocol.

    Raises:
        InputError: what `linear_probe` raises.

    """
    check_features(features, labels)
    features = features.astype(np.float32)
    order = content_order(features, labels)
    features, labels, groups = features[order], labels[order], groups[order]
    splits = None if splits is None else splits[order]
    folds = folds_of(labels, groups, cfg, splits)
    by_seed = np.full((len(descent.seeds), len(labels), int(labels.max()) + 1), np.nan)
    epochs = []
    for part in partitions(folds, splits):
        fitted, val = divided(part, labels, groups, cfg)
        for place, seed in enumerate(descent.seeds):
            used, by_seed[place, part.reported] = fit_layer(
                features, labels, Partition(fitted, val, part.reported), descent, seed
            )
            epochs.append(used)
    constant = all(is_constant(probabilities, folds) for probabilities in by_seed)
    back = np.argsort(order)
    by_seed, folds = by_seed[:, back], folds[back]
    return ProbeResult(by_seed.mean(axis=0), folds, tuple(epochs), constant, 0, by_seed)


def fit_layer(
    features: np.ndarray, labels: np.ndarray, part: Partition, descent: DescentConfig, seed: int
) -> tuple[int, np.ndarray]:
    """One seed's layer, stopped by the rows of val.

    Args:
        features: (n, D) float32.
        labels: (n,) integers in 0..C-1.
        part: rows to fit on, to stop with and to predict.
        descent: the protocol.
        seed: of the layer's start and the order of its batches.

    Returns:
        the epochs used, and probabilities (m, C) of the reported rows.

    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(features.shape[1], int(labels.max()) + 1)
    inputs, targets = torch.from_numpy(features), torch.from_numpy(labels)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(head(inputs[rows]), targets[rows])

    val = part.train if part.val is None else part.val
    used = descend(head, loss, part.train, val, descent, seed)
    with torch.no_grad():
        chances = head(inputs[torch.from_numpy(part.reported)]).double().softmax(dim=1)
    return used, chances.numpy()

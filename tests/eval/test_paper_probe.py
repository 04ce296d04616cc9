"""The paper's probe is what it says, and falls into the trap that the fair one does not."""

import numpy as np
import pytest
import torch
from torch import nn

from eval.descent import DescentConfig, descend
from eval.metrics import scores
from eval.paper_probe import PAPER, paper_probe
from eval.probe import linear_probe
from sharding.recording import InputError
from tests.eval.labelled import SMALL, drawn_case, splits_of


def fatty_liver(scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """550 frames of 55 patients, 38 of them with the disease, whose features differ clearly but are tiny."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(55), 10)
    labels = np.repeat((np.arange(55) * 38 % 55 < 38).astype(np.int64), 10)  # evenly over the splits
    features = rng.normal(size=(550, 32)) + 1.5 * labels[:, None] * rng.normal(size=32)
    return (scale * features).astype(np.float32), labels, groups


def test_the_defaults_are_those_of_the_paper() -> None:
    assert (PAPER.lr, PAPER.weight_decay, PAPER.batch, PAPER.epochs, PAPER.patience) == (1e-3, 1e-4, 32, 150, 15)
    assert len(PAPER.seeds) == 5


def test_tiny_features_collapse_the_papers_probe_to_the_majority_and_not_the_fair_one() -> None:
    features, labels, groups = fatty_liver(scale=1e-5)
    splits = splits_of(groups)
    test = splits == "test"
    paper, fair = (probe(features, labels, groups, SMALL, splits) for probe in (paper_probe, linear_probe))
    assert paper.constant
    assert not fair.constant
    majority = 1 / (1 + (1 - labels[test].mean()) / 2 / labels[test].mean()) / 2  # its F1, and 0 of the other class
    assert scores(labels[test], paper.probabilities[test]).macro_f1 == pytest.approx(majority)
    assert paper.macro_f1_of_seeds(labels) == pytest.approx((majority, 0))
    assert scores(labels[test], fair.probabilities[test]).macro_f1 > 0.9


def test_features_of_usual_scale_do_not_collapse_it() -> None:
    features, labels, groups = fatty_liver(scale=1)
    result = paper_probe(features, labels, groups, SMALL, splits_of(groups))
    assert not result.constant
    mean, deviation = result.macro_f1_of_seeds(labels)
    assert mean > 0.9
    assert deviation < 0.1


def test_seeds_give_other_heads_again_and_again_the_same() -> None:
    features, labels, groups = drawn_case(0)
    short = DescentConfig(epochs=2, seeds=(0, 1))
    torch.manual_seed(5)
    first = paper_probe(features, labels, groups, SMALL, descent=short).by_seed
    torch.manual_seed(6)
    second = paper_probe(features, labels, groups, SMALL, descent=short).by_seed
    assert first is not None
    np.testing.assert_array_equal(first, second)
    assert (first[0] != first[1]).all()


def test_the_head_of_the_lowest_validation_loss_is_kept_and_patience_ends_the_descent() -> None:
    head = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(head.weight)
    seen = []

    def loss(rows: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            seen.append(head.weight.item())
        target = 1.0 if torch.is_grad_enabled() else 0.35
        return ((head.weight - target) ** 2).mean() + 0 * rows.sum()

    cfg = DescentConfig(lr=0.1, weight_decay=0, batch=4, epochs=50, patience=3)
    used = descend(head, loss, np.arange(4), np.arange(2), cfg, seed=0)
    closest = int(np.argmin(np.abs(np.array(seen) - 0.35)))
    assert used == closest + 1
    assert len(seen) == used + cfg.patience
    assert head.weight.item() == pytest.approx(seen[closest])


def test_what_cannot_be_trained_is_named() -> None:
    with pytest.raises(InputError, match="patience is 0; above 0"):
        DescentConfig(patience=0)
    with pytest.raises(InputError, match="no seeds"):
        DescentConfig(seeds=())
    features, labels, groups = drawn_case(0)
    with pytest.raises(InputError, match="of one seed; a deviation needs several"):
        linear_probe(features, labels, groups, SMALL).macro_f1_of_seeds(labels)

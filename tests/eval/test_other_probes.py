"""Neighbours, attention and few labels, each beside an independent reference."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from eval.attentive_probe import AttentiveHead, attentive_probe
from eval.descent import DescentConfig
from eval.few_shot import drawn_rows, few_shot
from eval.knn_probe import knn_probe
from eval.metrics import scores
from eval.probe import linear_probe
from sharding.recording import InputError
from tests.eval.labelled import SMALL, drawn_case, splits_of

FAST = DescentConfig(lr=2e-2, epochs=25, patience=8, seeds=(0,))


@pytest.mark.parametrize("number", [1, 7, 500])
def test_neighbours_vote_as_those_of_scikit_learn(number: int) -> None:
    features, labels, groups = drawn_case(0, num_classes=3, num_groups=24)
    splits = splits_of(groups)
    train, test = splits == "train", splits == "test"
    model = KNeighborsClassifier(
        min(number, int(train.sum())), metric="cosine", weights=lambda distance: np.exp(-distance / 0.07)
    ).fit(features[train], labels[train])
    result = knn_probe(features, labels, groups, SMALL, splits, neighbours=[number])
    np.testing.assert_allclose(result.probabilities[test], model.predict_proba(features[test]), atol=1e-5)
    np.testing.assert_allclose(
        knn_probe(100 * features, labels, groups, SMALL, splits, neighbours=[number]).probabilities[test],
        result.probabilities[test],
        atol=1e-5,
    )


def test_attention_starts_as_the_mean_of_the_valid_patches() -> None:
    torch.manual_seed(0)
    head = AttentiveHead(torch.zeros(8), torch.ones(8), num_classes=3, num_heads=2)
    tokens, valid = torch.randn(4, 5, 8), torch.rand(4, 5) > 0.4
    valid[0] = False
    means = [row[keep if keep.any() else slice(None)].mean(dim=0) for row, keep in zip(tokens, valid, strict=True)]
    torch.testing.assert_close(head(tokens, valid), head.linear(torch.stack(means)))


def test_attention_finds_the_patch_that_the_mean_drowns() -> None:
    rng = np.random.default_rng(0)
    groups = np.arange(240)
    labels, marked = groups % 2, rng.integers(25, size=240)
    tokens = rng.normal(size=(240, 25, 8))
    tokens[groups, marked, 0] = 6  # says where to look
    tokens[groups, marked, 1] = 2 * labels - 1  # says what is there
    tokens = tokens.astype(np.float16)
    attentive = attentive_probe(tokens, labels, groups, SMALL, descent=FAST, num_heads=1)
    mean = linear_probe(tokens.astype(np.float32).mean(axis=1), labels, groups, SMALL)
    areas = [scores(labels, result.probabilities).auroc for result in (attentive, mean)]
    assert areas[0] > areas[1] + 0.1


def test_tokens_that_cannot_be_attended_to_are_named() -> None:
    features, labels, groups = drawn_case(0)
    with pytest.raises(InputError, match=r"tokens \(60, 6\).*\(n, N, D\)"):
        attentive_probe(features, labels, groups, SMALL)
    with pytest.raises(InputError, match="4 heads do not divide the width 6"):
        attentive_probe(features[:, None], labels, groups, SMALL, num_heads=4)


@pytest.mark.parametrize("seed", range(5))
def test_drawn_shares_keep_groups_whole_hold_every_class_and_are_nested(seed: int) -> None:
    _, labels, groups = drawn_case(seed, num_classes=3, num_groups=60)
    smaller = np.zeros(len(labels), dtype=bool)
    for share in (0.01, 0.05, 0.1, 0.5, 1.0):
        drawn = drawn_rows(labels, groups, share, seed)
        assert not (smaller & ~drawn).any()
        assert set(labels[drawn].tolist()) == {0, 1, 2}
        assert not set(groups[drawn].tolist()) & set(groups[~drawn].tolist())
        assert len(set(groups[drawn].tolist())) <= np.ceil(share * 60) + 3 + 3
        smaller = drawn
    assert smaller.all()
    assert (drawn_rows(labels, groups, 0.1, seed) != drawn_rows(labels, groups, 0.1, seed + 99)).any()


def test_few_labels_say_less_and_all_of_them_what_the_linear_probe_says() -> None:
    features, labels, groups = drawn_case(1, num_groups=80, gap=0.6, width=20)
    splits = splits_of(groups)
    found = few_shot(features, labels, groups, SMALL, splits, shares=(0.02, 1.0), seeds=(0, 1, 2))
    test, whole = splits == "test", linear_probe(features, labels, groups, SMALL, splits)
    np.testing.assert_allclose(found[1.0].probabilities[test], whole.probabilities[test], atol=1e-9)
    assert found[0.02].macro_f1_of_seeds(labels)[0] < found[1.0].macro_f1_of_seeds(labels)[0]
    assert found[0.02].num_fixed == 0  # val chooses


def test_a_share_too_small_to_choose_with_has_the_fixed_strength_and_is_counted() -> None:
    features, _, groups = drawn_case(2, num_groups=30)
    labels = groups % 2
    found = few_shot(features, labels, groups, SMALL, shares=(0.01, 1.0), seeds=(0, 1))
    assert found[0.01].num_fixed == 3 * 2
    assert set(found[0.01].strengths) == {1.0}
    assert found[1.0].num_fixed == 0
    with pytest.raises(InputError, match=r"shares \(0\.0,\)"):
        few_shot(features, labels, groups, SMALL, shares=(0.0,))

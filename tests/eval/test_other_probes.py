"""Neighbours, attention, few labels, quantities and masks, each beside an independent reference."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import jaccard_score, mean_absolute_error, r2_score
from sklearn.neighbors import KNeighborsClassifier

from eval.attentive_probe import AttentiveHead, attentive_probe
from eval.descent import DescentConfig
from eval.few_shot import drawn_rows, few_shot
from eval.knn_probe import knn_probe
from eval.metrics import scores
from eval.partition import ProbeConfig
from eval.probe import linear_probe
from eval.ridge_probe import regression_scores, ridge_probe
from eval.segmentation_probe import overlap_scores, segmentation_probe
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


def regression_case(seed: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(120, width))
    targets = 50 + 5 * features[:, :3].sum(axis=1) + rng.normal(size=120)
    return features.astype(np.float32), targets, np.repeat(np.arange(24), 5)


@pytest.mark.parametrize("width", [5, 100])
def test_ridge_equals_that_of_scikit_learn_and_leaves_test_alone(width: int) -> None:
    features, targets, groups = regression_case(0, width)
    splits = splits_of(groups)
    train, test = splits == "train", splits == "test"
    result = ridge_probe(features, targets, groups, SMALL, splits, alphas=(3.0,))
    mean, spread = features[train].mean(axis=0, dtype=float), features[train].std(axis=0, dtype=float)
    model = Ridge(alpha=3.0).fit((features[train] - mean) / spread, targets[train])
    np.testing.assert_allclose(result.predictions[test], model.predict((features[test] - mean) / spread), atol=1e-6)
    assert np.isnan(result.predictions[~test]).all()
    many = ridge_probe(features, targets, groups, SMALL, splits)
    other = ridge_probe(features, np.where(test, -targets, targets), groups, SMALL, splits)
    np.testing.assert_array_equal(other.predictions, many.predictions)


def test_regression_scores_equal_those_of_scikit_learn_and_lie_in_their_intervals() -> None:
    features, targets, groups = regression_case(1, 20)
    result = ridge_probe(features, targets, groups, SMALL)
    found = regression_scores(targets, result.predictions, groups)
    assert found.r2 == pytest.approx(r2_score(targets, result.predictions))
    assert found.r2 > 0.8
    assert found.mae == pytest.approx(mean_absolute_error(targets, result.predictions))
    assert found.r2_interval.low < found.r2 < found.r2_interval.high
    assert found.mae_interval.low < found.mae < found.mae_interval.high
    noise = ridge_probe(np.random.default_rng(0).normal(size=features.shape), targets, groups, SMALL)
    assert regression_scores(targets, noise.predictions, groups).r2 < 0.1


def test_quantities_that_cannot_be_regressed_are_named() -> None:
    features, targets, groups = regression_case(0, 5)
    with pytest.raises(InputError, match="1 targets are not finite"):
        ridge_probe(features, np.where(np.arange(120) == 3, np.nan, targets), groups, SMALL)
    with pytest.raises(InputError, match="positive descending ones are needed"):
        ridge_probe(features, targets, groups, SMALL, alphas=(1.0, 2.0))
    with pytest.raises(InputError, match="with 2 names for 120 samples"):
        ridge_probe(features, targets, np.arange(120) % 2, SMALL)


def drawn_masks(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens (40, 16, 6) that show the class of their patch, masks (40, 16, 16) of three classes, groups."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(3, size=(40, 4, 4))
    tokens = 3 * np.eye(3)[coarse.reshape(40, 16)] @ rng.normal(size=(3, 6)) + 0.2 * rng.normal(size=(40, 16, 6))
    return tokens.astype(np.float16), coarse.repeat(4, axis=1).repeat(4, axis=2), np.arange(40) // 2


def test_masks_are_found_from_tokens_that_show_them_and_not_from_noise() -> None:
    tokens, masks, groups = drawn_masks(0)
    result = segmentation_probe(tokens, masks, groups, SMALL, descent=FAST)
    found = overlap_scores(result.confusion, groups, num_resamples=200)
    centre = [result.predicted[:, 1::4, 1::4], masks[:, 1::4, 1::4]]
    assert (centre[0] == centre[1]).mean() > 0.9
    flat = masks.ravel(), result.predicted.ravel()
    np.testing.assert_allclose(found.iou, jaccard_score(*flat, average=None))
    np.testing.assert_allclose(found.dice, 2 * found.iou / (1 + found.iou))
    assert all(i.low < value < i.high for i, value in zip(found.dice_intervals, found.dice, strict=True))
    noise = np.random.default_rng(0).normal(size=tokens.shape).astype(np.float16)
    other = segmentation_probe(noise, masks, groups, SMALL, descent=FAST)
    assert overlap_scores(other.confusion, groups).dice.mean() < found.dice.mean() - 0.3


def test_a_segmentation_reports_test_only_in_any_order_of_the_rows() -> None:
    tokens, masks, groups = drawn_masks(1)
    splits, order = splits_of(groups), np.random.default_rng(0).permutation(40)
    result = segmentation_probe(tokens, masks, groups, SMALL, splits, FAST)
    shuffled = segmentation_probe(tokens[order], masks[order], groups[order], SMALL, splits[order], FAST)
    np.testing.assert_array_equal(shuffled.predicted, result.predicted[order])
    np.testing.assert_array_equal(result.confusion.sum(axis=(1, 2)) > 0, splits == "test")
    changed = np.where((splits == "test")[:, None, None], 2 - masks, masks)
    np.testing.assert_array_equal(
        segmentation_probe(tokens, changed, groups, SMALL, splits, FAST).predicted, result.predicted
    )


def test_masks_that_cannot_be_probed_are_named() -> None:
    tokens, masks, groups = drawn_masks(0)
    cfg = ProbeConfig(folds=2)
    for broken, message in ((masks[:, :-1], r"\(n, S, S\)"), (masks[:, :-2, :-2], "multiple"), (masks - 1, "from 0")):
        with pytest.raises(InputError, match=message):
            segmentation_probe(tokens, broken, groups, cfg)
    with pytest.raises(InputError, match="N a square number"):
        segmentation_probe(tokens[:, :15], masks, groups, cfg)

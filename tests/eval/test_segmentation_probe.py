"""The segmentation probe: it reads classes off tokens, never sees what it reports, and counts pixels rightly."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score
from torch.nn import functional

from eval.bootstrap import group_weights
from eval.segmentation_probe import SegmentationConfig, _Head, segmentation_probe, segmentation_scores
from sharding.recording import InputError
from tests.eval.labelled import splits_of

CFG = SegmentationConfig(folds=3, epochs=10, batch=4)
GRID, SIDE, CLASSES = 6, 24, 3


def made(num: int = 18, offset: float = 0.0, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens (n, 36, 8) float16 whose direction names the class of their patch, masks (n, 24, 24), groups of two."""
    draws = np.random.default_rng(0)
    small = draws.integers(0, CLASSES, (num, GRID, GRID))
    codes = 2 * draws.standard_normal((CLASSES, 8))
    tokens = codes[small.reshape(num, -1)] + noise * draws.standard_normal((num, GRID**2, 8)) + offset
    masks = small.repeat(SIDE // GRID, axis=1).repeat(SIDE // GRID, axis=2)
    return tokens.astype(np.float16), masks, np.repeat([f"p{number}" for number in range(num // 2)], 2)


def test_classes_of_patches_are_found_about_any_mean() -> None:
    for offset in (0.0, 100.0):
        tokens, masks, groups = made(offset=offset)
        found = segmentation_probe(tokens, masks, groups, CFG)
        centres = (slice(None), slice(2, None, 4), slice(2, None, 4))
        assert (found.predictions[centres] == masks[centres]).mean() > 0.98
        assert segmentation_scores(masks, found.predictions, groups).dice.min() > 0.8


def test_tokens_that_say_nothing_give_the_commonest_class() -> None:
    _, masks, groups = made()
    masks = np.where(np.random.default_rng(1).random(masks.shape) < 0.5, 0, masks)
    found = segmentation_probe(np.ones((18, GRID**2, 8), np.float16), masks, groups, CFG)
    assert (found.predictions == 0).all()


def test_logits_are_enlarged_bilinearly_with_patches_row_by_row() -> None:
    linear = torch.nn.Linear(8, CLASSES)
    device = torch.device("cpu")
    head = _Head(linear, torch.full((8,), 0.5), torch.full((8,), 2.0), device)
    tokens = made()[0]
    small = linear((torch.from_numpy(tokens[:2]).float() - 0.5) / 2).reshape(2, GRID, GRID, CLASSES).permute(0, 3, 1, 2)
    for side in (SIDE, 17, 4):
        expected = functional.interpolate(small, size=(side, side), mode="bilinear", align_corners=False)
        assert torch.allclose(head.logits(tokens, np.arange(2), side), expected, atol=1e-5)


def test_folds_keep_groups_whole_and_reported_masks_are_not_seen() -> None:
    tokens, masks, groups = made()
    found = segmentation_probe(tokens, masks, groups, CFG)
    assert all(len(set(found.folds[groups == group])) == 1 for group in groups)
    reported = found.folds == 1
    turned = np.where(reported[:, None, None], (masks + 1) % CLASSES, masks)
    again = segmentation_probe(tokens, turned, groups, CFG)
    assert (again.predictions[reported] == found.predictions[reported]).all()
    assert (again.predictions[~reported] != found.predictions[~reported]).any()
    assert (segmentation_probe(tokens, masks, groups, CFG).predictions == found.predictions).all()


def test_scores_are_those_of_scikit_learn_in_every_resample() -> None:
    _, masks, groups = made()
    draws = np.random.default_rng(2)
    predictions = np.where(draws.random(masks.shape) < 0.3, draws.integers(0, CLASSES, masks.shape), masks)
    found = segmentation_scores(masks, predictions, groups, num_resamples=20)
    flat = masks.ravel(), predictions.ravel()
    assert found.dice == pytest.approx(f1_score(*flat, average=None))
    assert found.iou == pytest.approx(jaccard_score(*flat, average=None))
    of_pixel = np.unique(groups, return_inverse=True)[1].repeat(SIDE**2)
    weights = group_weights(9, 20, 0)[:, of_pixel]
    values = np.array([f1_score(*flat, average=None, sample_weight=weight) for weight in weights])
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    assert [interval.low for interval in found.dice_intervals] == pytest.approx(low)
    assert [interval.high for interval in found.dice_intervals] == pytest.approx(high)


def test_a_class_of_one_group_has_intervals_over_the_resamples_that_hold_it() -> None:
    masks = np.zeros((4, 8, 8), dtype=np.int64)
    masks[0, :4] = 1
    found = segmentation_scores(masks, masks, np.arange(4))
    assert found.dice.tolist() == found.iou.tolist() == [1, 1]
    assert found.dice_intervals[1].low == 1


def test_splits_fit_on_train_and_report_test() -> None:
    tokens, masks, groups = made()
    splits = splits_of(np.unique(groups, return_inverse=True)[1])
    result = segmentation_probe(tokens, masks, groups, CFG, splits)
    test = splits == "test"
    np.testing.assert_array_equal(result.reported, test)
    assert not result.predictions[~test].any()
    unseen = np.where((splits == "train")[:, None, None], masks, 0)
    np.testing.assert_array_equal(
        segmentation_probe(tokens, unseen, groups, CFG, splits).predictions, result.predictions
    )
    scored = segmentation_scores(masks[test], result.predictions[test], groups[test])
    assert scored.foreground == pytest.approx(scored.dice[1:].mean())
    assert scored.foreground_interval.low <= scored.foreground <= scored.foreground_interval.high


def test_what_is_refused() -> None:
    tokens, masks, groups = made()
    with pytest.raises(InputError, match=r"tokens have shape \(18, 35, 8\), masks \(18, 24, 24\).* square number N"):
        segmentation_probe(tokens[:, 1:], masks, groups, CFG)
    with pytest.raises(InputError, match=r"hold the class ids \[0, 2\]; 0\.\.C-1"):
        segmentation_probe(tokens, np.where(masks == 1, 0, masks), groups, CFG)
    with pytest.raises(InputError, match="the lowest label is -1"):
        segmentation_probe(tokens, masks - 1, groups, CFG)
    with pytest.raises(InputError, match="2 groups for 3 folds; each fold needs one"):
        segmentation_probe(tokens[:4], masks[:4], groups[:4], CFG)
    with pytest.raises(InputError, match="8 of 5184 values of tokens are not finite"):
        segmentation_probe(np.where(np.arange(18 * 36).reshape(18, 36, 1) == 5, np.nan, tokens), masks, groups, CFG)
    with pytest.raises(InputError, match="1 folds, 20 epochs"):
        SegmentationConfig(folds=1)
    with pytest.raises(InputError, match="class 3 is predicted, but no mask holds it"):
        segmentation_scores(masks, masks + 1, groups)
    with pytest.raises(InputError, match="with 1 groups of 18 samples; equal shapes and 2 groups"):
        segmentation_scores(masks, masks, np.repeat("a", 18))

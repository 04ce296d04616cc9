"""The ridge probe: it finds what is linear, never sees what it reports, and its scores are scikit-learn's."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eval.bootstrap import group_weights
from eval.ridge_probe import RidgeConfig, regression_scores, ridge_probe
from sharding.recording import InputError
from tests.eval.labelled import splits_of

CFG = RidgeConfig(folds=4, inner_folds=3)


def linear(noise: float = 0.1, num_groups: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, 6) of very different scales, targets linear in them, four samples per group."""
    draws = np.random.default_rng(seed)
    groups = np.repeat([f"p{number}" for number in range(num_groups)], 4)
    raw = draws.standard_normal((len(groups), 6))
    targets = raw @ [3, -2, 1, 0, 0, 0] + noise * draws.standard_normal(len(groups)) + 50
    return raw * 10.0 ** np.arange(-3, 3), targets, groups


def test_finds_a_linear_relation_at_any_scale_and_offset() -> None:
    features, targets, groups = linear()
    result = ridge_probe(features.astype(np.float32), targets, groups, CFG)
    assert r2_score(targets, result.predictions) > 0.99
    assert set(result.strengths) == {1e-3}


def test_noise_alone_is_regularised_away_and_scores_no_better_than_the_mean() -> None:
    draws = np.random.default_rng(1)
    features, targets, groups = draws.standard_normal((96, 200)), draws.standard_normal(96), linear()[2]
    result = ridge_probe(features, targets, groups, CFG)
    assert r2_score(targets, result.predictions) < 0.1
    assert np.abs(result.predictions).max() < 1


def test_folds_keep_groups_whole_and_know_no_features() -> None:
    features, targets, groups = linear()
    result = ridge_probe(features, targets, groups, CFG)
    assert all(len(set(result.folds[groups == group])) == 1 for group in groups)
    assert set(result.folds) == set(range(4))
    assert (ridge_probe(-features[:, :2], targets**2, groups, CFG).folds == result.folds).all()


def test_a_reported_target_never_reaches_its_own_prediction() -> None:
    features, targets, groups = linear()
    result = ridge_probe(features, targets, groups, CFG)
    reported = result.folds == 2
    changed = ridge_probe(features, np.where(reported, 1e6, targets), groups, CFG)
    assert (changed.predictions[reported] == result.predictions[reported]).all()
    assert (changed.predictions[~reported] != result.predictions[~reported]).all()


def test_each_fold_is_one_ridge_regression_on_the_others() -> None:
    features, targets, groups = linear(noise=2)
    result = ridge_probe(features, targets, groups, CFG)
    train = result.folds != 1
    scaler = StandardScaler().fit(features[train])
    model = Ridge(alpha=result.strengths[1] * train.sum()).fit(scaler.transform(features[train]), targets[train])
    assert result.predictions[~train] == pytest.approx(model.predict(scaler.transform(features[~train])))


def test_the_strength_is_chosen_on_groups_that_were_not_fitted() -> None:
    groups = np.repeat(np.arange(24), 4)
    draws = np.random.default_rng(4)
    who = draws.standard_normal((24, 40))[groups]  # tells patients apart and says nothing of the target
    result = ridge_probe(who, draws.standard_normal(24)[groups], groups, CFG)
    assert min(result.strengths) >= 1  # folds by sample would choose the lowest


def test_scores_are_those_of_scikit_learn_in_every_resample() -> None:
    _, targets, groups = linear(num_groups=8)
    predictions = targets + np.random.default_rng(3).standard_normal(len(targets))
    found = regression_scores(targets, predictions, groups, num_resamples=50)
    assert found.r2 == pytest.approx(r2_score(targets, predictions))
    assert found.mae == pytest.approx(mean_absolute_error(targets, predictions))
    weights = group_weights(8, 50, 0)[:, np.unique(groups, return_inverse=True)[1]]
    for interval, metric in ((found.r2_interval, r2_score), (found.mae_interval, mean_absolute_error)):
        values = [metric(targets, predictions, sample_weight=weight) for weight in weights]
        assert [interval.low, interval.high] == pytest.approx(np.percentile(values, [2.5, 97.5]))


def test_resamples_of_one_target_have_no_r2() -> None:
    groups = np.repeat(["a", "b"], 5)
    targets = np.repeat([1.0, 2.0], 5)
    found = regression_scores(targets, targets + 0.1, groups)
    assert found.r2_interval.low == pytest.approx(1 - 0.01 / 0.25)
    assert found.mae_interval.high == pytest.approx(0.1)


@pytest.mark.parametrize("val", [True, False], ids=["val", "no val"])
def test_splits_fit_on_train_choose_on_val_and_report_test(val: bool) -> None:
    features, targets, groups = linear(noise=5)
    splits = splits_of(np.unique(groups, return_inverse=True)[1], val)
    train, chosen_on, test = (splits == word for word in ("train", "val", "test"))
    result = ridge_probe(features, targets, groups, CFG, splits)
    np.testing.assert_array_equal(result.reported, test)
    assert np.isnan(result.predictions[~test]).all()
    changed = np.where(test, 7.0, targets)
    np.testing.assert_array_equal(ridge_probe(features, changed, groups, CFG, splits).predictions, result.predictions)
    model = make_pipeline(StandardScaler(), Ridge(alpha=result.strengths[0] * train.sum()))
    model.fit(features[train], targets[train])
    np.testing.assert_allclose(result.predictions[test], model.predict(features[test]))
    if val:
        errors = []
        for strength in CFG.strengths:
            one = make_pipeline(StandardScaler(), Ridge(alpha=strength * train.sum())).fit(
                features[train], targets[train]
            )
            errors.append(((one.predict(features[chosen_on]) - targets[chosen_on]) ** 2).mean())
        assert result.strengths == (CFG.strengths[int(np.argmin(errors))],)


def test_what_is_refused() -> None:
    features, targets, groups = linear()
    with pytest.raises(InputError, match=r"features have shape \(96, 6\), targets \(95,\)"):
        ridge_probe(features, targets[1:], groups, CFG)
    with pytest.raises(InputError, match="1 of 96 targets are not finite"):
        ridge_probe(features, np.where(np.arange(96) == 3, np.inf, targets), groups, CFG)
    with pytest.raises(InputError, match="3 groups for 4 folds; more groups or fewer folds"):
        ridge_probe(features[:12], targets[:12], groups[:12], CFG)
    with pytest.raises(InputError, match="1 folds, 5 inner ones; at least 2"):
        RidgeConfig(folds=1)
    with pytest.raises(InputError, match=r"strengths are \(0\.0,\); positive"):
        RidgeConfig(strengths=(0.0,))
    with pytest.raises(InputError, match="one target only; at least 2"):
        regression_scores(np.ones(96), targets, groups)
    with pytest.raises(InputError, match="one group only; at least 2"):
        regression_scores(targets, targets, np.repeat("a", 96))

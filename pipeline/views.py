"""Saved views of MLflow's pages: which runs and columns somebody wants who reviews pretrainings or probes."""

import json
from dataclasses import dataclass

from train.comparison_runs import STAGE_TAG

_TAG = "mlflow.sharedViewState."  # of an experiment, where MLflow (from 3.17) keeps its saved views
MODE = "workflowType=machine_learning"  # else MLflow opens its pages for language models


@dataclass(frozen=True)
class SavedView:
    """What one view shows.

    Attributes:
        key: in the link.
        name: in the list of views.
        runs: filter of MLflow's search.
        order: column to order by, best first.
        columns: that are shown.

    """

    key: str
    name: str
    runs: str
    order: str
    columns: tuple[str, ...]

    @property
    def tag(self) -> str:
        """Tag of the experiment that holds it."""
        return _TAG + self.key

    def link(self, address: str, experiment_id: str) -> str:
        """Opens it in the pages at an address."""
        return f"{address}/#/experiments/{experiment_id}/runs?{MODE}&viewStateShareKey={self.key}"

    def value(self) -> str:
        """What MLflow stores."""
        state = {
            "searchFilter": self.runs,
            "orderByKey": self.order,
            "orderByAsc": False,
            "selectedColumns": self.columns,
            "columnOrder": self.columns,
        }
        return json.dumps({"name": self.name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


PRETRAINING = SavedView(
    "us-jepa-pretraining", "pretraining health", "params.`objective` != ''", "attributes.start_time",
    (
        "tags.`verdict`", "params.`objective`", "params.`student.arch`", "metrics.`train/loss`", "metrics.`val/loss`",
        "metrics.`health/effective_rank`", "metrics.`health/feature_spread`", "metrics.`masks/failed`",
        "metrics.`perf/images_per_s`",
    ),
)  # fmt: skip
PROBES = SavedView(
    "us-jepa-probes", "probe comparison", f"tags.`{STAGE_TAG}` = 'probe'", "metrics.`probe/macro_f1`",
    (
        "params.`dataset`", "params.`encoder`", "params.`protocols`", "metrics.`probe/macro_f1`",
        "metrics.`probe/macro_f1_low`", "metrics.`probe/macro_f1_high`", "metrics.`probe/auroc`",
        "metrics.`probe/average_precision`", "metrics.`probe/calibration_error`",
    ),
)  # fmt: skip
VIEWS = (PRETRAINING, PROBES)

"""From the cells of a comparison to its results: scores with intervals, paired tests with Holm's correction, headlines.

Nothing here reads frames or weights, so the results are a function of the cells alone.
"""

from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import get_args

import numpy as np

from eval.bootstrap import Bootstrap, bootstrap
from eval.cells import Json
from eval.metrics import Metric, Scores, holm

MAIN_METRICS = {"macro_f1": "macro F1", "auroc": "AUROC"}
MORE_METRICS = {
    "balanced_accuracy": "balanced accuracy",
    "average_precision": "average precision",
    "accuracy": "accuracy",
    "calibration_error": "calibration error",
}
METRICS = MAIN_METRICS | MORE_METRICS
# A resample repeats samples, so its bins err more than those of the set: percentiles would lie above the estimate.
_WITHOUT_INTERVAL = ("calibration_error",)
MAJORITY = "majority class"
_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class SetCells:
    """The cells of one labelled set; inner keys are names of encoders.

    Attributes:
        facts: name, classes, labels and group number of each sample, remarks.
        probes: by protocol, in the order of the table; `probabilities` of the samples `reported` (all where None).
        few_shot: macro F1 by share of the training groups in per cent.
        robustness: macro F1 by kind and severity.
        label_free: measures of the features.
        segmentation: Dice of a linear head on patch tokens, where the set has masks.
        regression: R2 and mean absolute error, where the set has values.
        pictures: PNG, base64.

    """

    facts: Json
    probes: dict[str, dict[str, Json]]
    few_shot: dict[str, Json] = field(default_factory=dict)
    robustness: dict[str, Json] = field(default_factory=dict)
    label_free: dict[str, Json] = field(default_factory=dict)
    segmentation: dict[str, Json] = field(default_factory=dict)
    regression: dict[str, Json] = field(default_factory=dict)
    pictures: dict[str, Json] = field(default_factory=dict)


def results_of(settings: Json, encoders: list[Json], matches: list[tuple[str, str]], sets: list[SetCells]) -> Json:
    """Everything that results.json holds.

    Args:
        settings: of the comparison.
        encoders: name, identity, note, grid and width of each.
        matches: names of student and teacher.
        sets: with the cells of all encoders.

    """
    done = [_set_results(cells) for cells in sets]
    for protocol in settings["protocols"]:
        tables = [one["tables"][protocol] for one in done]
        _correct(tables)
        for one, table in zip(done, tables, strict=True):
            table["headlines"] = [headline(one, table, *match, len(done)) for match in matches]
    return {"settings": settings, "encoders": encoders, "matches": [list(match) for match in matches], "sets": done}


def headline(one: Json, table: Json, student: str, teacher: str, num_sets: int) -> str:
    """One sentence: did the student beat its teacher on this set?"""
    pair = find_pair(table, student, teacher, "macro_f1")
    word = "is not told apart from"
    if pair["p_holm"] < _SIGNIFICANT:
        word = "beats" if pair["difference"] > 0 else "loses to"
    over = f" after Holm's correction over {num_sets} sets" if num_sets > 1 else ""
    return (
        f"{student} {word} its teacher: macro F1 {pair['difference']:+.3f}, 95 % interval {pair['low']:+.3f} to "
        f"{pair['high']:+.3f}, p {pair['p_holm']:.3f}{over}, {scored(one)}."
    )


def scored(one: Json) -> str:
    """How many frames of a set were scored, and of how many patients: without groups, a frame is a group of its own."""
    frames = f"{one['num_reported']} frames"
    return f"{one['num_groups']} patients, {frames}" if one["has_groups"] else f"{frames}, each a group of its own"


def find_pair(table: Json, first: str, second: str, metric: str) -> Json:
    """The paired difference of a metric, first minus second. KeyError where there is none."""
    for pair in table["pairs"]:
        if pair["metric"] == metric and {pair["first"], pair["second"]} == {first, second}:
            return pair if pair["first"] == first else _turned(pair)
    raise KeyError((first, second, metric))


def _turned(pair: Json) -> Json:
    swapped = {"first": pair["second"], "second": pair["first"], "difference": -pair["difference"]}
    return pair | swapped | {"low": -pair["high"], "high": -pair["low"]}


def _set_results(cells: SetCells) -> Json:
    facts = cells.facts
    shown = {key: facts[key] for key in ("name", "sha256", "classes", "splits", "num_refused", "remarks")}
    tables = {protocol: _table(facts, probes) for protocol, probes in cells.probes.items()}
    some = next(iter(next(iter(cells.probes.values())).values()))
    reported = reported_of(some, len(facts["labels"]))
    return shown | {
        "num_samples": len(facts["labels"]),
        "num_reported": len(reported),
        "has_groups": len(set(facts["groups"])) < len(facts["groups"]),
        "num_groups": len(set(np.array(facts["groups"])[reported].tolist())),
        "tables": tables,
        "few_shot": cells.few_shot,
        "robustness": cells.robustness,
        "label_free": cells.label_free,
        "segmentation": cells.segmentation,
        "regression": cells.regression,
    }


def _table(facts: Json, probes: dict[str, Json]) -> Json:
    """Rows in the order of the encoders, and all pairs."""
    reported = reported_of(next(iter(probes.values())), len(facts["labels"]))
    labels, groups = (np.array(facts[key])[reported] for key in ("labels", "groups"))
    probabilities = {name: np.array(cell["probabilities"]) for name, cell in probes.items()}
    resampled = bootstrap(labels, probabilities, groups)
    rows = [
        {
            "encoder": name,
            "scores": scores_with_intervals(resampled, name),
            "predicts_one_class": cell["constant"],
            "chosen": cell["strengths"],
            "num_unconverged": cell["num_unconverged"],
            "confusion": _confusion(labels, probabilities[name]),
            "seeds": cell.get("seeds"),
        }
        for name, cell in probes.items()
    ]
    pairs = [
        _pair(resampled, first, second, metric)
        for first, second in combinations(probabilities, 2)
        for metric in get_args(Metric)
    ]
    return {"rows": rows, "pairs": pairs, "auroc_left_out": resampled.auroc_left_out}


def scores_with_intervals(resampled: Bootstrap, name: str) -> Json:
    """Point score of every metric, with its 95 % interval where that is meaningful."""
    observed: Scores = resampled.observed[name]
    intervals = resampled.intervals[name]
    found: Json = {metric: {"value": getattr(observed, metric)} for metric in METRICS}
    for metric in METRICS:
        if metric not in _WITHOUT_INTERVAL:
            found[metric] |= asdict(getattr(intervals, metric))
    return found


def _pair(resampled: Bootstrap, first: str, second: str, metric: Metric) -> Json:
    found = resampled.paired_difference(first, second, metric)
    return {
        "first": first, "second": second, "metric": metric, "difference": found.observed, "low": found.interval.low,
        "high": found.interval.high, "p": found.p_value,
    }  # fmt: skip


def _correct(tables: list[Json]) -> None:
    """Add p_holm to every pair: its p-values over the sets are one family."""
    for same in zip(*(table["pairs"] for table in tables), strict=True):
        for pair, corrected in zip(same, holm(np.array([pair["p"] for pair in same])), strict=True):
            pair["p_holm"] = float(corrected)


def _confusion(labels: np.ndarray, probabilities: np.ndarray) -> list[list[int]]:
    """Counts, rows the label."""
    num_classes = probabilities.shape[1]
    cells = labels * num_classes + probabilities.argmax(axis=1)
    counts: list[list[int]] = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, -1).tolist()
    return counts


def reported_of(cell: Json, num_samples: int) -> np.ndarray:
    """Numbers of the samples that a probe's cell reports."""
    return np.arange(num_samples) if cell["reported"] is None else np.array(cell["reported"])

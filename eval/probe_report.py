"""report.html of a comparison: headlines, the big table, and for every set its scores, tests, curves and pictures."""

import base64
import re
from dataclasses import replace

from eval.cells import Json
from eval.probe_figures import confusions_png, few_shot_png, intervals_png, robustness_png
from eval.probe_tables import (
    INTERVALS,
    Rows,
    big_rows,
    collapsed,
    measure_rows,
    more_rows,
    pair_rows,
    score_rows,
    verdict,
)
from eval.results import MAIN_METRICS, scored
from eval.robustness import relative_drop
from eval.weighted import BINARY
from sharding.page import Figure, Section, render_page

Pictures = dict[str, dict[str, Json]]  # set, encoder, kind: PNG as base64
_INTERVAL = re.compile(r"\(\d.*?\)|[-+]\S+ to \S+")
_MAX_SHOWN = 4  # encoders with pictures of frames, for a page that can be mailed
_CAPTIONS = {
    "patches": "{}: patch features of frames, their first three principal components as colours; equal colours, alike "
    "features.",
    "neighbours": "{}: a frame, and the frames of other patients nearest to it in its features. Green: the same class.",
    "errors": "{}: the frames whose class the probe found least probable, one of a patient.",
}

_PROTOCOLS = {
    "fair": "Standardised features, L2-logistic regression, its strength chosen on patients that are not scored.",
    "paper": "The US-JEPA paper's: one linear layer on features as they are, one learning rate for every encoder; "
    "scored is the mean of its five seeds' probabilities.",
    "knn": "Votes of the nearest training frames by cosine.",
    "attentive": "One learned query over the patches, and a linear layer.",
}
_MORE = (
    "Average precision: of {}. The calibration error (15 bins) has no interval: a resample repeats frames, and would "
    "always err more."
)
_MEASURES: dict[str, tuple[str, dict[str, str]]] = {
    "label_free": ("Measures of the features that use no label.", {}),
    "segmentation": (
        "A linear head on patch tokens, scored on the pixels of the masks: mean of all classes but the background.",
        {"dice": "Dice"},
    ),
    "regression": ("Ridge regression of the set's values.", {"r2": "R2", "mae": "mean absolute error"}),
}


def probe_page(results: Json, pictures: Pictures) -> str:
    """The whole page; it needs no other file.

    Args:
        results: of eval/results.py.
        pictures: of frames, to be shown only where the set may be.

    """
    protocols = results["settings"]["protocols"]
    sections = [_headlines(results, protocols[0])]
    sections += [_big_table(results, protocol, metric) for protocol in protocols for metric in MAIN_METRICS]
    for one in results["sets"]:
        sections += _of_set(results, one, pictures.get(one["name"], {}))
    sections.append(_encoders(results))
    lead = (
        f"Frozen encoders, probed on labelled sets. {INTERVALS} Differences: in pairs, over the same resamples; "
        "p-values: Holm's correction over the sets."
    )
    return render_page(
        "Probe comparison", lead, [replace(one, table=_for_narrow_screens(one.table)) for one in sections]
    )


def _for_narrow_screens(table: Rows) -> Rows:
    """Intervals stay in one piece, so that a cell has at most two lines."""
    return tuple(
        tuple(_INTERVAL.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), cell) for cell in row)
        for row in table
    )


def _headlines(results: Json, protocol: str) -> Section:
    lines = [f"{one['name']}: {verdict(one['tables'][protocol])}" for one in results["sets"]]
    return Section("Did the student beat its teacher?", "\n".join(lines))


def _big_table(results: Json, protocol: str, metric: str) -> Section:
    lines = []
    if metric == "macro_f1":
        sentences = collapsed(results, protocol)
        marks = ["An asterisk marks a probe that predicts one class."] if sentences else []
        lines = [_PROTOCOLS[protocol], *marks, *sentences]
    title = f"All sets, protocol {protocol}: {MAIN_METRICS[metric]}"
    return Section(title, "\n".join(lines), table=big_rows(results, protocol, metric))


def _of_set(results: Json, one: Json, pictures: dict[str, Json]) -> list[Section]:
    name = one["name"]
    sections = [_facts(one)]
    for protocol, table in one["tables"].items():
        plots = (
            Figure(intervals_png(table), f"{name}, {protocol}: macro F1 and its interval."),
            Figure(confusions_png(table, one["classes"]), f"{name}, {protocol}: confusion matrices, counts of frames."),
        )
        sections.append(Section(f"{name}: scores, {protocol}", verdict(table), score_rows(table), plots))
        sections.append(
            Section(f"{name}: more scores, {protocol}", _MORE.format(_positive(one["classes"])), more_rows(table))
        )
        sections += [
            Section(f"{name}: differences, {protocol}", table=pair_rows(table, first))
            for first in _compared(results, table)
        ]
    sections += _curves(one)
    shown = _shown(results, next(iter(one["tables"].values())))
    figures = _pictures({encoder: cell for encoder, cell in pictures.items() if encoder in shown})
    return sections + ([Section(f"{name}: frames", figures=figures)] if figures else [])


def _compared(results: Json, table: Json) -> list[str]:
    """Every student, else the encoder of the best score: the ones that are shown beside all others."""
    best = max(table["rows"], key=lambda row: row["scores"]["macro_f1"]["value"])
    return [student for student, _ in results["matches"]] or [best["encoder"]]


def _shown(results: Json, table: Json) -> list[str]:
    """Encoders whose frames are on the page: students, their teachers, and of the others the best."""
    ours = [name for match in results["matches"] for name in match]
    ranked = sorted(table["rows"], key=lambda row: -row["scores"]["macro_f1"]["value"])
    return list(dict.fromkeys([*ours, *(row["encoder"] for row in ranked)]))[:_MAX_SHOWN]


def _facts(one: Json) -> Section:
    lines = [
        f"{one['num_samples']} frames; scored: {scored(one)}; classes: {', '.join(one['classes'])}.",
        _use_of(one),
        *one["remarks"],
    ]
    if one["num_refused"]:
        lines.append(f"{one['num_refused']} recordings could not be read and are not in the tables.")
    return Section(one["name"], "\n".join(lines))


def _positive(classes: list[str]) -> str:
    """What average precision is of; see `scores` in eval/metrics.py."""
    return classes[1] if len(classes) == BINARY else "each class against the others, the mean"


def _use_of(one: Json) -> str:
    """Which frames served what."""
    splits, whole = one["splits"], "patient" if one["has_groups"] else "frame"
    if splits is None:
        return f"Cross-validated: a {whole} is scored by probes of other {whole}s. The intervals are too narrow."
    chosen = f"chosen on {splits['val']} (val)" if "val" in splits else "chosen on a part of these by group"
    return f"Published splits: fitted on {splits['train']} frames (train), {chosen}, scored on {splits['test']} (test)."


def _curves(one: Json) -> list[Section]:
    name, sections = one["name"], []
    if one["few_shot"]:
        whole = "patients" if one["has_groups"] else "frames"
        caption = (
            f"Macro F1 of the fair probe with part of the training {whole}, mean of five draws of them; shaded: 95 % "
            f"interval of this mean over scored {whole}; bars: standard deviation of the draws. Where a class has too "
            "few to choose the strength with, C is 1."
        )
        figure = Figure(few_shot_png(one["few_shot"], whole), caption)
        sections.append(Section(f"{name}: few shots", figures=(figure,)))
    if one["robustness"]:
        caption = "Probes of clean frames on degraded ones: drop of macro F1, relative to that of clean frames."
        drops = {encoder: relative_drops(cell) for encoder, cell in one["robustness"].items()}
        sections.append(Section(f"{name}: robustness", figures=(Figure(robustness_png(drops), caption),)))
    for what, (text, names) in _MEASURES.items():
        if one[what]:
            known = names or {key: key.replace("_", " ") for key in next(iter(one[what].values()))}
            sections.append(Section(f"{name}: {what.replace('_', '-')}", text, table=measure_rows(one[what], known)))
    return sections


def relative_drops(cell: Json) -> dict[str, list[float]]:
    """By kind, the share of the clean macro F1 that is lost at each severity."""
    return {kind: [relative_drop(cell["clean"], one) for one in values] for kind, values in cell["degraded"].items()}


def _pictures(pictures: dict[str, Json]) -> tuple[Figure, ...]:
    return tuple(
        Figure(base64.b64decode(cell[kind]), caption.format(encoder))
        for kind, caption in _CAPTIONS.items()
        for encoder, cell in pictures.items()
        if cell[kind]
    )


def _encoders(results: Json) -> Section:
    rows = [
        (one["name"], one["note"], f"{one['grid']} x {one['grid']}", str(one["width"]), one["identity"][:12])
        for one in results["encoders"]
    ]
    header = ("encoder", "note", "patches", "width", "sha256 of weights and preprocessing")
    return Section("Encoders", table=(header, *rows))

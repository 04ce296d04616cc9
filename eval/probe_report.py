"""report.html of a comparison: headlines, the big table, and for every set its scores, tests, curves and pictures."""

import base64

from eval.cells import Json
from eval.probe_figures import confusions_png, few_shot_png, intervals_png, robustness_png
from eval.probe_tables import Rows, big_rows, collapsed, pair_rows, score_rows, verdict
from eval.robustness import relative_drop
from sharding.page import Figure, Section, render_page

Pictures = dict[str, dict[str, Json]]  # set, encoder, kind: PNG as base64
_MAX_SHOWN = 4  # encoders with pictures of frames, for a page that can be mailed
_CAPTIONS = {
    "patches": "{}: patch features of frames, their first three principal components as colours; equal colours, alike "
    "features.",
    "neighbours": "{}: a frame, and the frames of other patients nearest to it in its features. Green: the same class.",
    "errors": "{}: the frames whose class the probe found least probable, one of a patient.",
}


def probe_page(results: Json, pictures: Pictures) -> str:
    """The whole page; it needs no other file.

    Args:
        results: of eval/results.py.
        pictures: of frames, to be shown only where the set may be.

    """
    protocols = results["settings"]["protocols"]
    sections = [_headlines(results, protocols[0])]
    sections += [_big_table(results, protocol) for protocol in protocols]
    for one in results["sets"]:
        sections += _of_set(results, one, pictures.get(one["name"], {}))
    sections.append(_encoders(results))
    lead = (
        "Frozen encoders, probed on labelled sets. Intervals: 95 %, by bootstrap over groups (patients); differences: "
        "in pairs, over the same resamples; p-values: Holm's correction over the sets."
    )
    return render_page("Probe comparison", lead, sections)


def _headlines(results: Json, protocol: str) -> Section:
    lines = [f"{one['name']}: {verdict(one['tables'][protocol])}" for one in results["sets"]]
    return Section("Did the student beat its teacher?", "\n".join(lines))


def _big_table(results: Json, protocol: str) -> Section:
    lines = collapsed(results, protocol)
    marks = " An asterisk marks a probe that predicts one class." if lines else ""
    text = f"Macro F1 with its interval.{marks}"
    return Section(f"All sets, protocol {protocol}", "\n".join([text, *lines]), table=big_rows(results, protocol))


def _of_set(results: Json, one: Json, pictures: dict[str, Json]) -> list[Section]:
    name = one["name"]
    sections = [_facts(one)]
    for protocol, table in one["tables"].items():
        plots = (
            Figure(intervals_png(table), f"{name}, {protocol}: macro F1 and its interval."),
            Figure(confusions_png(table, one["classes"]), f"{name}, {protocol}: confusion matrices, counts of frames."),
        )
        sections.append(Section(f"{name}: scores, {protocol}", verdict(table), score_rows(table), plots))
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
        f"{one['num_samples']} frames, {one['num_reported']} of them scored, of {one['num_groups']} groups (patients); "
        f"classes: {', '.join(one['classes'])}.",
        *one["remarks"],
    ]
    if one["num_refused"]:
        lines.append(f"{one['num_refused']} recordings could not be read and are not in the tables.")
    return Section(one["name"], "\n".join(lines))


def _curves(one: Json) -> list[Section]:
    name, sections = one["name"], []
    if one["few_shot"]:
        caption = "Macro F1 with part of the training patients; shaded: the interval."
        sections.append(Section(f"{name}: few shots", figures=(Figure(few_shot_png(one["few_shot"]), caption),)))
    if one["robustness"]:
        caption = "Probes of clean frames on degraded ones: drop of macro F1, relative to that of clean frames."
        drops = {encoder: relative_drops(cell) for encoder, cell in one["robustness"].items()}
        sections.append(Section(f"{name}: robustness", figures=(Figure(robustness_png(drops), caption),)))
    for what, text in (
        ("label_free", "Measures of the features that use no label."),
        ("segmentation", "A linear head on patch tokens."),
    ):
        if one[what]:
            sections.append(Section(f"{name}: {what.replace('_', '-')}", text, table=_measures(one[what])))
    return sections


def relative_drops(cell: Json) -> dict[str, list[float]]:
    """By kind, the share of the clean macro F1 that is lost at each severity."""
    return {kind: [relative_drop(cell["clean"], one) for one in values] for kind, values in cell["degraded"].items()}


def _measures(by_encoder: dict[str, Json]) -> Rows:
    names = list(next(iter(by_encoder.values())))
    header = ("encoder", *(name.replace("_", " ") for name in names))
    return (header, *((encoder, *(f"{cell[name]:.3f}" for name in names)) for encoder, cell in by_encoder.items()))


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

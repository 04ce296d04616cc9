"""Results of a comparison as text: rows for a page, Markdown and LaTeX."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.cells import Json
from eval.results import MAIN_METRICS, MAJORITY, MORE_METRICS
from sharding.recording import InputError

Rows = tuple[tuple[str, ...], ...]
INTERVALS = (
    "In brackets: 95 % interval by bootstrap over groups (patients). That of a cross-validated set is too narrow, "
    "because it holds the fitted probes fixed: with shuffled labels it held an AUROC of .5 in about 85 % of 40 sets, "
    "where 95 % should; with published splits it did in 92.5 to 95 %."
)
_NO_STUDENT = "No student beside its teacher among the encoders."


@dataclass(frozen=True)
class ProbeTable:
    """One set and protocol, to print or to put on a page.

    Attributes:
        name: of the set.
        protocol: of the probe.
        classes: names.
        num_refused: recordings that could not be read.
        verdict: did the student beat its teacher?
        rows: header first.

    """

    name: str
    protocol: str
    classes: tuple[str, ...]
    num_refused: int
    verdict: str
    rows: Rows


def probe_tables(results: Json) -> list[ProbeTable]:
    """One table per set and protocol."""
    return [
        ProbeTable(one["name"], protocol, tuple(one["classes"]), one["num_refused"], verdict(table), score_rows(table))
        for one in results["sets"]
        for protocol, table in one["tables"].items()
    ]


def load_tables(folder: Path) -> list[ProbeTable]:
    """Tables of a finished comparison.

    Raises:
        InputError: no results.json in the folder.

    """
    path = folder / "results.json"
    if not path.is_file():
        raise InputError(f"probe {folder}: no results.json in it; give the folder that `us-jepa probe` printed")
    return probe_tables(json.loads(path.read_text()))


def verdict(table: Json) -> str:
    """The headlines of a set as one text."""
    return " ".join(table["headlines"]) or _NO_STUDENT


def score_rows(table: Json) -> Rows:
    """Every encoder with macro F1 and AUROC, header first; with macro F1 over seeds where the probe has several."""
    header = ["encoder", *MAIN_METRICS.values()]
    rows = [
        [shown_name(row), *(with_interval(row["scores"][metric]) for metric in MAIN_METRICS)] for row in table["rows"]
    ]
    counts = [row["seeds"]["number"] for row in table["rows"] if row["seeds"]]
    if counts:
        header.append(f"macro F1, mean and sd of {counts[0]} seeds")
        for row, shown in zip(table["rows"], rows, strict=True):
            seeds = row["seeds"]
            shown.append(f"{seeds['macro_f1']:.3f} ± {seeds['deviation']:.3f}" if seeds else "")
    return (tuple(header), *map(tuple, rows))


def more_rows(table: Json) -> Rows:
    """Every encoder with the other metrics, header first."""
    rows = [(row["encoder"], *(with_interval(row["scores"][name]) for name in MORE_METRICS)) for row in table["rows"]]
    return (("encoder", *MORE_METRICS.values()), *rows)


def measure_rows(by_encoder: dict[str, Json], names: dict[str, str]) -> Rows:
    """Some encoders with some measures, header first.

    Args:
        by_encoder: of each, its measures; numbers, or scores with an interval.
        names: of the measures, with what the header says.

    """
    rows = [(encoder, *(_shown(cell[name]) for name in names)) for encoder, cell in by_encoder.items()]
    return (("encoder", *names.values()), *rows)


def _shown(value: float | Json) -> str:
    return with_interval(value) if isinstance(value, dict) else f"{value:.3f}"


def big_rows(results: Json, protocol: str, metric: str = "macro_f1") -> Rows:
    """Encoders by sets with intervals, and the mean over sets, header first."""
    tables = [one["tables"][protocol] for one in results["sets"]]
    header = ("encoder", *(one["name"] for one in results["sets"]), *(("mean",) if len(tables) > 1 else ()))
    rows = [header]
    for same in zip(*(table["rows"] for table in tables), strict=True):
        name = same[0]["encoder"]
        cells = [with_interval(row["scores"][metric]) + _mark(row) for row in same]
        if len(tables) > 1:
            cells.append(f"{np.mean([row['scores'][metric]['value'] for row in same]):.3f}")
        rows.append((name, *cells))
    return tuple(rows)


def _mark(row: Json) -> str:
    return " *" if row["predicts_one_class"] and row["encoder"] != MAJORITY else ""


def collapsed(results: Json, protocol: str) -> list[str]:
    """Sentences on probes that predict one class whatever the frame shows."""
    return [
        f"On {one['name']} the {protocol} probe of {row['encoder']} predicts one class for every frame: its score is "
        "that of the majority class, and says nothing of the encoder."
        for one in results["sets"]
        for row in one["tables"][protocol]["rows"]
        if _mark(row)
    ]


def pair_rows(table: Json, first: str) -> Rows:
    """Paired differences of one encoder to all others, header first."""
    rows = [("macro F1 of " + first + " minus that of", "difference", "95 % interval", "p", "p, Holm over sets")]
    for pair in table["pairs"]:
        if pair["metric"] != "macro_f1" or first not in (pair["first"], pair["second"]):
            continue
        sign, other = (1, pair["second"]) if pair["first"] == first else (-1, pair["first"])
        low, high = sorted((sign * pair["low"], sign * pair["high"]))
        rows.append((
            other, f"{sign * pair['difference']:+.3f}", f"{low:+.3f} to {high:+.3f}",
            f"{pair['p']:.3f}", f"{pair['p_holm']:.3f}",
        ))  # fmt: skip
    return tuple(rows)


def with_interval(score: Json) -> str:
    """A score and its interval where it has one, such as `0.710 (0.660 to 0.750)`."""
    shown = f"{score['value']:.3f}"
    return f"{shown} ({score['low']:.3f} to {score['high']:.3f})" if "low" in score else shown


def shown_name(row: Json) -> str:
    """Name of an encoder, and in words when its probe is of no use."""
    return str(row["encoder"]) + (" (predicts one class)" if _mark(row) else "")


def markdown(results: Json) -> str:
    """table.md: the big table, and one of every set."""
    parts = []
    for protocol in results["settings"]["protocols"]:
        for metric, named in MAIN_METRICS.items():
            parts += [
                f"## {_capital(named)}, protocol `{protocol}`",
                _markdown_table(big_rows(results, protocol, metric)),
            ]
        parts += ["\\* " + sentence for sentence in collapsed(results, protocol)]
        for one in results["sets"]:
            table = one["tables"][protocol]
            parts += [f"### {one['name']}, protocol `{protocol}`", verdict(table)]
            parts += [_markdown_table(score_rows(table)), _markdown_table(more_rows(table))]
    parts.append(INTERVALS)
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: Rows) -> str:
    header, *body = rows
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ("---",) * len(header), *body))


def latex(results: Json) -> str:
    """table.tex: the big tables, for booktabs."""
    return "\n".join(
        _latex_table(big_rows(results, protocol, metric), protocol, named)
        for protocol in results["settings"]["protocols"]
        for metric, named in MAIN_METRICS.items()
    )


def _latex_table(rows: Rows, protocol: str, metric: str) -> str:
    header, *body = rows
    lines = [_latex_row(header), "\\midrule", *(_latex_row(row) for row in body)]
    columns = "l" + "c" * (len(header) - 1)
    caption = (
        f"{_capital(metric)} of the {_escaped(protocol)} probe of frozen features, with 95\\,\\% intervals by "
        "bootstrap over groups. An asterisk marks a probe that predicts one class."
    )
    return "\n".join([
        "\\begin{table}", f"\\caption{{{caption}}}", f"\\begin{{tabular}}{{{columns}}}", "\\toprule", *lines,
        "\\bottomrule", "\\end{tabular}", "\\end{table}", "",
    ])  # fmt: skip


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_escaped, cells)) + " \\\\"


def _escaped(text: str) -> str:
    special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    return "".join(special.get(char, f"\\{char}" if char in "&%$#_{}" else char) for char in text)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]

"""Curves and matrices of a comparison as PNG."""

import io
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Plot
from PIL import Image

from eval.cells import Json
from eval.results import METRICS

_WIDTH, _DPI = 5.5, 140  # inches: letters stay readable on a phone
_COLOURS = 192
_MATRICES, _TITLE_LETTERS = 2, 30  # side by side, and in a line of their titles
_SOME_CLASSES, _COUNT_POINTS = 4, (9, 6)  # counts are larger where there are few
_MANY_CLASSES = 12  # above, numbers in a confusion matrix are unreadable


def intervals_png(table: Json, metric: str = "macro_f1") -> bytes:
    """Point score and interval of every encoder, one line each."""
    rows = table["rows"][::-1]
    values, low, high = (np.array([row["scores"][metric][key] for row in rows]) for key in ("value", "low", "high"))
    plot, axes = _plot(0.8 + 0.32 * len(rows))
    axes.errorbar(values, np.arange(len(rows)), xerr=np.abs([values - low, high - values]), fmt="o", capsize=3)
    axes.set(yticks=np.arange(len(rows)), yticklabels=[row["encoder"] for row in rows], xlabel=METRICS[metric])
    axes.grid(axis="x", alpha=0.3)
    return png(plot)


def few_shot_png(curves: dict[str, Json], whole: str) -> bytes:
    """Macro F1 by share of the training patients, or what `whole` names.

    Curves are {encoder: {share in per cent: {value, low, high, deviation}}}.
    """
    plot, axes = _plot(3.2)
    for name, curve in curves.items():
        shares = sorted(curve, key=float)
        x = np.array([float(share) for share in shares])
        value, low, high = (np.array([curve[share][key] for share in shares]) for key in ("value", "low", "high"))
        deviation = [curve[share]["deviation"] for share in shares]
        line = axes.errorbar(x, value, deviation, marker="o", capsize=2, label=name)[0]
        axes.fill_between(x, low, high, alpha=0.12, color=line.get_color())
    axes.set(xscale="log", xlabel=f"% of the training {whole}", ylabel=METRICS["macro_f1"])
    axes.set_xticks(x, [f"{share:g}" for share in x])
    axes.minorticks_off()
    _legend(axes, len(curves))
    return png(plot)


def robustness_png(drops: dict[str, Json]) -> bytes:
    """Relative drop of macro F1 by severity, one panel per kind; {encoder: {kind: [drop at severity 1, 2, 3]}}."""
    kinds = list(next(iter(drops.values())))
    columns = min(3, len(kinds))
    rows = -(-len(kinds) // columns)
    plot = Plot(figsize=(_WIDTH, 0.8 + 2.1 * rows), layout="constrained")
    panels = plot.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels[len(kinds) :]:
        axes.set_axis_off()
    for axes, kind in zip(panels, kinds, strict=False):
        for name, by_kind in drops.items():
            axes.plot(
                range(len(by_kind[kind]) + 1), [0, *(100 * drop for drop in by_kind[kind])], marker=".", label=name
            )
        axes.set_title(kind, fontsize=9)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("drop of macro F1, %")
    plot.supxlabel("severity", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    plot.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return png(plot)


def confusions_png(table: Json, classes: list[str]) -> bytes:
    """Confusion matrices of all encoders: shares of each true class, with counts where there is room."""
    rows = table["rows"]
    lines = -(-len(rows) // _MATRICES)
    plot = Plot(figsize=(_WIDTH, 2.6 * lines), layout="constrained")
    panels = plot.subplots(lines, _MATRICES, squeeze=False).ravel()
    for axes in panels[len(rows) :]:
        axes.set_axis_off()
    for axes, row in zip(panels, rows, strict=False):
        _confusion(axes, np.array(row["confusion"]), classes)
        axes.set_title(fill(row["encoder"], _TITLE_LETTERS), fontsize=9)
    plot.supxlabel("predicted", fontsize=9)
    plot.supylabel("true", fontsize=9)
    return png(plot)


def _confusion(axes: Axes, counts: np.ndarray, classes: list[str]) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    named = len(classes) <= _MANY_CLASSES
    ticks = range(len(classes)) if named else []
    names = [name if len(name) <= _MANY_CLASSES else name[: _MANY_CLASSES - 1] + "…" for name in classes]
    axes.set_xticks(ticks, names if named else [], rotation=45, ha="right", fontsize=8)
    axes.set_yticks(ticks, names if named else [], fontsize=8)
    if named:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"  # noqa: PLR2004 - half of the scale
            axes.text(
                column,
                row,
                str(count),
                ha="center",
                va="center",
                fontsize=_COUNT_POINTS[len(classes) > _SOME_CLASSES],
                color=colour,
            )


def _plot(height: float) -> tuple[Plot, Axes]:
    plot = Plot(figsize=(_WIDTH, height), layout="constrained")
    return plot, plot.add_subplot()


def _legend(axes: Axes, num_lines: int) -> None:
    axes.legend(frameon=False, fontsize=8, ncols=1 + num_lines // 7)


def png(plot: Plot) -> bytes:
    """PNG of a plot; the same plot gives the same bytes."""
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=_DPI)
    return _smaller(buffer.getvalue())


def _smaller(data: bytes) -> bytes:
    """A PNG with a palette: half of the bytes, and hardly a difference to the eye where most of it is grey or white."""
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture.quantize(_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        buffer, format="png", optimize=True
    )
    return buffer.getvalue()

"""The fair probe beside two scikit-learn loops and the paper's loop, in one run: `make bench-probe`.

    python -m pipeline.bench.probe [--samples 5000] [--width 768] [--fits 8] [--folder build/bench-probe]

The grid is 20 regularisation strengths x 5 seeds x 5 folds. A cell of it, one seed and one fold, holds a strength
chosen on an inner split by group and a fit on all train rows. The fair probe runs every cell. The loops repeat much of
the same, so those of scikit-learn run one cell (every fit cold with its default solver; and, the fair opponent for two
classes, `newton-cholesky` along a warm path of strengths), that of the paper a few fits of its 500, spread over
strengths, seeds and folds (its strength is the weight decay; every fit is 150 epochs with patience 15); all are scaled
to the grid, and what was measured is printed. scikit-learn is stopped after 2,000 iterations, which at the weakest
strengths is in its favour. CPU time of the process (OMP_NUM_THREADS=1), so that neighbours disturb little; the ratios
are the gates.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from eval.bootstrap import paired_bootstrap
from eval.paper_probe import PAPER, fit_layer
from eval.partition import Partition, ProbeConfig, fold_of_each, inner_validation, partitions
from eval.probe import fit_and_predict
from eval.weighted import macro_f1
from pipeline.bench.timing import Gate, machine_facts

_STRENGTHS = tuple(float(c) for c in np.logspace(-5, 3, 20))
_SEEDS, _FOLDS = 5, 5
_GROUPS, _ULTRABENCH = 1141, 3705  # groups and samples of the bootstrap: about the largest set with patients
_RESAMPLES = 10_000
_RATIOS = {"paper": 20.0, "scikit-learn": 3.0, "newton-cholesky": 1.0}


@dataclass(frozen=True)
class Data:
    """Features (n, D) float32 whose spectrum decays as an encoder's does, labels (n,) of two classes, groups (n,)."""

    features: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    @classmethod
    def drawn(cls, num_samples: int, width: int) -> "Data":
        """From a fixed seed."""
        rng = np.random.default_rng(0)
        hidden = rng.normal(size=(num_samples, width)) * np.arange(1, width + 1) ** -0.8
        logits = 1.5 * hidden @ rng.normal(size=width) + rng.logistic(size=num_samples)
        features = hidden @ rng.normal(size=(width, width)) / np.sqrt(width)
        groups = rng.integers(num_samples // 4, size=num_samples)
        return cls(features.astype(np.float32), (logits > 0).astype(np.int64), groups)

    def cells(self) -> list[tuple[ProbeConfig, Partition]]:
        """Every seed and fold."""
        cells = []
        for seed in range(_SEEDS):
            cfg = ProbeConfig(folds=_FOLDS, strengths=_STRENGTHS, seed=seed)
            cells += [(cfg, part) for part in partitions(fold_of_each(self.labels, self.groups, cfg), None)]
        return cells


@dataclass(frozen=True)
class Measured:
    """What a way took.

    Attributes:
        seconds: of what was run, CPU time.
        share: of the grid that was run.
        macro_f1: mean over what was run, of the reported fold.

    """

    seconds: float
    share: float
    macro_f1: float

    @property
    def grid(self) -> float:
        """Seconds of the whole grid."""
        return self.seconds / self.share


def fair(data: Data, cells: list[tuple[ProbeConfig, Partition]]) -> Measured:
    """All cells."""
    started, found = time.process_time(), []
    for cfg, part in cells:
        train = part.train
        chances = fit_and_predict(
            data.features[train], data.labels[train], data.groups[train], data.features[part.reported], cfg
        )[1]
        found.append(macro_f1(data.labels[part.reported], chances))
    return Measured(time.process_time() - started, 1.0, float(np.mean(found)))


def loop(data: Data, cells: list[tuple[ProbeConfig, Partition]], **settings: str | bool) -> Measured:
    """The first cell with scikit-learn's defaults but for the tolerance, which is the fair probe's, and the settings.

    Args:
        data: whose features are fitted.
        cells: of the grid.
        settings: of LogisticRegression; with `warm_start`, a fit begins where that of the strength before it ended.

    """
    cfg, part = cells[0]
    started = time.process_time()
    features, labels = data.features.astype(np.float64), data.labels
    inner = inner_validation(labels[part.train], data.groups[part.train], cfg)
    fitted, val = part.train[~inner], part.train[inner]

    model = LogisticRegression(tol=cfg.tolerance, max_iter=cfg.max_iterations, **settings)

    def chances(strength: float, rows: np.ndarray, asked: np.ndarray) -> np.ndarray:
        scaler = StandardScaler().fit(features[rows])
        model.set_params(C=strength).fit(scaler.transform(features[rows]), labels[rows])
        return np.asarray(model.predict_proba(scaler.transform(features[asked])))

    found = [macro_f1(labels[val], chances(strength, fitted, val)) for strength in cfg.strengths]
    best = cfg.strengths[int(np.argmax(found))]
    score = macro_f1(labels[part.reported], chances(best, part.train, part.reported))
    return Measured(time.process_time() - started, 1 / len(cells), score)


def paper(data: Data, cells: list[tuple[ProbeConfig, Partition]], num_fits: int) -> Measured:
    """Some fits, spread over the grid; the refit of the chosen one is not even counted."""
    started, found = time.process_time(), []
    spread = np.linspace(0, 1, num_fits)
    for number, place in enumerate((spread * (len(_STRENGTHS) - 1)).round().astype(int)):
        strength, (cfg, part) = _STRENGTHS[place], cells[number * (_FOLDS + 1) % len(cells)]
        inner = inner_validation(data.labels[part.train], data.groups[part.train], cfg)
        # C sums the loss over samples and AdamW averages it: the weight decay of the same strength is 1 / (n C).
        descent = replace(PAPER, weight_decay=1 / (len(part.train) * strength))
        halves = Partition(part.train[~inner], part.train[inner], part.reported)
        chances = fit_layer(data.features, data.labels, halves, descent, cfg.seed)[1]
        found.append(macro_f1(data.labels[part.reported], chances))
    return Measured(time.process_time() - started, num_fits / (len(_STRENGTHS) * len(cells)), float(np.mean(found)))


def bootstrap_seconds() -> float:
    """Wall time of a paired difference of macro F1 in 10,000 resamples."""
    rng = np.random.default_rng(0)
    groups = np.concatenate([np.arange(_GROUPS), rng.integers(_GROUPS, size=_ULTRABENCH - _GROUPS)])
    labels, chances = groups % 3 // 2, []
    for gap in (0.5, 0.6):
        positive = 1 / (1 + np.exp(-rng.normal(size=_ULTRABENCH) - gap * labels))
        chances.append(np.stack([1 - positive, positive], axis=1))
    started = time.perf_counter()
    paired_bootstrap(labels, chances[0], chances[1], groups, "macro_f1", _RESAMPLES)
    return time.perf_counter() - started


def run(samples: int, width: int, num_fits: int) -> tuple[dict[str, Measured], list[Gate]]:
    """Measure all ways and what their ratios must keep."""
    data = Data.drawn(samples, width)
    cells = data.cells()
    ways: dict[str, Callable[[], Measured]] = {
        "fair": lambda: fair(data, cells),
        "scikit-learn": lambda: loop(data, cells),
        "newton-cholesky": lambda: loop(data, cells, solver="newton-cholesky", warm_start=True),
        "paper": lambda: paper(data, cells, num_fits),
    }
    fair(data, cells[:1])  # warms up
    measured = {name: way() for name, way in ways.items()}
    gates = [
        Gate(f"fair: times faster than {name}", measured[name].grid / measured["fair"].grid, limit)
        for name, limit in _RATIOS.items()
    ]
    seconds = bootstrap_seconds()
    return measured, [*gates, Gate("seconds of 10,000 paired bootstraps by group", seconds, 1, at_most=True)]


def main(arguments: list[str] | None = None) -> int:
    """Print the table and the gates; 1 where one is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--fits", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-probe"))
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    measured, gates = run(args.samples, args.width, args.fits)
    print(f"{len(_STRENGTHS)} strengths x {_SEEDS} seeds x {_FOLDS} folds, {args.samples} x {args.width}, one thread")
    print(f"  {'':<16}{'measured s':>12}{'of the grid':>14}{'grid s':>10}{'macro F1':>10}")
    for name, row in measured.items():
        print(f"  {name:<16}{row.seconds:>12.1f}{row.share:>13.1%} {row.grid:>10.0f}{row.macro_f1:>10.3f}")
    print(*gates, sep="\n")
    args.folder.mkdir(parents=True, exist_ok=True)
    facts = {"machine": machine_facts(), "measured": {name: asdict(row) for name, row in measured.items()}}
    (args.folder / "probe.json").write_text(json.dumps(facts, indent=1, default=str))
    return 0 if all(gate.passed for gate in gates) else 1


if __name__ == "__main__":
    sys.exit(main())

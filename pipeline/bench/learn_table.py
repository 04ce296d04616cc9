"""The table of `make learn`: AUC of every row, and what it gains over random init and over its teacher."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eval.bootstrap import Bootstrap, bootstrap
from eval.datasets import LabelledSet
from eval.probe import ProbeConfig, linear_probe
from pipeline.bench.learn_arms import EXTERNAL, Arm, Trial, cpu_seconds, last_metrics

FLOOR = "random init"
EXTERNAL_ROW = "EfficientNet-Lite0"
_HEADER = ("features", "steps", "CPU min", "AUC", "95 % interval", "over random init", "over its teacher")
_LOGGED = ("val/loss", "health/effective_rank")


@dataclass(frozen=True)
class Row:
    """What is probed.

    Attributes:
        name: unique.
        teacher: another row's name, or none.
        steps: of its pretraining, its teacher's not included.
        minutes: of CPU, likewise.
        val_loss: at the end.
        effective_rank: of its features of held-out frames, at the end.

    """

    name: str
    teacher: str = ""
    steps: int = 0
    minutes: float = 0.0
    val_loss: float | None = None
    effective_rank: float | None = None

    @classmethod
    def of(cls, trial: Trial, arm: Arm) -> "Row":
        """Of a finished arm."""
        run_dir = trial.folder / arm.name
        logged = last_metrics(run_dir, _LOGGED)
        teacher = EXTERNAL_ROW if arm.teacher == EXTERNAL else arm.teacher
        steps = trial.config(arm).optim.steps
        return cls(arm.name, teacher, steps, cpu_seconds(run_dir) / 60, *(logged.get(name) for name in _LOGGED))


@dataclass(frozen=True)
class Table:
    """What the probe found.

    Attributes:
        rows: in order.
        resampled: by name of the row.
        num_infants: that were resampled.

    """

    rows: tuple[Row, ...]
    resampled: Bootstrap
    num_infants: int

    def markdown(self) -> str:
        """One line per row."""
        lines = [_HEADER, ("---",) * len(_HEADER), *(self._cells(row) for row in self.rows)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def _cells(self, row: Row) -> tuple[str, ...]:
        interval = self.resampled.intervals[row.name].auroc
        return (
            row.name,
            str(row.steps or ""),
            f"{row.minutes:.1f}" if row.minutes else "",
            f"{self.resampled.observed[row.name].auroc:.3f}",
            f"{interval.low:.3f} to {interval.high:.3f}",
            self._gain(row.name, FLOOR),
            self._gain(row.name, row.teacher),
        )

    def _gain(self, name: str, over: str) -> str:
        if name == over or over not in self.resampled.observed:
            return ""
        gain = self.resampled.paired_difference(name, over, "auroc")
        return f"{gain.observed:+.3f} ({gain.interval.low:+.3f} to {gain.interval.high:+.3f})"

    def facts(self) -> list[dict[str, Any]]:
        """The same as plain values, with held-out loss and effective rank."""
        return [
            asdict(row)
            | {
                "auroc": self.resampled.observed[row.name].auroc,
                "interval": asdict(self.resampled.intervals[row.name].auroc),
                "over_random_init": self._gain(row.name, FLOOR),
                "over_teacher": self._gain(row.name, row.teacher),
            }
            for row in self.rows
        ]


def probe_all(features: dict[Row, np.ndarray], dataset: LabelledSet, probe: ProbeConfig) -> Table:
    """Probe all rows on the same folds and resample all with the same infants."""
    probabilities = {
        row.name: linear_probe(found, dataset.labels, dataset.groups, probe).probabilities
        for row, found in features.items()
    }
    resampled = bootstrap(dataset.labels, probabilities, dataset.groups)
    return Table(tuple(features), resampled, len(np.unique(dataset.groups)))

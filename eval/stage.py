"""The probe stage: random init, teacher and student on the same folds, and whether the student beat its teacher."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.datasets import LabelledSet, load_labelled_set
from eval.encoders import FrozenEncoder, open_encoder
from eval.features import pooled
from eval.metrics import Bootstrap, Scores, bootstrap, scores
from eval.probe import ProbeConfig, linear_probe, majority_probabilities
from sharding.recording import InputError
from train.config import PretrainConfig
from train.config_file import load_config
from train.tracking import recorded_run, start_child

HEADER = ("encoder", "accuracy", "macro F1", "95 % interval", "AUROC", "95 % interval")
_FLOOR = "majority class"


@dataclass(frozen=True)
class ProbeTable:
    """Scores of all encoders on one labelled set.

    Attributes:
        dataset: the set.
        scores: by encoder, in the order of the table.
        resampled: intervals and paired differences.
        constant: encoders whose probe gives every sample of a fold one class.

    """

    dataset: LabelledSet
    scores: dict[str, Scores]
    resampled: Bootstrap
    constant: tuple[str, ...]

    def rows(self) -> tuple[tuple[str, ...], ...]:
        """The table as text, header first."""
        rows = [HEADER]
        for name, score in self.scores.items():
            interval = self.resampled.intervals[name]
            f1, auroc = interval.macro_f1, interval.auroc
            rows.append((
                name + (" (predicts one class)" if name in self.constant else ""),
                f"{score.accuracy:.3f}",
                f"{score.macro_f1:.3f}", f"{f1.low:.3f} to {f1.high:.3f}",
                f"{score.auroc:.3f}", f"{auroc.low:.3f} to {auroc.high:.3f}",
            ))  # fmt: skip
        return tuple(rows)

    def verdict(self) -> str:
        """One sentence: did the student beat its teacher?"""
        if "teacher" not in self.scores:
            return "No teacher to compare with: this run learnt from pixels."
        difference = self.resampled.paired_difference("student", "teacher")
        low, high = difference.interval.low, difference.interval.high
        word = "is not told apart from" if low <= 0 <= high else "beats" if low > 0 else "loses to"
        return (
            f"The student {word} its teacher: macro F1 {difference.observed:+.3f}, 95 % interval "
            f"{low:+.3f} to {high:+.3f}, "
            f"{len(np.unique(self.dataset.groups))} patients, {len(self.dataset.labels)} frames."
        )


def run_probe(run_dir: Path, folder: Path, probe: ProbeConfig, frames_per_recording: int = 4) -> ProbeTable:
    """Probe a run's student beside its teacher and a random copy of itself, and record it in MLflow.

    Args:
        run_dir: of a finished pretraining.
        folder: labelled set; see eval/datasets.py.
        probe: settings of the linear probe.
        frames_per_recording: of a cine.

    Raises:
        InputError: the run has no encoder yet, or the set cannot be used.

    """
    cfg = _config_of(run_dir)
    encoders = _encoders(run_dir, cfg)
    dataset = load_labelled_set(folder, cfg.student.image_size, frames_per_recording)
    results = {
        name: linear_probe(pooled(encoder, dataset.squares, name), dataset.labels, dataset.groups, probe)
        for name, encoder in encoders.items()
    }
    folds = next(iter(results.values())).folds
    probabilities = {_FLOOR: majority_probabilities(dataset.labels, folds)}
    probabilities |= {name: result.probabilities for name, result in results.items()}
    table = ProbeTable(
        dataset=dataset,
        scores={name: scores(dataset.labels, p) for name, p in probabilities.items()},
        resampled=bootstrap(dataset.labels, probabilities, dataset.groups),
        constant=tuple(name for name, result in results.items() if result.constant),
    )
    _record(run_dir, table, probe)
    return table


def _config_of(run_dir: Path) -> PretrainConfig:
    if not (run_dir / "encoder" / "config.json").is_file():
        raise InputError(f"run {run_dir}: has no encoder/; finish it with `deepspeed train/pretrain.py --config ...`")
    return load_config(run_dir / "config.yaml", [])


def _encoders(run_dir: Path, cfg: PretrainConfig) -> dict[str, FrozenEncoder]:
    encoders = {"random init": open_encoder(f"init:{run_dir}")}
    if cfg.teacher is not None:
        encoders["teacher"] = open_encoder(f"teacher:{run_dir}")
    return encoders | {"student": open_encoder(str(run_dir))}


def _record(run_dir: Path, table: ProbeTable, probe: ProbeConfig) -> None:
    client, run_id = recorded_run(run_dir)
    parent = client.get_run(run_id)
    for name, score in table.scores.items():
        params = {"encoder": name, "dataset": table.dataset.name, "folds": str(probe.folds)}
        run_id = start_child(client, parent, f"probe {table.dataset.name}: {name}", params)
        interval = table.resampled.intervals[name]
        metrics = {
            "probe/accuracy": score.accuracy,
            "probe/macro_f1": score.macro_f1,
            "probe/macro_f1_low": interval.macro_f1.low,
            "probe/macro_f1_high": interval.macro_f1.high,
            "probe/auroc": score.auroc,
        }
        for key, value in metrics.items():
            client.log_metric(run_id, key, value)
        client.log_dict(run_id, {"rows": table.rows(), "verdict": table.verdict()}, "probe_table.json")
        client.set_terminated(run_id)

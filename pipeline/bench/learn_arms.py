"""The arms of `make learn`: one pretraining each, on the same data, masks, stream, augmentation and schedule."""

import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.bench.learn_data import Sources
from sharding.recording import InputError
from train.config import PretrainConfig
from train.config_file import load_config, results_differ

_ROOT = Path(__file__).parent.parent.parent
CONFIG = _ROOT / "train" / "configs" / "learn.yaml"
_WARMUP = 10  # one step of so many
EXTERNAL = "external"
_EXTERNAL_LAYER = 2  # stride 8: its grid is the student's at the student's own pixels


@dataclass(frozen=True)
class Arm:
    """One pretraining.

    Attributes:
        name: of its run directory and of its row.
        objective: see train/objectives.
        teacher: another arm, `external`, or none.

    """

    name: str
    objective: str
    teacher: str = ""


TEACHER = Arm("teacher", "pixel")
ARMS = (
    TEACHER,
    Arm("salt", "salt", TEACHER.name),
    Arm("ema", "ema"),
    Arm("pixel", "pixel"),
    Arm("distill", "distill", TEACHER.name),
    Arm("salt-external", "salt", EXTERNAL),
    Arm("distill-external", "distill", EXTERNAL),
)


@dataclass(frozen=True)
class Trial:
    """All arms of one table.

    Attributes:
        folder: of their run directories.
        sources: data and external weights.
        share: of the steps that stage 1, the teacher, takes from a student that it teaches.
        overrides: of the config, the same for all arms.

    """

    folder: Path
    sources: Sources
    share: float
    overrides: tuple[str, ...] = ()

    def config(self, arm: Arm) -> PretrainConfig:
        """Of an arm.

        Raises:
            InputError: an override that is wrong.

        """
        return load_config(CONFIG, self.settings(arm))

    def settings(self, arm: Arm) -> list[str]:
        """What an arm changes in the config, as overrides."""
        total = load_config(CONFIG, list(self.overrides)).optim.steps
        taught = round(total * self.share)
        steps = {TEACHER.name: taught}.get(arm.name, total - taught if arm.teacher == TEACHER.name else total)
        return [
            *self.overrides,
            f"data.shards=[{','.join(map(str, self.sources.shards))}]",
            f"objective={arm.objective}",
            f"teacher={json.dumps(self._teacher(arm))}",
            *(["target.loss=mse"] if arm.objective == "pixel" else []),  # as in VideoMAE
            *([f"target.layers=[{_EXTERNAL_LAYER}]"] if arm.teacher == EXTERNAL else []),
            f"optim.steps={steps}",
            f"optim.warmup_steps={steps // _WARMUP}",
            f"run.dir={self.folder / arm.name}",
            f"run.tracking_uri=sqlite:///{self.folder.resolve() / 'mlflow.db'}",
        ]

    def _teacher(self, arm: Arm) -> dict[str, str] | None:
        if arm.teacher == EXTERNAL:
            file = str(self.sources.external)
            return {
                "source": "tf_efficientnet_lite0",
                "weights": file,
                "layout": "efficientnet_lite",
                "precision": "fp32",
            }
        return {"source": str(self.folder / arm.teacher), "precision": "fp32"} if arm.teacher else None


def pretrain(trial: Trial, arm: Arm) -> None:
    """Run, continue, or leave alone an arm that is finished.

    Raises:
        InputError: its folder belongs to other settings.
        RuntimeError: the pretraining failed.

    """
    cfg = trial.config(arm)
    if (cfg.run.dir / "encoder" / "config.json").exists():
        different = results_differ(load_config(cfg.run.dir / "config.yaml", []), cfg)
        if different:
            raise InputError(f"run {cfg.run.dir}: of other settings ({'; '.join(different[:3])}); give another --trial")
        return
    trial.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(_ROOT / "train" / "pretrain.py"), "--config", str(CONFIG), *trial.settings(arm)]
    before = _cpu_seconds()
    done = subprocess.run(command, check=False, env=os.environ | {"PYTHONPATH": str(_ROOT)})
    _note_seconds(cfg.run.dir, _cpu_seconds() - before)
    if done.returncode != 0:
        raise RuntimeError(f"pretraining {arm.name} ended with exit code {done.returncode}; its message is above")


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _note_seconds(run_dir: Path, seconds: float) -> None:
    if run_dir.is_dir():
        (run_dir / "cpu_seconds.json").write_text(json.dumps(cpu_seconds(run_dir) + seconds))


def cpu_seconds(run_dir: Path) -> float:
    """Of all starts of a run, its imports and validations included."""
    path = run_dir / "cpu_seconds.json"
    return float(json.loads(path.read_text())) if path.exists() else 0.0


def last_metrics(run_dir: Path, names: tuple[str, ...]) -> dict[str, float]:
    """The last value of each metric that a run logged."""
    found: dict[str, float] = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        found |= {name: value for name, value in json.loads(line)["metrics"].items() if name in names}
    return found

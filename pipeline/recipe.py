"""SALT's recipe from one config: a teacher of pixels, then students of frozen teachers (arXiv 2509.24317).

The config describes the whole budget. `optim.steps` are split: the teacher gets a share, students the rest in equal
parts, and the warm-up is split alike. All stages have the config's data, augmentation, masks, student and predictor.
`target` and `teacher.precision` are the students'.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.launch import launch
from sharding.recording import InputError
from train.command import STOPPED
from train.config import OptimConfig, PretrainConfig
from train.config_file import load_config, read_config, results_differ
from train.journal import read_record


@dataclass(frozen=True)
class Stage:
    """One pretraining.

    Attributes:
        cfg: of the stage, as its run directory will hold it.
        overrides: that make it of the recipe's config.

    """

    cfg: PretrainConfig
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.cfg.run.dir.name

    def is_finished(self) -> bool:
        """Whether its encoder is there, of these settings, and MLflow has all of it."""
        run_dir = self.cfg.run.dir
        if not (run_dir / "encoder" / "config.json").is_file():  # written when training has ended
            return False
        record = read_record(run_dir)
        is_recorded = record is not None and not record.artifacts
        return is_recorded and not results_differ(load_config(run_dir / "config.yaml", []), self.cfg)


def run_salt(config: Path, stages: list[Stage], num_gpus: int, *, smoke: bool = False) -> int:
    """Run or continue the stages of a config one after another; a finished one is not run again.

    Args:
        config: of the whole budget.
        stages: from salt_stages.
        num_gpus: processes of each stage.
        smoke: try each stage instead, on generated data.

    Returns:
        exit code of the stage that failed, 0 when all are finished.

    """
    for stage in stages:
        if not smoke and stage.is_finished():
            print(f"{stage.name}: finished before, in {stage.cfg.run.dir}")
            continue
        print(f"{stage.name}: {stage.cfg.optim.steps} steps, in {stage.cfg.run.dir}", flush=True)
        code = launch(config, list(stage.overrides), num_gpus, smoke=smoke)
        if code:
            ended = "was stopped" if code == STOPPED else "failed; its own message is above"
            print(f"us-jepa pretrain: stage {stage.name} {ended}; the same command goes on with it", file=sys.stderr)
            return code
    return 0


def salt_stages(config: Path, overrides: list[str], share: float, num_students: int) -> list[Stage]:
    """The stages of a config, teacher first.

    Args:
        config: of the whole budget.
        overrides: `section.key=value`, for every stage.
        share: of the steps, for the teacher.
        num_students: student stages; each but the first has the student before it as its teacher.

    Raises:
        InputError: the config sets an objective or a teacher, or the steps do not suffice.

    """
    content = read_config(config, overrides)
    teacher = _students_teacher(config, content)
    whole = load_config(config, [*overrides, "objective=pixel", "teacher=null"])
    steps = split_steps(whole.optim.steps, share, num_students)
    names = ["teacher", "student", *(f"student-{number}" for number in range(2, num_students + 1))]
    folders = [str(whole.run.dir / name) for name in names]
    kinds = [["objective=pixel", "teacher=null", "target.loss=mse"]]  # as in VideoMAE
    kinds += [["objective=salt", f"teacher={json.dumps(teacher | {'source': source})}"] for source in folders[:-1]]
    if whole.run.copy_to is not None:  # copies lie below the name of the folder, which is not the recipe's own
        overrides = [*overrides, f"run.copy_to={json.dumps(f'{whole.run.copy_to}/{whole.run.dir.resolve().name}')}"]
    return [
        _stage(config, [*overrides, *kind, f"run.dir={json.dumps(folder)}", *_schedule(part, whole.optim)])
        for kind, part, folder in zip(kinds, steps, folders, strict=True)
    ]


def _schedule(steps: int, whole: OptimConfig) -> list[str]:
    return [f"optim.steps={steps}", f"optim.warmup_steps={round(whole.warmup_steps * steps / whole.steps)}"]


def split_steps(steps: int, share: float, num_students: int) -> list[int]:
    """Steps of the teacher and of each student stage; together they are `steps`.

    Raises:
        InputError: a stage would have none.

    """
    if not 0 < share < 1 or num_students < 1:
        raise InputError(
            f"--teacher-share {share}, --student-stages {num_students}: a share between 0 and 1, and at least one stage"
        )
    teacher = max(1, round(steps * share))
    each, rest = divmod(steps - teacher, num_students)
    if each < 1:
        raise InputError(f"optim.steps {steps}: too few for a teacher and {num_students} student stages; give more")
    return [teacher, *[each] * (num_students - 1), each + rest]


def _students_teacher(config: Path, content: dict[str, Any]) -> dict[str, Any]:
    """What the config says of the students' teacher: its precision at most."""
    teacher = content.get("teacher") or {}
    if content.get("objective", "salt") != "salt" or not isinstance(teacher, dict) or teacher.keys() - {"precision"}:
        raise InputError(
            f"config {config}: --recipe salt sets objective and makes its own teacher; leave out objective and all of "
            "teacher but precision, or add teacher=null to the command"
        )
    return teacher


def _stage(config: Path, overrides: list[str]) -> Stage:
    return Stage(load_config(config, overrides), tuple(overrides))

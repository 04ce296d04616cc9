"""SALT's recipe: how a budget is split, and both stages through the real launcher."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline import recipe
from pipeline.recipe import salt_stages, split_steps
from sharding.recording import InputError
from tests.conftest import ROOT, run_command
from tests.train.test_pretrain import TINY

VIT_SMALL = ROOT / "train" / "configs" / "vit_small.yaml"


def config(folder: Path, shards: Path, **sections: object) -> Path:
    content = json.loads(json.dumps(TINY)) | sections
    content["data"]["shards"] = [str(shards)]
    content["optim"] |= {"steps": 12, "warmup_steps": 6}
    content["run"] |= {"dir": str(folder / "run"), "tracking_uri": f"sqlite:///{folder}/mlflow.db"}
    path = folder / "whole.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@given(st.integers(10, 10**6), st.floats(0.01, 0.8), st.integers(1, 2))
def test_the_stages_share_all_steps(steps: int, share: float, num_students: int) -> None:
    teacher, *students = split_steps(steps, share, num_students)
    assert teacher + sum(students) == steps
    assert teacher == max(1, round(steps * share))
    assert len(students) == num_students
    assert 0 < min(students) <= max(students) < min(students) + num_students


def test_salts_own_split() -> None:
    assert split_steps(240_000, 1 / 6, 1) == [40_000, 200_000]
    assert split_steps(240_000, 1 / 6, 2) == [40_000, 100_000, 100_000]


def test_each_stage_learns_from_the_one_before_it(tmp_path: Path) -> None:
    path = config(tmp_path, tmp_path, teacher={"precision": "fp32"}, objective="salt")
    overrides = ["optim.lr=7e-4", "run.copy_to=s3://b/c", "optim.steps=60", "optim.warmup_steps=12"]
    teacher, student, second = (stage.cfg for stage in salt_stages(path, overrides, 1 / 6, 2))
    assert (teacher.objective, teacher.teacher, teacher.target.loss) == ("pixel", None, "mse")
    assert [cfg.optim.steps for cfg in (teacher, student, second)] == [10, 25, 25]
    assert [cfg.optim.warmup_steps for cfg in (teacher, student, second)] == [2, 5, 5]
    assert student.teacher is not None
    assert second.teacher is not None
    assert (student.teacher.source, student.teacher.precision) == (str(teacher.run.dir), "fp32")
    assert second.teacher.source == str(student.run.dir) == str(tmp_path / "run" / "student")
    assert second.run.dir == tmp_path / "run" / "student-2"
    for name in ("data", "masks", "augment", "student", "predictor"):
        assert getattr(teacher, name) == getattr(student, name) == getattr(second, name)
    assert {cfg.optim.lr for cfg in (teacher, student, second)} == {7e-4}
    assert {cfg.run.copy_to for cfg in (teacher, student, second)} == {"s3://b/c/run"}
    assert student.target.loss == "smooth_l1"


def test_a_config_with_a_teacher_is_refused_until_it_is_dropped() -> None:
    with pytest.raises(InputError, match=r"makes its own teacher; leave out .* or add teacher=null to the command"):
        salt_stages(VIT_SMALL, [], 1 / 6, 1)
    assert len(salt_stages(VIT_SMALL, ["teacher=null"], 1 / 6, 1)) == 2
    with pytest.raises(InputError, match="sets objective and makes its own teacher"):
        salt_stages(VIT_SMALL, ["teacher=null", "objective=ema"], 1 / 6, 1)


@pytest.mark.parametrize(
    ("share", "num_students", "message"),
    [(0.0, 1, "a share between 0 and 1"), (0.5, 0, "at least one stage"), (0.9, 5, "optim.steps 12: too few")],
)
def test_a_split_that_leaves_a_stage_without_steps_is_refused(share: float, num_students: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_steps(12, share, num_students)


def test_a_failed_stage_ends_the_recipe_with_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, codes = config(tmp_path, tmp_path), [0, 75]
    launched: list[str] = []

    def launch(config: Path, overrides: list[str], num_gpus: int, *, smoke: bool) -> int:
        launched.append(f"{overrides[0]} {num_gpus} {smoke}")
        return codes[len(launched) - 1]

    monkeypatch.setattr(recipe, "launch", launch)
    stages = salt_stages(path, [], 1 / 6, 2)
    assert recipe.run_salt(path, stages, 3, smoke=True) == 75
    assert launched == ["objective=pixel 3 True", "objective=salt 3 True"]  # the third is not started
    said = capsys.readouterr().err
    assert said == "us-jepa pretrain: stage student was stopped; the same command goes on with it\n"


@pytest.mark.launch
def test_the_recipe_through_the_launcher_is_not_run_twice(shards: Path, tmp_path: Path) -> None:
    path = config(tmp_path, shards, teacher={"precision": "fp32"})
    command = ("us-jepa", "pretrain", "--recipe", "salt", "--config", str(path))
    done = run_command(*command)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, last in (("teacher", 2), ("student", 10)):
        assert (tmp_path / "run" / name / "checkpoints" / f"step-{last:08d}.safetensors").is_file()
    facts = json.loads((tmp_path / "run" / "student" / "encoder" / "config.json").read_text())["us_jepa"]
    assert facts["objective"] == "salt"
    assert facts["teacher_sha256"] != "none"
    again = run_command(*command)
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stdout.splitlines() == [
        f"{name}: finished before, in {tmp_path / 'run' / name}" for name in ("teacher", "student")
    ]
    stages = salt_stages(path, ["masks.num_targets=3"], 1 / 6, 1)
    assert not any(stage.is_finished() for stage in stages)  # of other settings: pretrain.py will refuse


@pytest.mark.launch
@pytest.mark.slow
def test_sigterm_to_the_command_reaches_the_ranks_which_save_and_end_with_75(shards: Path, tmp_path: Path) -> None:
    path = config(tmp_path, shards, objective="pixel")
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "us-jepa"), "pretrain", "--config", str(path), "optim.steps=100000"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 280
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors[-2000:]
    assert "asked to stop, saved after step" in errors
    assert list((tmp_path / "run" / "checkpoints").glob("step-*.safetensors"))

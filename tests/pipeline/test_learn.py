"""What of `make learn` can be wrong without training: the halves, the arms' settings, the table."""

from pathlib import Path

import numpy as np
import pytest

from eval.datasets import LabelledSet
from eval.probe import ProbeConfig
from pipeline.bench.learn_arms import ARMS, EXTERNAL, TEACHER, Trial
from pipeline.bench.learn_data import Sources, half_of, make_sources
from pipeline.bench.learn_table import Row, probe_all
from sharding.recording import InputError
from train.config_file import results_differ

NUM_INFANTS, FRAMES = 40, 3


def trial(*overrides: str) -> Trial:
    sources = Sources((Path("shards/a"), Path("shards/b")), Path("lite0.pth"))
    return Trial(Path("build/learn/t"), sources, 0.25, overrides)


def test_an_infant_is_in_one_half_whatever_its_frames_and_halves_are_about_even() -> None:
    halves = [half_of(f"tr_{number}") for number in range(1000)]
    assert halves == [half_of(f"tr_{number}") for number in range(1000)]
    assert 400 < halves.count("development") < 600


def test_arms_differ_in_objective_teacher_steps_and_folder_alone() -> None:
    base = trial().config(TEACHER)
    allowed = ("objective", "teacher", "target.loss", "target.layers", "optim.steps", "optim.warmup_steps")
    for arm in ARMS:
        changes = results_differ(base, trial().config(arm))
        assert all(change.startswith(allowed) for change in changes), changes


def test_teacher_and_student_share_one_budget() -> None:
    steps = {arm.name: trial("optim.steps=100").config(arm).optim.steps for arm in ARMS}
    assert steps["teacher"] + steps["salt"] == steps["teacher"] + steps["distill"] == 100
    assert {steps[arm.name] for arm in ARMS if arm.teacher in ("", EXTERNAL) and arm != TEACHER} == {100}


def test_a_folder_without_the_sets_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no gallbladder_ba; give the folder with"):
        make_sources(tmp_path, tmp_path / "out", 1)


def test_the_table_says_what_each_row_gains() -> None:
    draws = np.random.default_rng(0)
    labels = np.repeat(draws.integers(2, size=NUM_INFANTS), FRAMES)
    groups = np.repeat(np.arange(NUM_INFANTS), FRAMES)
    noise = draws.normal(size=(len(labels), 4)).astype(np.float32)
    squares, keys = np.zeros((len(labels), 2, 8, 8), np.uint8), np.arange(len(labels)).astype(str)
    dataset = LabelledSet("set", squares, labels, groups, ("a", "b"), 0, keys)
    features = {
        Row("random init"): noise,
        Row("teacher", "", 20, 0.5): noise + labels[:, None] * 0.1,
        Row("salt", "teacher", 80, 2.0): noise + labels[:, None] * 5,
    }
    lines = probe_all(features, dataset, ProbeConfig()).markdown().splitlines()
    assert len(lines) == 2 + len(features)
    assert lines[2].startswith("| random init |  |  | 0.")
    assert lines[2].endswith("|  |  |")
    assert lines[4].startswith("| salt | 80 | 2.0 | 1.000 | 1.000 to 1.000 | +0.")
    assert lines[4].count("(+0.") == 2

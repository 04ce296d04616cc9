"""Ranks, ZeRO stages, accumulation, and where a run was interrupted change no loss, by the real launcher."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.train.tiny import checkpoint, deepspeed, different, finish, losses, metrics, write_config

pytestmark = pytest.mark.launch
BATCH = 8
STAGES = (0, 1, 2, 3)
OBJECTIVES = {
    "salt": (),
    "ema": ("objective=ema", "teacher=null"),
    "average": ("optim.average=0.9",),
    "bf16": ("optim.precision=bf16",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero")


class Plan:
    """Runs of one launch, by name."""

    def __init__(self, folder: Path, shards: Path, num_ranks: int) -> None:
        self.folder, self.runs, self._shards, self._num_ranks = folder, [], shards, num_ranks

    def add(self, name: str, objective: str, stage: int, accumulation: int = 1, **more: str) -> str:
        micro_batch = BATCH // self._num_ranks // accumulation
        settings = (*OBJECTIVES[objective], f"run.zero_stage={stage}", f"run.micro_batch={micro_batch}")
        config = write_config(self.folder, name, self._shards, *settings)
        self.runs.append({"config": str(config)} | {key: str(self.folder / value) for key, value in more.items()})
        return name

    def add_with_resumed(self, objective: str, stage: int, accumulation: int = 1) -> str:
        """A whole run; the same from step 2 on; what a rank has when it resumes."""
        name = f"{objective}-{self._num_ranks}-{stage}-{accumulation}"
        self.add(name, objective, stage, accumulation)
        self.add(f"{name}-resumed", objective, stage, accumulation, copy_of=name)
        self.add(f"{name}-begun", objective, stage, accumulation, copy_of=name, still=f"{name}-still")
        return name

    def launch(self) -> None:
        path = self.folder / f"plan-{self._num_ranks}.json"
        path.write_text(json.dumps(self.runs))
        finish([*deepspeed(self._num_ranks, ROOT / "tests" / "train" / "zero_runs.py"), str(path)])


def check_resumed(folder: Path, name: str) -> None:
    """Bit for bit the run that nobody interrupted; and nothing changes before the first step."""
    assert losses(folder / f"{name}-resumed") == losses(folder / name)
    assert different(checkpoint(folder / f"{name}-resumed"), checkpoint(folder / name)) == []
    before, after = (
        load_file(folder / part / "checkpoints" / "step-00000002.safetensors") for part in (name, f"{name}-still")
    )
    assert different(after, before) == []  # with the clock
    kinds = {key.partition(".")[0] for key in before}
    assert kinds >= {"weights", "exp_avg", "exp_avg_sq", "objective", "means", "clock"}
    assert before["clock.device_seconds"] > 0


def check_same_run(folder: Path, name: str, reference: str) -> None:
    """To rounding: the same losses of training and validation, on the same samples."""
    for key in ("train/loss", "val/loss", "val/loss_of_predicting_the_position"):
        assert metrics(folder / name, key) == pytest.approx(metrics(folder / reference, key), abs=1e-5), key
    assert metrics(folder / name, "data/keys_hash") == metrics(folder / reference, "data/keys_hash")


@pytest.mark.slow
def test_two_ranks_with_zero_3_resume_bit_for_bit_and_one_rank_goes_on(folder: Path, shards: Path) -> None:
    two = Plan(folder / "few", shards, num_ranks=2)
    two.folder.mkdir()
    whole = two.add_with_resumed("salt", stage=3)
    two.add("other", "average", stage=2, accumulation=2)
    two.launch()
    one = Plan(two.folder, shards, num_ranks=1)
    one.add("one", "average", stage=0, copy_of="other")
    one.launch()
    check_resumed(two.folder, whole)
    check_same_run(two.folder, "one", "other")
    check_same_run(two.folder, "other", whole)  # the average changes no step


def planned(plans: dict[int, Plan]) -> list[str]:
    """Whole runs, each with its resumed ones; the first is what the others of `salt` are compared with."""
    names = []
    for ranks, stage, accumulation in itertools.product((1, 2), STAGES, (1, 2)):
        names.append(plans[ranks].add_with_resumed("salt", stage, accumulation))
    for objective, stages in (("ema", (2, 3)), ("average", (2, 3)), ("bf16", STAGES)):
        names += [plans[2].add_with_resumed(objective, stage) for stage in stages]
    return names


def planned_moves(plans: dict[int, Plan]) -> dict[str, str]:
    """Runs of 2 ranks at ZeRO 2 that go on elsewhere, and the run that stays."""
    moves = {}
    for objective, (ranks, stage) in itertools.product(("salt", "ema", "average"), ((1, 0), (4, 3))):
        source = f"{objective}-2-2-1"
        moves[plans[ranks].add(f"{source}-on-{ranks}", objective, stage, copy_of=source)] = source
    return moves


@pytest.mark.slow
def test_the_whole_matrix(folder: Path, shards: Path) -> None:
    plans = {num_ranks: Plan(folder, shards, num_ranks) for num_ranks in (2, 1, 4)}
    whole, moves = planned(plans), planned_moves(plans)
    for plan in plans.values():
        plan.launch()
    for name in whole:
        check_resumed(folder, name)
        if name.startswith("salt"):
            check_same_run(folder, name, whole[0])
    for name, source in moves.items():
        check_same_run(folder, name, source)
        later, expected = checkpoint(folder / name), checkpoint(folder / source)
        assert later.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(later[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")

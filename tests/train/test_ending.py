"""Why a run ended is not hidden by what its copies then do."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from torch import distributed

from tests.train.tiny import STEPS, write_config
from train import run, shipper
from train.command import MENDABLE, STOPPED
from train.config_file import load_config
from train.copies import Copies

pytestmark = pytest.mark.usefixtures("alone")


def nothing() -> None:
    pass


@pytest.fixture
def ends(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Runs whose `run.copy_to` becomes unreachable; the exit code, when something happens beside the training."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)  # the group is the session's
    monkeypatch.setattr(shipper, "_CLOSE_SECONDS", 0.3)
    train = run.train

    def start(before: Callable[[], None] = nothing, after: Callable[[], None] = nothing) -> int:
        def train_and_more(*words: Any) -> None:  # noqa: ANN401
            shutil.rmtree(tmp_path / "copies")
            (tmp_path / "copies").touch()
            before()
            train(*words)
            after()

        monkeypatch.setattr(run, "train", train_and_more)
        config = write_config(tmp_path, "run", shards, f"run.copy_to={tmp_path / 'copies'}", "run.micro_batch=8")
        return run.start(load_config(config, []), is_smoke=False)

    yield start
    signal.signal(signal.SIGTERM, handler)


def status(folder: Path) -> str:
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("us-jepa")
    assert experiment is not None
    [found] = client.search_runs([experiment.experiment_id])
    return str(found.info.status)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def explode() -> None:
    raise FloatingPointError("the loss is not finite at step 3")


def test_a_run_that_was_stopped_says_so_and_waits_for_no_copies(
    ends: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(Copies, "close", lambda _: pytest.fail("it waits for the copies"))
    assert ends(before=stop) == STOPPED
    assert "asked to stop, saved after step 0; the same command goes on" in capsys.readouterr().err
    assert "is without step-00000001.safetensors; the next start of the run copies it" in caplog.text
    assert status(tmp_path) == "KILLED"


def test_a_loss_that_is_not_finite_is_said_and_the_copies_are_a_warning(
    ends: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert ends(after=explode) == 1
    assert capsys.readouterr().err.count("pretrain: the loss is not finite at step 3") == 1
    assert "is not up to date" in caplog.text
    assert "the run ends for another reason: FloatingPointError: the loss is not finite at step 3" in caplog.text
    assert status(tmp_path) == "FAILED"


def test_a_run_that_is_done_has_its_encoder_and_says_which_copies_are_missing(
    ends: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends() == MENDABLE
    printed = capsys.readouterr().err
    assert "copies/run is not up to date (" in printed
    assert f"step-{STEPS:08d}.safetensors" in printed
    assert (tmp_path / "run" / "encoder" / "model.safetensors").exists()
    assert status(tmp_path) == "FINISHED"

"""Killed, stopped, out of disk, without its server: nothing is lost but steps since the last checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import psutil
import pytest
from mlflow.entities import Run

from tests.train.mlflow_server import Server
from tests.train.tiny import (
    SCRIPT,
    checkpoint,
    deepspeed,
    different,
    environment,
    finish,
    losses,
    start,
    write_config,
)  # fmt: skip

pytestmark = pytest.mark.launch
STEPS = 24
LONG = (f"optim.steps={STEPS}", "run.save_every=4")
ALONE = [sys.executable, str(SCRIPT)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kill")


@pytest.fixture(scope="module")
def whole(folder: Path, shards: Path) -> Path:
    """The run that nobody disturbs, of one process."""
    finish([*ALONE, "--config", str(write_config(folder, "whole", shards, *LONG, "run.micro_batch=8"))])
    return folder / "whole"


def wait_until(is_so: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 200
    while not is_so():
        if process.poll() is not None:
            pytest.fail(process.communicate()[0][-4000:])
        assert time.monotonic() < deadline
        time.sleep(0.005)


def has_saved(run_dir: Path) -> Callable[[], object]:
    return lambda: list((run_dir / "checkpoints").glob("step-*.safetensors"))


def rank_of(process: "subprocess.Popen[str]", rank: int) -> psutil.Process:
    children = psutil.Process(process.pid).children(recursive=True)
    return next(child for child in children if f"--local_rank={rank}" in child.cmdline())


def only_run(run_dir: Path, uri: str | None = None) -> Run:
    """The run of a run directory; there is no second one of its name."""
    client = mlflow.MlflowClient(uri or f"sqlite:///{run_dir.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("us-jepa")
    runs = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{run_dir.name}'")
    assert [run.info.run_id for run in runs] == [json.loads((run_dir / "run.json").read_text())["mlflow_run_id"]]
    return runs[0]


def check_ended_like(run_dir: Path, whole: Path, uri: str | None = None, *, is_exact: bool = True) -> None:
    """As if nothing had happened; MLflow has each step once."""
    assert losses(run_dir) == pytest.approx(losses(whole), abs=1e-5)
    if is_exact:
        assert different(checkpoint(run_dir, STEPS), checkpoint(whole, STEPS)) == []
    run = only_run(run_dir, uri)
    assert run.info.status == "FINISHED"
    client = mlflow.MlflowClient(uri or f"sqlite:///{run_dir.parent}/mlflow.db")
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(point.step for point in history) == list(range(STEPS))
    assert (run_dir / "encoder" / "model.safetensors").exists()
    assert not list((run_dir / "checkpoints").glob(".*"))


def kill_and_go_on(config: Path, run_dir: Path, whole: Path, rank: int, moment: Callable[[], object]) -> None:
    command = [*deepspeed(2), "--config", str(config)]
    process = start(command)
    wait_until(moment, process)
    rank_of(process, rank).kill()
    said = process.communicate(timeout=60)[0]  # no hang: the launcher ends the other rank
    assert process.returncode not in (0, 2, 75), said[-2000:]
    assert not (run_dir / "encoder").exists()
    # rank 0 says that the other one is gone; nobody can say that rank 0 is
    assert only_run(run_dir).info.status == ("RUNNING" if rank == 0 else "FAILED")
    finish([*deepspeed(2), "--config", str(config)])
    check_ended_like(run_dir, whole, is_exact=False)


@pytest.mark.slow
def test_kill_9_of_rank_0_costs_steps_only(folder: Path, shards: Path, whole: Path) -> None:
    config = write_config(folder, "rank0", shards, *LONG)
    kill_and_go_on(config, folder / "rank0", whole, 0, has_saved(folder / "rank0"))


@pytest.mark.slow
def test_kill_9_of_rank_1_costs_steps_only(folder: Path, shards: Path, whole: Path) -> None:
    config = write_config(folder, "rank1", shards, *LONG)
    kill_and_go_on(config, folder / "rank1", whole, 1, has_saved(folder / "rank1"))


@pytest.mark.slow
def test_kill_9_while_a_checkpoint_is_written_leaves_the_one_before(folder: Path, shards: Path, whole: Path) -> None:
    config = write_config(folder, "writing", shards, *LONG)
    place = folder / "writing" / "checkpoints"

    def writes_the_second() -> bool:
        return len(list(place.glob("step-*"))) > 0 and bool(list(place.glob(".*")))

    kill_and_go_on(config, folder / "writing", whole, 0, writes_the_second)


def stop_and_go_on(
    command: list[str], run_dir: Path, stop: Callable[["subprocess.Popen[str]"], None], code: int
) -> str:
    process = start(command)
    wait_until(has_saved(run_dir), process)
    stop(process)
    said = process.communicate(timeout=100)[0]
    assert process.returncode == code, said[-4000:]
    assert only_run(run_dir).info.status == "KILLED", said[-4000:]
    done = len(losses(run_dir))
    assert done < STEPS
    assert (run_dir / "checkpoints" / f"step-{done:08d}.safetensors").exists()  # no step is lost
    finish(command)
    return said


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_sigterm_saves_and_the_same_command_goes_on(folder: Path, shards: Path, whole: Path, num_workers: int) -> None:
    run_dir = folder / f"stopped{num_workers}"
    settings = (*LONG, "run.micro_batch=8", f"run.num_workers={num_workers}", "run.save_every=8")
    command = [*ALONE, "--config", str(write_config(folder, run_dir.name, shards, *settings))]

    def stop(process: "subprocess.Popen[str]") -> None:
        tree = psutil.Process(process.pid)
        for each in (*tree.children(recursive=True), tree):  # as Slurm and the launchers do: the workers, too
            each.terminate()

    said = stop_and_go_on(command, run_dir, stop, 75)
    assert "asked to stop, saved after step" in said
    assert "Traceback" not in said
    check_ended_like(run_dir, whole)


def terminate_group(process: "subprocess.Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGTERM)


def terminate_rank_1(process: "subprocess.Popen[str]") -> None:
    rank_of(process, 1).terminate()


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "code"), [(terminate_group, -signal.SIGTERM), (terminate_rank_1, 75)])
def test_sigterm_under_the_launcher_saves(
    folder: Path, shards: Path, whole: Path, stop: Callable[["subprocess.Popen[str]"], None], code: int
) -> None:
    run_dir = folder / stop.__name__
    config = write_config(folder, run_dir.name, shards, *LONG, "run.num_workers=1")
    said = stop_and_go_on([*deepspeed(2), "--config", str(config)], run_dir, stop, code)
    assert said.count("asked to stop, saved after step") == 1
    check_ended_like(run_dir, whole, is_exact=False)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_full_disk_is_said_and_the_older_checkpoint_stays(folder: Path, shards: Path, num_ranks: int) -> None:
    size = 45 * 2**20  # a checkpoint of this student has 12 MB; two are kept while a third is written
    run_dir = folder / f"full{num_ranks}"
    run_dir.mkdir()
    config = write_config(folder, run_dir.name, shards, *LONG, "run.keep=9", f"run.micro_batch={8 // num_ranks}")
    start_line = " ".join(deepspeed(num_ranks) if num_ranks > 1 else ALONE)
    script = f"mount -t tmpfs -o size={size} tmpfs {run_dir} || exit 99; {start_line} --config {config}; " + \
        f'echo "exit code $?"; ls -A {run_dir}/checkpoints'  # fmt: skip
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False, timeout=200,
        env=environment(),
    )  # fmt: skip
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("no right to mount a small disk here")
    assert "exit code 2" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stderr.count("cannot be written") == 1
    assert "Make room and run the same command again: the checkpoint before it is kept" in done.stderr
    assert "Traceback" not in done.stderr
    kept = done.stdout.partition("exit code 2\n")[2].split()
    assert kept
    assert all(name.startswith("step-") for name in kept)
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("us-jepa")
    runs = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{run_dir.name}'")
    assert [run.info.status for run in runs] == ["FAILED"]


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    (folder / "server").mkdir()
    made = Server(folder / "server" / "mlflow.db")
    made.start()
    yield made
    made.kill()


@pytest.mark.slow
def test_an_mlflow_server_that_is_killed_and_comes_back_has_every_row(
    folder: Path, shards: Path, whole: Path, server: Server
) -> None:
    config = write_config(folder, "served", shards, *LONG, "run.micro_batch=8", f"run.tracking_uri={server.uri}")
    process = start([*ALONE, "--config", str(config)], MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    client = mlflow.MlflowClient(server.uri)

    def has_rows() -> bool:
        experiment = client.get_experiment_by_name("us-jepa")
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        return bool(runs) and "train/loss" in runs[0].data.metrics

    wait_until(has_rows, process)
    server.kill()
    done = len(losses(folder / "served"))
    wait_until(lambda: len(losses(folder / "served")) >= done + 3, process)  # training goes on
    server.start()
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 0, said[-3000:]
    assert said.count("training goes on, and it is tried again") <= 1
    check_ended_like(folder / "served", whole, server.uri)

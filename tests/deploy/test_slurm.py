"""deploy/slurm under a real Slurm: sharding array, two-rank pretraining that is queued again, probe."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from sharding.manifest import load_manifest
from sharding.sources.synthetic_files import write_demo_set
from tests.conftest import ROOT
from tests.deploy.local_slurm import Slurm, missing
from tests.train.tiny import losses, write_config

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]
STEPS, SLICES = 60, 4
CPU_ONLY = "--cpus-per-task=1 --mem-per-cpu=0 --gpus-per-node=0"
BIN = str(Path(sys.executable).parent)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With recordings of 12 patients in `scans`."""
    made = tmp_path_factory.mktemp("slurm")
    write_demo_set(made / "scans", num_patients=12, seed=7)
    return made


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    made = Slurm(tmp_path_factory.mktemp("cluster"), cpus=2)
    yield made
    made.stop()


def submit(slurm: Slurm, folder: Path, config: Path, *overrides: str) -> dict[str, str]:
    """Submit the chain; returns the number of each job."""
    places = {"SRC": folder / "scans", "OUT": folder / "shards", "CONFIG": config, "RUN": folder / config.stem}
    options = {"SHARDS": "", "PRETRAIN": " --ntasks-per-node=2", "PROBE": ""}
    said = slurm.say(
        str(ROOT / "deploy/slurm/submit.sh"), *overrides,
        **{name: str(place) for name, place in places.items()}, DATA=str(folder / "scans"),
        **{f"{name}_SBATCH": CPU_ONLY + more for name, more in options.items()},
        SBATCH_OUTPUT=str(folder / "%x-%A-%a.log"), SLICES=str(SLICES), SHARDS_ARGS="--max-frames 4 --val-share 0.1",
        PROBE_ARGS="--folds 3 --no-frames", US_JEPA_KEY_FILE=str(folder / "key"), BIN=BIN,
    )  # fmt: skip
    return dict(line.split() for line in said.splitlines())


def until_it_has_saved(run: Path, slurm: Slurm, number: str) -> None:
    deadline = time.monotonic() + 300
    while not list((run / "checkpoints").glob("step-*.safetensors")):
        assert time.monotonic() < deadline, slurm.output(number)
        assert slurm.states(number) <= {"PENDING", "RUNNING"}, slurm.output(number)
        time.sleep(0.05)


def test_the_chain_runs_and_a_requeue_resumes_the_same_run(slurm: Slurm, folder: Path) -> None:
    config = write_config(folder, "run", folder / "unused", f"optim.steps={STEPS}", "run.save_every=5", "run.keep=99")
    jobs = submit(slurm, folder, config, "optim.lr=2e-3")
    assert list(jobs) == ["shards", "merge", "pretrain", "probe"]
    slurm.wait(jobs["shards"])
    assert len(slurm.jobs(jobs["shards"])) == SLICES
    slurm.wait(jobs["merge"])
    assert load_manifest(str(folder / "shards")).num_samples() > 0

    until_it_has_saved(folder / "run", slurm, jobs["pretrain"])
    first = json.loads((folder / "run" / "run.json").read_text())
    slurm.say("scancel", "--signal=USR1", "--batch", jobs["pretrain"])  # as --signal=B:USR1@300 does before the limit
    deadline = time.monotonic() + 60
    while (job := slurm.jobs(jobs["pretrain"])[0])["Restarts"] != "1" or job["JobState"] != "PENDING":
        assert time.monotonic() < deadline, slurm.output(jobs["pretrain"])
        time.sleep(0.2)
    done = len(losses(folder / "run"))
    assert 0 < done < STEPS
    assert (folder / "run" / "checkpoints" / f"step-{done:08d}.safetensors").exists()  # no step is lost
    time.sleep(5)  # a job that starts in the second in which it was stopped has no valid credential; Slurm waits 120
    slurm.say("scontrol", "update", f"JobId={jobs['pretrain']}", "StartTime=now")
    slurm.wait(jobs["pretrain"])
    said = slurm.output(jobs["pretrain"])
    assert said.count(f"asked to stop, saved after step {done - 1}") == 1, said

    assert json.loads((folder / "run" / "run.json").read_text())["mlflow_run_id"] == first["mlflow_run_id"]
    client = mlflow.MlflowClient(first["tracking_uri"])
    run = client.get_run(first["mlflow_run_id"])
    assert (run.info.status, run.data.tags["world_size"]) == ("FINISHED", "2")
    assert run.data.tags["resumed_at_step"] == str(done)
    assert run.data.params["optim.lr"] == "0.002"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(point.step for point in history) == list(range(STEPS))
    slurm.wait(jobs["probe"])
    assert json.loads((folder / "run" / "probe" / "scans" / "results.json").read_text())


def test_dask_inside_a_job_makes_the_same_shards_as_the_array(slurm: Slurm, folder: Path) -> None:
    if not (folder / "shards" / "manifest.json").exists():
        pytest.skip("compares with what the test of the chain makes")
    number = slurm.say(
        "sbatch", "--parsable", "--nodes=1", "--cpus-per-task=2", f"--chdir={ROOT}", "--mem-per-cpu=0",
        f"--output={folder}/dask.log", str(ROOT / "deploy/slurm/dask.sbatch"), str(folder / "scans"),
        str(folder / "dask"), "--dataset", "shards", "--max-frames", "4", "--val-share", "0.1",
        BIN=BIN, US_JEPA_KEY_FILE=str(folder / "key"),
    ).strip()  # fmt: skip
    slurm.wait(number)
    one, other = (load_manifest(str(folder / name)) for name in ("shards", "dask"))
    assert [shard.sha256 for shard in one.shards] == [shard.sha256 for shard in other.shards]


def test_what_fails_ends_the_chain(slurm: Slurm, folder: Path) -> None:
    config = write_config(folder, "wrong", folder / "unused", "optim.batch=7")  # not divisible
    jobs = submit(slurm, folder, config)
    slurm.wait(jobs["merge"])
    deadline = time.monotonic() + 120
    while slurm.states(jobs["probe"]) != {"CANCELLED"}:
        assert time.monotonic() < deadline, slurm.jobs(jobs["probe"])
        time.sleep(0.3)
    assert slurm.jobs(jobs["pretrain"])[0]["ExitCode"] == "2:0", slurm.output(jobs["pretrain"])
    assert slurm.jobs(jobs["pretrain"])[0]["Restarts"] == "0"

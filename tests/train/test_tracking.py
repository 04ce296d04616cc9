"""One MLflow run per job, over restarts, kills and servers that come and go; nothing that was logged is lost."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

import train.shipper
from sharding.recording import InputError
from tests.conftest import ROOT
from tests.train.mlflow_server import Server, wait_until
from train.journal import Artifact, Journal, read_record
from train.mlflow_store import open_client, recorded_run
from train.tracking import Tracker, git_commit, log_artifacts

EXPERIMENT = "test"


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite file with MLflow's tables: making them is the slow part, so tests get copies."""
    path = tmp_path_factory.mktemp("migrated") / "mlflow.db"
    open_client(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(migrated: Path, tmp_path: Path) -> str:
    """URI of a fresh store in the test's folder."""
    (tmp_path / "mlflow.db").write_bytes(migrated.read_bytes())
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "my-run"
    folder.mkdir()
    (folder / "config.yaml").write_text("objective: salt\n")
    return folder


def tracker(uri: str, run_dir: Path, start: int = 0, **tags: str) -> Tracker:
    return Tracker(uri, EXPERIMENT, run_dir, params={"optim.lr": "1e-3"}, tags=tags, start=start)


def log_steps(tracker: Tracker, *steps: int) -> None:
    for step in steps:
        tracker.log(step, {"train/loss": 1 / (step + 1), "data/wait": 0.5})


def all_runs(uri: str) -> list[Run]:
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def only_run(uri: str) -> Run:
    runs = all_runs(uri)
    assert len(runs) == 1
    return runs[0]


def history(uri: str, run: Run, key: str = "train/loss") -> list[int]:
    """Steps of all rows of a metric."""
    return sorted(point.step for point in mlflow.MlflowClient(uri).get_metric_history(run.info.run_id, key))


@pytest.fixture(scope="module")
def server(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Not started yet."""
    database = tmp_path_factory.mktemp("server") / "mlflow.db"
    database.write_bytes(migrated.read_bytes())
    made = Server(database)
    yield made
    made.kill()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(train.shipper, "_RETRY_SECONDS", 0.2)
    monkeypatch.setattr(train.shipper, "_LAST_RETRY_SECONDS", 0.2)


@pytest.mark.launch
def test_a_server_that_never_comes_costs_nothing_but_one_warning(
    server: Server, run_dir: Path, impatient: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(train.shipper, "_CLOSE_SECONDS", 1.0)
    began = time.monotonic()
    run = tracker(server.uri, run_dir)
    log_steps(run, *range(5))
    run.artifact(run_dir / "config.yaml", "folder")
    assert time.monotonic() - began < 1  # nothing waits for the server
    time.sleep(0.5)
    assert caplog.text.count("training goes on") == 1
    caplog.clear()
    began = time.monotonic()
    run.close("FINISHED")
    assert time.monotonic() - began < 5
    assert len(caplog.records) == 1
    assert "did not take all of run my-run with its status FINISHED (" in caplog.text
    assert f"the rest is in {run_dir}/metrics.jsonl and in run.json beside it" in caplog.text
    record = read_record(run_dir)
    assert record is not None
    assert record.mlflow_run_id is None
    with pytest.raises(InputError, match=r"is not in MLflow yet; run `deepspeed train/pretrain.py"):
        recorded_run(run_dir)

    monkeypatch.setattr(train.shipper, "_CLOSE_SECONDS", 30.0)
    server.start()
    tracker(server.uri, run_dir, start=5).close("FINISHED")
    made = only_run(server.uri)
    assert history(server.uri, made) == list(range(5))
    assert made.info.status == "FINISHED"
    client = mlflow.MlflowClient(server.uri)
    assert {item.path for item in client.list_artifacts(made.info.run_id)} == {"config.yaml", "folder"}
    assert made.data.tags["us_jepa.run_key"] == record.run_key
    assert recorded_run(run_dir)[1] == made.info.run_id


@pytest.mark.launch
def test_a_server_that_is_down_at_the_start_and_killed_in_mid_run_loses_nothing(
    server: Server, run_dir: Path, impatient: None
) -> None:
    server.kill()
    run = Tracker(server.uri, "outage", run_dir, params={}, tags={}, start=0)
    log_steps(run, 0, 1)
    server.start()
    wait_until(lambda: run.run_id is not None)
    client = mlflow.MlflowClient(server.uri)
    wait_until(lambda: client.get_run(run.run_id).data.metrics.get("train/loss") == 1 / 2)
    server.kill()
    log_steps(run, 2, 3)
    server.start()
    log_steps(run, 4)
    run.close("FAILED")
    made = client.get_run(run.run_id)
    assert history(server.uri, made) == history(server.uri, made, "data/wait") == [0, 1, 2, 3, 4]
    assert made.info.status == "FAILED"
    assert len(client.search_runs([made.info.experiment_id])) == 1


def test_a_restart_goes_on_with_the_same_run_and_its_status_is_true(store: str, run_dir: Path) -> None:
    first = tracker(store, run_dir, world_size="2", resumed_at_step="0")
    log_steps(first, 0, 1)
    first.close("KILLED")
    assert only_run(store).info.status == "KILLED"
    second = tracker(store, run_dir, start=2, world_size="3", resumed_at_step="2")
    wait_until(lambda: only_run(store).info.status == "RUNNING")
    log_steps(second, 2)
    second.close("FINISHED")
    run = only_run(store)
    assert run.info.run_id == first.run_id == second.run_id
    assert run.info.run_name == "my-run"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"optim.lr": "1e-3"}
    assert (run.data.tags["world_size"], run.data.tags["resumed_at_step"]) == ("3", "2")
    assert {"env.torch", "env.python", "env.mlflow", "env.deepspeed", "env.timm", "env.platform", "git_commit"} <= set(
        run.data.tags
    )
    assert run.data.tags["env.device"] == "cpu"
    assert history(store, run) == [0, 1, 2]


def test_sending_everything_again_changes_nothing(store: str, run_dir: Path) -> None:
    run = tracker(store, run_dir)
    log_steps(run, *range(300))  # more than a batch
    run.close("FINISHED")
    record = read_record(run_dir)
    assert record is not None
    assert record.num_sent == (run_dir / "metrics.jsonl").stat().st_size
    (run_dir / "run.json").write_text(record.model_copy(update={"num_sent": 0}).model_dump_json())
    tracker(store, run_dir, start=300).close("FINISHED")
    assert history(store, only_run(store)) == list(range(300))


def test_what_was_sent_is_not_sent_again(store: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tracker(store, run_dir)
    log_steps(run, 0, 1)
    run.close("FINISHED")
    sent, log_batch = [], mlflow.MlflowClient.log_batch

    def record(client: mlflow.MlflowClient, run_id: str, metrics: list = (), **rest: list) -> None:  # type: ignore[type-arg]
        sent.extend(metric.step for metric in metrics)
        log_batch(client, run_id, metrics=metrics, **rest)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", record)
    run = tracker(store, run_dir, start=2)
    log_steps(run, 2)
    run.close("FINISHED")
    assert set(sent) == {2}


def test_steps_that_are_done_again_stay_one_row_also_after_two_crashes(store: str, run_dir: Path) -> None:
    # the second and the third go on from a checkpoint of step 2; the second dies before the end of the first
    for start, end in ((0, 6), (2, 4), (2, 6)):
        run = tracker(store, run_dir, start=start)
        log_steps(run, *range(start, end))
        run.close("FAILED")
        time.sleep(0.01)
    steps = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(6))
    assert history(store, only_run(store)) == list(range(6))


DIE = """
import os, signal, sys, time
from pathlib import Path
from train.tracking import Tracker
run = Tracker(sys.argv[1], "test", Path(sys.argv[2]), params={}, tags={}, start=0)
for step in range(4):
    run.log(step, {"train/loss": 1 / (step + 1)})
    while run.run_id is None:
        time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_a_running_run_that_the_next_start_ends(store: str, run_dir: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DIE, store, str(run_dir)]
    done = subprocess.run(command, env=environment, check=False, timeout=120, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert only_run(store).info.status == "RUNNING"
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "time_')  # killed in the middle of a line
    run = tracker(store, run_dir, start=4)
    log_steps(run, 4)
    run.close("FINISHED")
    assert history(store, only_run(store)) == [0, 1, 2, 3, 4]
    assert only_run(store).info.status == "FINISHED"


def test_a_run_whose_id_was_never_written_is_found_by_its_key(store: str, run_dir: Path) -> None:
    run = tracker(store, run_dir)
    run.close("FAILED")
    record = read_record(run_dir)
    assert record is not None
    (run_dir / "run.json").write_text(record.model_copy(update={"mlflow_run_id": None}).model_dump_json())
    client = mlflow.MlflowClient(store)  # and the request was answered twice
    client.create_run(only_run(store).info.experiment_id, tags={"us_jepa.run_key": record.run_key})
    again = tracker(store, run_dir)
    again.close("FINISHED")
    assert again.run_id == run.run_id
    assert only_run(store).info.status == "FINISHED"


def test_the_key_is_on_disk_before_the_run_exists(store: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, create_run = [], mlflow.MlflowClient.create_run

    def record(client: mlflow.MlflowClient, *args: object, **settings: object) -> Run:
        keys.append(json.loads((run_dir / "run.json").read_text())["run_key"])
        return create_run(client, *args, **settings)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", record)
    tracker(store, run_dir).close("FINISHED")
    assert [only_run(store).data.tags["us_jepa.run_key"]] == keys


def test_a_store_that_was_deleted_gets_the_whole_run_again(store: str, migrated: Path, run_dir: Path) -> None:
    run = tracker(store, run_dir)
    log_steps(run, 0, 1)
    run.close("FINISHED")
    for other in ("deleted.db", "moved.db"):  # the same URI with nothing in it; another URI
        uri = store.replace("mlflow.db", other)
        (run_dir.parent / other).write_bytes(migrated.read_bytes())
        if other == "deleted.db":
            record = read_record(run_dir)
            assert record is not None
            (run_dir / "run.json").write_text(record.model_copy(update={"tracking_uri": uri}).model_dump_json())
        tracker(uri, run_dir, start=2).close("FINISHED")
        assert history(uri, only_run(uri)) == [0, 1]


def test_artifacts_wait_in_run_json_and_a_failing_one_does_not_hold_up_the_status(
    store: str, run_dir: Path, impatient: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(train.shipper, "_CLOSE_SECONDS", 1.0)

    def fail(*_: object) -> None:
        raise OSError(28, "no space on the server")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_artifact", fail)
        run = tracker(store, run_dir)
        log_steps(run, 0)
        run.close("FINISHED")
    assert "no space on the server" in caplog.text
    assert (only_run(store).info.status, history(store, only_run(store))) == ("FINISHED", [0])
    (run_dir / "pictures").mkdir()
    (run_dir / "pictures" / "masks.png").write_text("png")
    run = tracker(store, run_dir, start=1)
    run.artifact(run_dir / "pictures", "health")
    run.artifact(run_dir / "gone.png")
    run.close("FINISHED")
    assert "gone.png was to be stored in MLflow, but is no longer there" in caplog.text
    client, run_id = recorded_run(run_dir)
    assert {item.path for item in client.list_artifacts(run_id)} == {"config.yaml", "health"}
    assert [item.path for item in client.list_artifacts(run_id, "health")] == ["health/masks.png"]
    record = read_record(run_dir)
    assert record is not None
    assert record.artifacts == ()
    log_artifacts(run_dir, {"report.html": run_dir / "config.yaml", "export": run_dir / "pictures"})
    assert [item.path for item in client.list_artifacts(run_id, "export")] == ["export/masks.png"]


def test_an_artifact_that_changes_while_it_is_sent_is_sent_again(run_dir: Path) -> None:
    journal = Journal(run_dir, "sqlite:///x.db", EXPERIMENT, start=0)
    journal.add_artifact(Artifact(path=run_dir / "a.png"))
    in_flight = journal.record.artifacts[0]
    journal.add_artifact(Artifact(path=run_dir / "a.png"))
    assert len(journal.record.artifacts) == 1
    journal.remove_artifact(in_flight)
    assert len(journal.record.artifacts) == 1


def test_a_line_has_the_same_time_as_others_of_its_step(run_dir: Path) -> None:
    journal = Journal(run_dir, "sqlite:///x.db", EXPERIMENT, start=0)
    journal.append(3, {"train/loss": 1.0})
    time.sleep(0.01)
    journal.append(3, {"val/loss": 1.0})
    again = Journal(run_dir, "sqlite:///x.db", EXPERIMENT, start=3)
    again.append(3, {"train/loss": 1.0})
    lines, _ = again.unsent(max_lines=9)
    assert lines == [{"step": 3, "time_ms": again.record.redone_times[3], "metrics": {"train/loss": 1.0}}]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("htp://server:5000", "tracking_uri htp://server:5000: MLflow knows no such place; give http://SERVER:PORT"),
        ("./mlruns", "tracking_uri ./mlruns: MLflow knows no such place"),
        ("sqlite:////proc/no/mlflow.db", "tracking_uri sqlite:////proc/no/mlflow.db: cannot be reached"),
    ],
)
def test_a_place_that_cannot_hold_runs_is_refused_at_the_start(uri: str, message: str, run_dir: Path) -> None:
    with pytest.raises(InputError, match=message):
        tracker(uri, run_dir)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "", r"run.json: .*restore it, or delete it"),
        ("run.json", '{"run_key": "a", "tracking_uri": "b", "experiment": 3}', r"run.json: experiment .*string"),
        ("metrics.jsonl", "step 1\n", r"metrics.jsonl: b'step 1\\n' is not a line of ours"),
    ],
)
def test_a_damaged_journal_is_named(name: str, content: str, message: str, store: str, run_dir: Path) -> None:
    (run_dir / name).write_text(content)
    with pytest.raises(InputError, match=message):
        tracker(store, run_dir)


def test_a_journal_that_cannot_be_written_is_named(run_dir: Path) -> None:
    journal = Journal(run_dir, "sqlite:///x.db", EXPERIMENT, start=0)
    (run_dir / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"metrics.jsonl: cannot be written \(.*make room"):
        journal.append(0, {})


def test_an_error_that_nobody_foresaw_is_said_and_tried_again(
    store: str, run_dir: Path, impatient: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("never seen before")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(mlflow.MlflowClient, "log_batch", fail)
        run = tracker(store, run_dir)
        log_steps(run, 0)
        time.sleep(0.5)
    assert caplog.text.count("RuntimeError: never seen before") == 1
    run.close("FINISHED")
    assert history(store, only_run(store)) == [0]


def test_the_commit_is_of_the_image_or_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("US_JEPA_COMMIT", raising=False)
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", git_commit())
    monkeypatch.setenv("PATH", "/nowhere")  # an image has no git
    assert git_commit() == "unknown"
    monkeypatch.setenv("US_JEPA_COMMIT", "abc")
    assert git_commit() == "abc"

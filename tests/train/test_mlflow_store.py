"""Stores that are made by many at once, left by a kill, damaged, or emptied by people; two of them in one process."""

import ast
import shlex
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from threading import Thread

import mlflow
import pytest
from mlflow.tracking import MlflowClient

import train.shipper
from sharding.recording import InputError
from sharding.store import Store
from tests.cases import mlflow_states
from tests.conftest import ROOT
from tests.test_structure import FILES
from tests.train.mlflow_server import Server, wait_until
from train.comparison_runs import Probed, check_record, record_comparison
from train.journal import read_record
from train.mlflow_store import open_client, recorded_run
from train.tracking import Tracker


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with tables: making them is what is slow."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_client(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(migrated: Path, tmp_path: Path) -> str:
    return mlflow_states.copy_of(migrated, tmp_path / "mlflow.db")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow soon, and the end waits for 2 s."""
    for name, seconds in (("_RETRY_SECONDS", 0.2), ("_LAST_RETRY_SECONDS", 0.2), ("_CLOSE_SECONDS", 2.0)):
        monkeypatch.setattr(train.shipper, name, seconds)


def tracker(uri: str, folder: Path, start: int = 0) -> Tracker:
    folder.mkdir(exist_ok=True)
    return Tracker(uri, "test", folder, params={"a": "1"}, tags={"data_sha256": "d"}, start=start)


def finished(uri: str, folder: Path) -> tuple[MlflowClient, str]:
    """A run with the metrics of one step."""
    run = tracker(uri, folder)
    run.log(0, {"loss": 1.0})
    run.close("FINISHED")
    return recorded_run(folder)


def steps(client: MlflowClient, run_id: str) -> list[int]:
    return sorted(point.step for point in client.get_metric_history(run_id, "loss"))


@pytest.mark.launch
def test_many_first_starts_on_one_new_store_all_run(tmp_path: Path) -> None:
    stores = {"sqlite:///relative/mlflow.db": 3, f"sqlite:///{tmp_path}/mlflow.db": 4}
    printed = mlflow_states.start_at_once(tmp_path, stores)
    assert printed[-2:] == [" ".join("0" * number) for number in stores.values()], printed
    for uri, number in stores.items():
        client = open_client(uri.replace("///relative", f"///{tmp_path}/relative"))
        experiment = client.get_experiment_by_name("us-jepa")
        assert experiment is not None
        assert len(client.search_runs([experiment.experiment_id])) == number
        assert experiment.artifact_location.startswith(tmp_path.as_uri())
    waiting = [line for line in printed if "another run is making the store; this one waits for it" in line]
    assert waiting
    assert not [line for line in printed if "Traceback" in line]


def test_who_waits_for_a_store_that_is_being_made_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with Store(tmp_path).locked("mlflow.db"):
        waiting = Thread(target=open_client, args=(uri,))
        waiting.start()
        wait_until(lambda: "another run is making the store; this one waits for it" in caplog.text)
        assert not (tmp_path / "mlflow.db").exists()
    waiting.join()
    assert open_client(uri).search_experiments()


@pytest.mark.launch
@pytest.mark.slow
def test_a_first_start_that_is_killed_leaves_no_broken_store(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    command = [sys.executable, "-c", f"from train.tracking import open_client; open_client({uri!r})"]
    child = subprocess.Popen(command, cwd=ROOT)
    wait_until(lambda: any(path.stat().st_size > 2**16 for path in tmp_path.glob("*mlflow.db*")))  # some tables
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert finished(uri, tmp_path / "run")


@pytest.mark.parametrize(
    ("version", "damage", "cause"),
    [
        ("of another version", "UPDATE alembic_version SET version_num = 'abc'", "out-of-date database schema"),
        ("newer", "UPDATE alembic_version SET version_num = 'abc'; DROP TABLE trace_info", "Can't locate revision"),
        ("halfway", "UPDATE alembic_version SET version_num = '451aebb31d03'; DROP TABLE trace_info", "already exists"),
    ],
)
def test_a_damaged_store_is_one_sentence_whose_advice_works(
    version: str, damage: str, cause: str, store: str, migrated: Path, tmp_path: Path
) -> None:
    finished(mlflow_states.copy_of(migrated, tmp_path / "before.db"), tmp_path / "run")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.executescript(damage)
    with pytest.raises(
        InputError, match=r"mlflow.db: is damaged, or of another version of MLflow \(.*with `mv"
    ) as said:
        tracker(store, tmp_path / "run", start=1)
    assert cause in str(said.value), (version, str(said.value))
    subprocess.run(shlex.split(str(said.value).split("`")[1]), check=True)
    mlflow_states.copy_of(migrated, tmp_path / "mlflow.db")  # as the next start makes it, slowly
    uri = store.replace("/mlflow.db", "//mlflow.db")  # by another name: MLflow keeps the old file open in this process
    tracker(uri, tmp_path / "run", start=1).close("FINISHED")
    assert steps(*recorded_run(tmp_path / "run")) == [0]


def test_a_deleted_experiment_is_an_error_at_the_start_until_the_printed_command_restores_it(
    store: str, tmp_path: Path
) -> None:
    client, run_id = finished(store, tmp_path / "run")
    mlflow_states.delete_experiment(client, run_id)
    for folder in ("run", "another"):  # a run that is there, and a new one
        with pytest.raises(InputError, match=r"mlflow.db: experiment test was deleted; restore it with `") as said:
            tracker(store, tmp_path / folder, start=1)
    with pytest.raises(InputError, match=r"run \S+run: .* experiment test was deleted; restore it with `"):
        recorded_run(tmp_path / "run")
    assert mlflow_states.run_command_of(str(said.value)) == 0
    tracker(store, tmp_path / "run", start=1).close("FINISHED")
    assert recorded_run(tmp_path / "run")[1] == run_id


def test_an_experiment_with_another_name_keeps_its_run(store: str, tmp_path: Path) -> None:
    client, run_id = finished(store, tmp_path / "run")
    mlflow_states.rename_experiment(client, run_id)
    run = tracker(store, tmp_path / "run", start=1)
    run.log(1, {"loss": 0.5})
    run.close("FINISHED")
    assert recorded_run(tmp_path / "run")[1] == run_id
    assert steps(client, run_id) == [0, 1]


def test_a_deleted_run_that_goes_on_is_restored_at_the_start_and_in_the_midst(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client, run_id = finished(store, tmp_path / "run")
    mlflow_states.delete_run(client, run_id)
    with pytest.raises(InputError, match=r"run \S+run: MLflow .* it was deleted; restore it with `.*runs restore"):
        recorded_run(tmp_path / "run")
    run = tracker(store, tmp_path / "run", start=1)
    wait_until(lambda: client.get_run(run_id).info.status == "RUNNING")
    assert client.get_run(run_id).info.lifecycle_stage == "active"
    mlflow_states.delete_run(client, run_id)
    run.log(1, {"loss": 0.5})
    run.close("FINISHED")
    assert caplog.text.count("run run was deleted in MLflow at") == 2
    info = client.get_run(run_id).info
    assert (info.lifecycle_stage, info.status, steps(client, run_id)) == ("active", "FINISHED", [0, 1])


def test_an_experiment_that_is_deleted_in_the_midst_is_one_true_sentence_at_the_end(
    store: str, tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    run = tracker(store, tmp_path / "run")
    wait_until(lambda: (record := read_record(tmp_path / "run")) and record.mlflow_run_id)
    client, run_id = recorded_run(tmp_path / "run")
    mlflow_states.delete_experiment(client, run_id)
    run.log(0, {"loss": 1.0})
    run.close("FINISHED")
    last = caplog.records[-1].getMessage()
    assert "did not take all of run run with its status FINISHED (MLflow at" in last
    assert "is sent when that is put right and the same command runs again" in last
    assert mlflow_states.run_command_of(last) == 0
    tracker(store, tmp_path / "run", start=1).close("FINISHED")
    assert steps(client, run_id) == [0]
    assert client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.launch
@pytest.mark.slow
def test_a_server_whose_experiment_is_deleted_is_said_at_the_start_and_gets_all_when_it_is_restored(
    store: str, tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(tmp_path / "mlflow.db")
    try:
        server.start()
        client, run_id = finished(server.uri, tmp_path / "run")
        mlflow_states.delete_experiment(client, run_id)
        run = tracker(server.uri, tmp_path / "run", start=1)
        run.log(1, {"loss": 0.5})
        wait_until(lambda: "experiment test was deleted; restore it with `" in caplog.text)
        assert mlflow_states.run_command_of(caplog.text) == 0
        run.close("FINISHED")
        assert steps(client, run_id) == [0, 1]
    finally:
        server.kill()


def probed(*run_dirs: Path) -> list[Probed]:
    return [
        Probed(run.name, run.name * 8, run, ("one", "1" * 64), {"encoder": run.name}, {"probe/auroc": 0.5})
        for run in run_dirs
    ]


def contents(client: MlflowClient) -> tuple[set[str], set[str]]:
    """Names of the runs and of the models."""
    found = [one.experiment_id for one in client.search_experiments()]
    return (
        {str(run.info.run_name) for run in client.search_runs(found)},
        {str(model.name) for model in client.search_logged_models(found)},
    )


def test_a_comparison_of_runs_in_two_stores_leaves_each_with_what_is_its_own(
    migrated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stores = [mlflow_states.copy_of(migrated, tmp_path / name) for name in ("first.db", "second.db")]
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    (_, first), _ = (finished(uri, tmp_path / name) for uri, name in zip(stores, ("aa", "bb"), strict=True))
    out = tmp_path / "out"
    out.mkdir()
    parent = record_comparison(out, probed(tmp_path / "aa", tmp_path / "bb"), [])
    one, two = map(open_client, stores)
    assert contents(one) == ({"aa", "comparison out", "one: aa", "one: bb"}, {"aa", "bb"})
    assert contents(two) == ({"bb"}, set())
    runs = {run.info.run_name: run.data.tags for run in one.search_runs([one.get_run(parent).info.experiment_id])}
    assert runs["one: aa"]["us_jepa.pretraining"] == first
    assert "us_jepa.pretraining" not in runs["one: bb"]
    assert runs["one: bb"]["data_sha256"] == "d"
    assert f"run {tmp_path / 'bb'}: is in MLflow at {stores[1]}, and the comparison at" in caplog.text
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == before


def test_a_comparison_is_refused_at_the_start_where_its_experiment_is_deleted(store: str, tmp_path: Path) -> None:
    client, run_id = finished(store, tmp_path / "run")
    out = tmp_path / "out"
    out.mkdir()
    check_record(out, [tmp_path / "run"])
    mlflow_states.delete_experiment(client, run_id)
    with pytest.raises(InputError, match=r"experiment test was deleted; restore it with `") as said:
        check_record(out, [tmp_path / "run"])
    assert mlflow_states.run_command_of(str(said.value)) == 0
    check_record(out, [tmp_path / "run"])


def test_a_deleted_comparison_is_restored_and_a_deleted_pretraining_is_not(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client, run_id = finished(store, tmp_path / "run")
    out = tmp_path / "out"
    out.mkdir()
    parent = record_comparison(out, probed(tmp_path / "run"), [])
    mlflow_states.delete_run(client, parent)
    mlflow_states.delete_run(client, run_id)
    check_record(out, [tmp_path / "run"])
    assert "it was deleted; restore it with `MLFLOW_TRACKING_URI=" in caplog.text
    assert record_comparison(out, probed(tmp_path / "run"), []) == parent
    assert client.get_run(parent).info.lifecycle_stage == "active"
    assert client.get_run(run_id).info.lifecycle_stage == "deleted"
    assert "run comparison out was deleted in MLflow at" in caplog.text


def fluent_calls(source: str) -> set[str]:
    """What a module takes from MLflow's global half: `mlflow.NAME`, and its modules `fluent`."""
    tree = ast.walk(ast.parse(source))
    used = {ast.unparse(node) for node in tree if isinstance(node, ast.Attribute)}
    imported = {node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    setters = {name for name in used if name.rpartition(".")[2] in ("set_tracking_uri", "set_registry_uri")}
    fluent = {name for name in used if name.startswith("mlflow.")} - {"mlflow.pyfunc", "mlflow.pyfunc.save_model"}
    return setters | fluent | {name for name in imported if "fluent" in name or name == "mlflow"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_uses_the_global_half_of_mlflow(path: Path) -> None:
    assert not fluent_calls(path.read_text())


def test_the_rule_finds_what_it_forbids() -> None:
    assert fluent_calls("import mlflow\nmlflow.set_tracking_uri('x')") == {"mlflow.set_tracking_uri"}
    assert fluent_calls("from mlflow import log_metric") == {"mlflow"}
    assert fluent_calls("import mlflow.pyfunc\nmlflow.pyfunc.log_model('x')") == {"mlflow.pyfunc.log_model"}
    assert not fluent_calls("import mlflow.pyfunc\nmlflow.pyfunc.save_model('x')")

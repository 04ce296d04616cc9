"""MLflow's record of a comparison: linked to pretraining, model and data, and the same however often it is sent."""

import json
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from train.comparison_runs import RECORD, STAGE_TAG, Probed, record_comparison
from train.mlflow_store import open_client
from train.tracking import Tracker


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with tables: making them is what is slow."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_client(f"sqlite:///{path}")
    return path


@pytest.fixture
def run_dir(migrated: Path, tmp_path: Path) -> Path:
    """A finished pretraining in a store of its own."""
    (tmp_path / "mlflow.db").write_bytes(migrated.read_bytes())
    run = tmp_path / "student"
    run.mkdir()
    (run / "config.yaml").write_text("objective: salt\n")
    tags = {"data_sha256": "d" * 64, "objective": "salt"}
    Tracker(f"sqlite:///{tmp_path}/mlflow.db", "test", run, params={"a": "1"}, tags=tags, start=0).close("FINISHED")
    return run


@pytest.fixture
def probed(run_dir: Path) -> list[Probed]:
    return [
        Probed(name, identity, place, (data, data * 20), {"encoder": name, "dataset": data}, {"probe/macro_f1": score})
        for name, identity, place, score in (("student", "1" * 64, run_dir, 0.7), ("pixels", "2" * 64, None, 0.6))
        for data in ("one", "two")
    ]


def runs_by_name(client: mlflow.MlflowClient) -> dict[str, mlflow.entities.Run]:
    found = client.search_runs(["1"])
    by_name = {run.data.tags["mlflow.runName"]: client.get_run(run.info.run_id) for run in found}
    assert len(by_name) == len(found)
    return by_name


def test_probes_are_linked_to_comparison_pretraining_model_and_data(
    run_dir: Path, probed: list[Probed], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.json").write_text("{}")
    parent = record_comparison(out, probed, [out / "results.json"])
    client = open_client(f"sqlite:///{tmp_path}/mlflow.db")
    runs = runs_by_name(client)
    pretraining = runs["student"].info.run_id
    assert runs["comparison out"].info.run_id == parent == json.loads((out / RECORD).read_text())["run_id"]
    assert runs["comparison out"].data.tags["mlflow.parentRunId"] == pretraining
    child = runs["one: student"]
    assert child.data.tags["mlflow.parentRunId"] == parent
    assert child.data.tags["us_jepa.pretraining"] == pretraining
    assert (child.data.tags["data_sha256"], child.data.tags[STAGE_TAG]) == ("d" * 64, "probe")
    assert child.data.metrics == {"probe/macro_f1": 0.7}
    assert [one.dataset.name for one in child.inputs.dataset_inputs] == ["one"]
    models = {model.name: model for model in client.search_logged_models(["1"])}
    assert set(models) == {"student", "pixels"}  # one per checkpoint, not per set
    assert models["student"].source_run_id == pretraining
    assert {(m.dataset_name, m.value) for m in models["student"].metrics} == {("one", 0.7), ("two", 0.7)}
    assert [one.model_id for one in child.inputs.model_inputs] == [models["student"].model_id]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert [item.path for item in client.list_artifacts(parent)] == ["results.json"]


def test_sent_again_or_after_a_kill_it_is_the_same_record(
    run_dir: Path, probed: list[Probed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    create = mlflow.MlflowClient.create_run

    def die(client: mlflow.MlflowClient, *args: object, **settings: object) -> None:
        create(client, *args, **settings)
        raise KeyboardInterrupt  # MLflow has made the run, nobody has read its id

    client = open_client(f"sqlite:///{tmp_path}/mlflow.db")
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "create_run", die)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                record_comparison(out, probed, [])
    first = record_comparison(out, probed, [])
    assert record_comparison(out, probed, []) == first
    runs = runs_by_name(client)
    assert len(runs) == 1 + 1 + len(probed)
    assert len(client.get_metric_history(runs["two: pixels"].info.run_id, "probe/macro_f1")) == 1
    other = [replace(probed[0], params=probed[0].params | {"protocols": "paper"})]
    assert record_comparison(out, other, []) == first
    assert len(client.search_runs(["1"])) == 2 + len(probed) + 1


def test_encoders_of_strangers_go_to_the_usual_store(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "usual.db").write_bytes(migrated.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/usual.db")
    probe = Probed("vit: a/b.c", "3" * 64, None, ("one", "1" * 64), {"encoder": "x"}, {"probe/auroc": 0.5})
    record_comparison(tmp_path, [probe], [])
    client = open_client(f"sqlite:///{tmp_path}/usual.db")
    assert set(runs_by_name(client)) == {f"comparison {tmp_path.name}", "one: vit: a/b.c"}
    assert [model.name for model in client.search_logged_models(["1"])] == ["vit- a-b-c"]


def test_a_pretraining_that_the_store_has_lost_is_said_and_the_scores_are_kept(
    run_dir: Path, migrated: Path, probed: list[Probed], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mlflow.db").write_bytes(migrated.read_bytes())  # a store without the run
    out = tmp_path / "out"
    out.mkdir()
    record_comparison(out, probed, [])
    assert f"run {run_dir}: MLflow at sqlite:///{tmp_path}/mlflow.db does not have it" in caplog.text
    runs = runs_by_name(open_client(f"sqlite:///{tmp_path}/mlflow.db"))
    assert runs["one: student"].data.metrics["probe/macro_f1"] == 0.7
    assert "us_jepa.pretraining" not in runs["one: student"].data.tags

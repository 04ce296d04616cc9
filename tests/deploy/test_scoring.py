"""`mlflow models serve` of the model that is logged, with uploads in base64."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from deploy.scoring import Scorer, log_to_mlflow
from deploy.upload import UploadLimits
from eval.encoders import open_encoder
from tests.conftest import ROOT
from tests.deploy.server import Server, free_port
from train.journal import Journal
from train.mlflow_store import experiment_id, open_client, recorded_run


@pytest.fixture(scope="module")
def run_dir(small_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is in MLflow."""
    folder = tmp_path_factory.mktemp("logged") / "student"
    folder.mkdir()
    (folder / "encoder").symlink_to(small_encoder)
    uri = f"sqlite:///{folder.parent / 'mlflow.db'}"
    client = open_client(uri)
    run = client.create_run(experiment_id(client, "tiny"))
    Journal(folder, uri, "tiny", 0).update(mlflow_run_id=run.info.run_id)
    return folder


def test_the_scorer_says_what_the_server_says(small_encoder: Path, guarded: Server, labelled: Path) -> None:
    scorer = Scorer(open_encoder(str(small_encoder)), UploadLimits(num_bytes=1 << 20))
    data = (labelled / "r0000_0.dcm").read_bytes()
    found, text, large = scorer.predict({"upload": [data, b"hello", bytes(2 << 20)]})
    wanted = guarded.ask("/embed", data).json()
    assert found["model"] == wanted["model"]
    vectors = [np.array([frame["vector"] for frame in answer["frames"]]) for answer in (found, wanted)]  # type: ignore[index]
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-4
    assert text["reason"] == "not_readable_kind"
    assert large["reason"] == "body_too_large"


@contextmanager
def scoring(model: str, uri: str, folder: Path) -> Iterator[str]:
    """Address of MLflow's scoring server."""
    port = free_port()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # it looks for uvicorn there
    settings = {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT), "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], cwd=folder, env=os.environ | settings, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 120
        while not answers(f"{address}/health"):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.mark.slow
def test_mlflow_serves_the_logged_model(run_dir: Path, guarded: Server, labelled: Path) -> None:
    model = log_to_mlflow(run_dir)
    client, run_id = recorded_run(run_dir)
    logged, run = client.get_logged_model(model.removeprefix("models:/")), client.get_run(run_id)
    assert (logged.source_run_id, logged.experiment_id) == (run_id, run.info.experiment_id)
    assert logged.status == "READY"
    assert logged.artifact_location.startswith(f"file://{run_dir.parent}")
    assert run.info.status == "RUNNING"  # as it was
    data = (labelled / "r0000_0.dcm").read_bytes()
    with scoring(model, f"sqlite:///{run_dir.parent / 'mlflow.db'}", run_dir.parent) as address:
        rows = [{"upload": base64.b64encode(one).decode()} for one in (data, b"hello")]
        body = json.dumps({"dataframe_records": rows}).encode()
        wanted = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
        found, refused = json.load(urllib.request.urlopen(wanted, timeout=60))["predictions"]
    clip = guarded.ask("/embed", data).json()["clips"][0]
    assert np.abs(np.array(found["clips"][0]["vector"]) - clip["vector"]).max() < 1e-4
    assert refused["reason"] == "not_readable_kind"

"""MLflow, on rank 0 alone. The only importer of mlflow.

Metrics go first into `metrics.jsonl` of the run directory; a thread sends them on. Training never waits for a
server: what could not be sent is in the journal, and the next start of the run sends it again. MLflow keeps one row
per (metric, step, value, time), so sending twice is harmless.
"""

import json
import logging
import os
import queue
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default blocks four minutes on a dead server
import mlflow
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from sharding.recording import InputError

_RETRY_SECONDS = 5.0
_CLOSE_SECONDS = 30.0
_log = logging.getLogger(__name__)


def tracking_uri(configured: str | None) -> str:
    """The URI that the config names, else MLFLOW_TRACKING_URI, else sqlite in ./build."""
    default = f"sqlite:///{Path.cwd() / 'build' / 'mlflow.db'}"
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or default


def open_client(uri: str) -> MlflowClient:
    """Client of a store; a sqlite file is made, with its folder, when it does not exist.

    Raises:
        InputError: the store cannot be reached.

    """
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    try:
        client.search_experiments(max_results=1)
    except MlflowException as error:
        raise InputError(f"tracking_uri {uri}: cannot be reached; start it with `make ui`, or name another") from error
    return client


def experiment_id(client: MlflowClient, name: str) -> str:
    """Id of an experiment, made when it does not exist, with artifacts beside a sqlite file."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    uri = client.tracking_uri
    store = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" if uri.startswith("sqlite:///") else None
    return str(client.create_experiment(name, artifact_location=None if store is None else f"{store.as_uri()}"))


def start_child(client: MlflowClient, parent: Run, name: str, params: dict[str, str]) -> str:
    """Start a run below a finished one and return its id."""
    tags = {"mlflow.parentRunId": parent.info.run_id, "mlflow.runName": name, "git_commit": git_commit()}
    run_id = str(client.create_run(parent.info.experiment_id, tags=tags).info.run_id)
    for key, value in params.items():
        client.log_param(run_id, key, value)
    return run_id


def git_commit() -> str:
    """Commit of the code, `unknown` outside a checkout; `-dirty` when files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


class Tracker:
    """The record of one run, over all its restarts.

    Args:
        uri: of the MLflow store.
        experiment: name of the experiment.
        run_dir: run directory; `run.json` keeps the MLflow run id.
        params: what never changes during a run.
        tags: what may change when it is resumed.
        start: first step that will be logged; journal lines from there on are dropped.

    """

    def __init__(
        self, uri: str, experiment: str, run_dir: Path, *, params: dict[str, str], tags: dict[str, str], start: int
    ) -> None:
        self._client = open_client(uri)
        self._journal = run_dir / "metrics.jsonl"
        self.run_id = self._open_run(experiment, run_dir, params)
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, value)
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._closing = threading.Event()
        self._unsent = 0
        kept, self._dropped_times = self._rewind(start)
        for line in kept:
            self._queue.put(line)
        self._thread = threading.Thread(target=self._ship, daemon=True)
        self._thread.start()

    def _open_run(self, experiment: str, run_dir: Path, params: dict[str, str]) -> str:
        record = run_dir / "run.json"
        if record.exists():
            run_id = str(json.loads(record.read_text())["mlflow_run_id"])
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        run = self._client.create_run(experiment_id(self._client, experiment), run_name=run_dir.name)
        for key, value in params.items():
            self._client.log_param(run.info.run_id, key, value)
        record.write_text(json.dumps({"mlflow_run_id": run.info.run_id, "tracking_uri": self._client.tracking_uri}))
        return str(run.info.run_id)

    def _rewind(self, start: int) -> tuple[list[dict[str, Any]], dict[int, int]]:
        """Cut the journal back to `start`. Steps that are done again keep their time, so equal values stay one row."""
        if not self._journal.exists():
            return [], {}
        lines = [json.loads(line) for line in self._journal.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in lines if line["step"] < start]
        self._journal.write_text("".join(json.dumps(line) + "\n" for line in kept))
        return kept, {line["step"]: line["time_ms"] for line in lines if line["step"] >= start}

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write metrics of a step to the journal and hand them to the sending thread."""
        time_ms = self._dropped_times.get(step, time.time_ns() // 1_000_000)
        line = {"step": step, "time_ms": time_ms, "metrics": metrics}
        with self._journal.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._queue.put(line)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file or a folder with the run."""
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), folder)
        else:
            self._client.log_artifact(self.run_id, str(path), folder)

    def close(self, status: str) -> None:
        """Send what is left and end the run as FINISHED, FAILED or KILLED."""
        self._queue.put(None)
        self._closing.set()
        self._thread.join(_CLOSE_SECONDS)
        if self._unsent or self._thread.is_alive():
            _log.warning("%d metric lines did not reach MLflow; they are in %s", self._unsent, self._journal)
        try:
            self._client.set_terminated(self.run_id, status)
        except MlflowException:
            _log.warning("MLflow did not take the status %s of run %s", status, self.run_id)

    def _ship(self) -> None:
        while (line := self._queue.get()) is not None:
            rows = [Metric(key, value, line["time_ms"], line["step"]) for key, value in line["metrics"].items()]
            while not self._sent(rows):
                if self._closing.wait(_RETRY_SECONDS):
                    self._unsent += 1
                    break

    def _sent(self, rows: list[Metric]) -> bool:
        try:
            self._client.log_batch(self.run_id, metrics=rows)
        except MlflowException as error:
            _log.warning("MLflow does not answer (%s); metrics wait in the journal", type(error).__name__)
            return False
        return True


def log_artifacts(run_dir: Path, artifacts: dict[str, Path]) -> None:
    """Store files and folders with a finished run; the keys are their names there."""
    record = json.loads((run_dir / "run.json").read_text())
    client = open_client(record["tracking_uri"])
    for name, path in artifacts.items():
        if path.is_dir():
            client.log_artifacts(record["mlflow_run_id"], str(path), name)
        else:
            client.log_artifact(record["mlflow_run_id"], str(path))

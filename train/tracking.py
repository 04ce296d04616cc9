"""MLflow, on rank 0 alone. The only importer of mlflow.

Training never waits for a server: everything goes into the journal of the run directory first (train/journal.py).
"""

import logging
import os
import queue
import re
import shutil
import subprocess
from functools import partial
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default blocks four minutes on a dead server
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")  # seconds; the default is two minutes
import mlflow
from mlflow.entities import Dataset, DatasetInput, LoggedModelInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, Schema
from sqlalchemy.exc import SQLAlchemyError

from sharding.recording import InputError
from sharding.store import sync
from train.environment import environment
from train.journal import Artifact, Journal, read_record
from train.shipper import Shipper

_KINDS = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
_KEY_TAG = "us_jepa.run_key"
_IDENTITY_TAG = "us_jepa.identity"
_LINES_PER_BATCH = 200  # of the journal; about 3000 rows
_SLOWEST_UPLOAD = 2**20  # bytes per second
_log = logging.getLogger(__name__)


def tracking_uri(configured: str | None) -> str:
    """The URI that the config names, else MLFLOW_TRACKING_URI, else sqlite in ./build."""
    default = f"sqlite:///{Path.cwd() / 'build' / 'mlflow.db'}"
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or default


def check_uri(uri: str) -> None:
    """Raise InputError when MLflow keeps runs at no such kind of place."""
    kind = uri.partition(":")[0].partition("+")[0]
    if kind not in _KINDS:
        raise InputError(
            f"tracking_uri {uri}: MLflow knows no such place; give http://SERVER:PORT or sqlite:////FOLDER/mlflow.db "
            f"(known: {', '.join(_KINDS)})"
        )


def open_client(uri: str) -> MlflowClient:
    """Client of a store; a sqlite file is made, with its folder, when it does not exist.

    Raises:
        InputError: MLflow knows no such store, or it cannot be reached.

    """
    check_uri(uri)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)
    try:
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        cause = str(error).partition("\n")[0]
        raise InputError(
            f"tracking_uri {uri}: cannot be reached ({cause}); start it with `make ui`, or name another"
        ) from error
    return client


def experiment_id(client: MlflowClient, name: str) -> str:
    """Id of an experiment, made when it does not exist, with artifacts beside a sqlite file."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    uri = client.tracking_uri
    store = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" if uri.startswith("sqlite:///") else None
    return str(client.create_experiment(name, artifact_location=None if store is None else f"{store.as_uri()}"))


def keyed_run(client: MlflowClient, experiment: str, key: str, tags: dict[str, str]) -> str:
    """Id of the run with this key in an experiment (id), made when there is none; `tags` are those of a new run.

    The process may have died, or the answer been lost, after MLflow had made it: so ask first. A request that the
    client repeated may have made two: the older one is ours, the younger one holds nothing.
    """
    ask = partial(client.search_runs, [experiment], f"tags.`{_KEY_TAG}` = '{key}'", order_by=["attributes.start_time"])
    if not (found := ask()):
        client.create_run(experiment, tags=tags | {_KEY_TAG: key})
        found = ask()
    for double in found[1:]:
        client.delete_run(double.info.run_id)
    return str(found[0].info.run_id)


def log_scores(
    client: MlflowClient, run_id: str, scores: dict[str, float], dataset: tuple[str, str], model_id: str, time_ms: int
) -> None:
    """Metrics of a run that belong to a model and a data set, given as name and digest; the same again is no change."""
    name, digest = dataset
    where = {"model_id": model_id, "dataset_name": name, "dataset_digest": digest, "run_id": run_id}
    described = DatasetInput(Dataset(name, digest, source_type="local", source="{}"))
    client.log_inputs(run_id, [described], [LoggedModelInput(model_id)])
    client.log_batch(run_id, metrics=[Metric(key, value, time_ms, 0, **where) for key, value in scores.items()])


def external_model(client: MlflowClient, experiment: str, name: str, identity: str, source_run: str | None) -> str:
    """Id of the model with these weights in an experiment (id), registered when it is not there yet; nothing is copied.

    Args:
        client: of the store.
        experiment: id.
        name: what the list of models shows.
        identity: sha256 over weights and preprocessing.
        source_run: id of the run that trained it.

    """
    for known in client.search_logged_models([experiment], filter_string=f"tags.`{_IDENTITY_TAG}` = '{identity}'"):
        return str(known.model_id)
    shown = re.sub(r"[^A-Za-z0-9_ -]+", "-", name)  # MLflow takes no dots, slashes or colons
    made = mlflow.create_external_model(
        shown, source_run, {_IDENTITY_TAG: identity}, model_type="encoder", experiment_id=experiment
    )
    return str(made.model_id)


def log_loadable(client: MlflowClient, run_id: str, loader: str, data: Path, column: str) -> str:
    """Log a folder as a model of a run that `mlflow models serve` runs; returns its URI, models:/ID.

    Args:
        client: of the store.
        run_id: that trained it; neither its status nor its times change.
        loader: module with `_load_pyfunc(path)`; us-jepa must be installed where it is served.
        data: folder that the loader is given a copy of.
        column: of the table that predict() is given, bytes (base64 in JSON).

    """
    mlflow.set_tracking_uri(client.tracking_uri)
    experiment = client.get_run(run_id).info.experiment_id  # Model.log alone takes the default one
    made = client.create_logged_model(experiment, name="encoder", source_run_id=run_id, model_type="encoder")
    logged = Model.log(
        None,
        mlflow.pyfunc,
        run_id=run_id,
        model_id=made.model_id,
        loader_module=loader,
        data_path=str(data),
        signature=ModelSignature(inputs=Schema([ColSpec("binary", column)])),
        pip_requirements=[f"us-jepa[serve]=={version('us-jepa')}"],
    )
    return str(logged.model_uri)


def git_commit() -> str:
    """Commit of the code: what the image says ($US_JEPA_COMMIT), else of the checkout, with `-dirty` when files differ.

    `unknown` where there is neither, or no git.
    """
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    said = os.environ.get("US_JEPA_COMMIT", "")
    if said or shutil.which("git") is None:
        return said or "unknown"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


class Tracker:
    """The record of one run, over all its restarts and world sizes. Only rank 0 has one.

    All that is said goes into the run directory first; a thread sends it on, and makes the run in MLflow when a server
    answers. What did not arrive is sent by the next start of the run. A run whose process was killed with signal 9
    stays RUNNING in MLflow until then: nobody is left to say otherwise.

    Args:
        uri: of the MLflow store.
        experiment: name of the experiment.
        run_dir: run directory; its config.yaml is stored at once.
        params: what never changes during a run.
        tags: what may change when it is resumed; the environment and the commit come with them.
        start: first step that will be logged; journal lines from there on are dropped.

    Raises:
        InputError: no URI that MLflow knows, a sqlite file that cannot be opened, or a damaged journal. A server that
            does not answer is a warning.

    """

    def __init__(
        self, uri: str, experiment: str, run_dir: Path, *, params: dict[str, str], tags: dict[str, str], start: int
    ) -> None:
        check_uri(uri)
        self._client = open_client(uri) if uri.startswith("sqlite:") else None  # a server may be asked later
        self._journal = Journal(run_dir, uri, experiment, start)
        self._run_name, self._params = run_dir.resolve().name, params
        self._tags = environment() | {"git_commit": git_commit()} | tags
        self._is_open, self._status = False, ""
        self._changed_tags: queue.Queue[RunTag] = queue.Queue()
        if (run_dir / "config.yaml").exists():
            self._journal.add_artifact(Artifact(path=(run_dir / "config.yaml").resolve()))
        self._shipper = Shipper(f"MLflow at {uri}", self._send)
        self._shipper.start()

    @property
    def run_id(self) -> str | None:
        """Of MLflow; None until it has answered."""
        return self._journal.record.mlflow_run_id

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write metrics of a step to the journal; the thread sends them.

        Raises:
            InputError: the journal cannot be written.

        """
        self._journal.append(step, metrics)
        self._shipper.wake()

    def tag(self, key: str, value: str) -> None:
        """Set what changes as the run goes on."""
        self._changed_tags.put(RunTag(key, value))
        self._shipper.wake()

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file or a folder with the run, as it is when its turn comes."""
        self._journal.add_artifact(Artifact(path=path.resolve(), folder=folder))
        self._shipper.wake()

    def close(self, status: str) -> None:
        """Send what is left and end the run as FINISHED, FAILED or KILLED; wait for a dead server 30 s at most."""
        self._status = status
        if not self._shipper.close():
            _log.warning(
                "MLflow at %s did not take all of run %s with its status %s (%s); the rest is in %s and in run.json "
                "beside it, and is sent when the same command runs again",
                self._journal.record.tracking_uri, self._run_name, status, self._shipper.trouble or "no answer",
                self._journal.path,
            )  # fmt: skip

    def _send(self) -> None:
        """Everything that MLflow lacks, the status before artifacts: they may be long or fail."""
        client = self._client = self._client or open_client(self._journal.record.tracking_uri)
        if not self._is_open:
            self._open_run(client)
        run_id = str(self.run_id)
        self._send_metrics(client, run_id)
        while not self._changed_tags.empty():
            client.log_batch(run_id, tags=[self._changed_tags.queue[0]])
            self._changed_tags.get()  # now that it has arrived
        if self._status:
            client.set_terminated(run_id, self._status)
        for artifact in self._journal.record.artifacts:
            self._send_artifact(client, run_id, artifact)

    def _open_run(self, client: MlflowClient) -> None:
        """Reopen the run, or make it; set what is known of it."""
        record, run_id = self._journal.record, self.run_id
        if run_id is None or not run_exists(client, run_id):
            experiment = experiment_id(client, record.experiment)
            run_id = keyed_run(client, experiment, record.run_key, {"mlflow.runName": self._run_name})
            self._journal.update(mlflow_run_id=run_id, num_sent=0)
        known = client.get_run(run_id).data.params
        client.update_run(run_id, status="RUNNING")
        # what changes results cannot differ here, the config was compared; MLflow refuses a second value
        params = [Param(key, value) for key, value in self._params.items() if key not in known]
        client.log_batch(run_id, params=params, tags=[RunTag(key, value) for key, value in self._tags.items()])
        self._is_open = True

    def _send_metrics(self, client: MlflowClient, run_id: str) -> None:
        if self._journal.path.exists():
            sync(self._journal.path)  # here, not in `log`: training must not wait for the disk
        while True:
            lines, num_sent = self._journal.unsent(_LINES_PER_BATCH)
            if not lines:
                return
            rows = [
                Metric(k, value, line["time_ms"], line["step"])
                for line in lines
                for k, value in line["metrics"].items()
            ]
            client.log_batch(run_id, metrics=rows)
            self._journal.update(num_sent=num_sent)
            self._shipper.progressed()

    def _send_artifact(self, client: MlflowClient, run_id: str, artifact: Artifact) -> None:
        path = artifact.path
        if path.exists():
            self._shipper.expects(str(path), artifact.num_bytes() / _SLOWEST_UPLOAD)
            send_artifact(client, run_id, path, artifact.folder)
            self._shipper.progressed()
        else:
            _log.warning("%s was to be stored in MLflow, but is no longer there", path)
        self._journal.remove_artifact(artifact)


def run_exists(client: MlflowClient, run_id: str) -> bool:
    """Whether the store still has the run; a sqlite file may have been deleted."""
    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def recorded_run(run_dir: Path) -> tuple[MlflowClient, str]:
    """The MLflow store of a run directory, and the id of the run in it.

    Raises:
        InputError: no run there, none in MLflow yet, or the store cannot be reached.

    """
    record = read_record(run_dir)
    if record is None or record.mlflow_run_id is None:
        raise InputError(
            f"run {run_dir}: is not in MLflow yet; run `deepspeed train/pretrain.py --config {run_dir}/config.yaml` "
            "again while the server is up"
        )
    return open_client(record.tracking_uri), record.mlflow_run_id


def send_artifact(client: MlflowClient, run_id: str, path: Path, folder: str | None) -> None:
    """Store a file, or what is in a folder, with a run."""
    if path.is_dir():
        client.log_artifacts(run_id, str(path), folder)
    else:
        client.log_artifact(run_id, str(path), folder)


def log_artifacts(run_dir: Path, artifacts: dict[str, Path]) -> None:
    """Store files and folders with a finished run; the keys are the names of folders there."""
    client, run_id = recorded_run(run_dir)
    for name, path in artifacts.items():
        send_artifact(client, run_id, path, name if path.is_dir() else None)

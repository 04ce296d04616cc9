"""What MLflow keeps of runs: metrics, artifacts, models; and the record of a pretraining, on rank 0 alone.

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
from tempfile import TemporaryDirectory

import mlflow.pyfunc
from mlflow.entities import (
    Dataset,
    DatasetInput,
    LifecycleStage,
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.models.utils import get_external_mlflow_model_spec
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, Schema

from sharding.store import sync
from train.environment import environment
from train.journal import Artifact, Journal
from train.mlflow_store import (
    check_uri,
    existing_experiment,
    experiment_id,
    in_one_sentence,
    open_client,
    recorded_run,
    restore_deleted,
    run_exists,
)
from train.shipper import Shipper

_KEY_TAG = "us_jepa.run_key"
_IDENTITY_TAG = "us_jepa.identity"
_LINES_PER_BATCH = 200  # of the journal; about 3000 rows
_NOT_THERE = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")  # what MLflow says of deleted and of lost runs
_SLOWEST_UPLOAD = 2**20  # bytes per second
_log = logging.getLogger(__name__)


def keyed_run(client: MlflowClient, experiment: str, key: str, tags: dict[str, str]) -> str:
    """Id of the run with this key in an experiment (id), made when there is none; `tags` are those of a new run.

    The process may have died, or the answer been lost, after MLflow had made it: so ask first. A request that the
    client repeated may have made two: the older one is ours, the younger one holds nothing. One that somebody deleted
    is restored.
    """
    order, which = ["attributes.start_time"], f"tags.`{_KEY_TAG}` = '{key}'"
    ask = partial(client.search_runs, [experiment], which, ViewType.ALL, order_by=order)
    if not (known := ask()):
        client.create_run(experiment, tags=tags | {_KEY_TAG: key})
        known = ask()
    alive = [run for run in known if run.info.lifecycle_stage == LifecycleStage.ACTIVE]
    first, *doubles = alive or known[:1]
    restore_deleted(client, first.info.run_id, str(first.info.run_name))
    for double in doubles:
        client.delete_run(double.info.run_id)
    return str(first.info.run_id)


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
    tags = {_IDENTITY_TAG: identity, "mlflow.model.isExternal": "true"}
    made = client.create_logged_model(experiment, shown, source_run, tags, model_type="encoder")
    with TemporaryDirectory() as scratch:
        get_external_mlflow_model_spec(made).save(f"{scratch}/MLmodel")
        _upload_model(client, made, Path(scratch))
    return str(made.model_id)


def _upload_model(client: MlflowClient, made: LoggedModel, folder: Path) -> None:
    client.log_model_artifacts(made.model_id, str(folder))
    client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)


def log_loadable(client: MlflowClient, run_id: str, loader: str, data: Path, column: str) -> str:
    """Log a folder as a model of a run that `mlflow models serve` runs; returns its URI, models:/ID.

    Args:
        client: of the store.
        run_id: that trained it; neither its status nor its times change.
        loader: module with `_load_pyfunc(path)`; us-jepa must be installed where it is served.
        data: folder that the loader is given a copy of.
        column: of the table that predict() is given, bytes (base64 in JSON).

    """
    experiment = client.get_run(run_id).info.experiment_id
    made = client.create_logged_model(experiment, name="encoder", source_run_id=run_id, model_type="encoder")
    described = Model(made.artifact_location, run_id, model_uuid=made.model_id, model_id=made.model_id)
    with TemporaryDirectory() as scratch:
        mlflow.pyfunc.save_model(
            f"{scratch}/model",
            mlflow_model=described,
            loader_module=loader,
            data_path=str(data),
            signature=ModelSignature(inputs=Schema([ColSpec("binary", column)])),
            pip_requirements=[f"us-jepa[serve]=={version('us-jepa')}"],
        )
        _upload_model(client, made, Path(scratch) / "model")
    client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step=0)])
    return str(made.model_uri)


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
        InputError: no URI that MLflow knows, a sqlite file that cannot be opened, an experiment in it that was
            deleted, or a damaged journal. A server that does not answer, or lacks it, is a warning.

    """

    def __init__(
        self, uri: str, experiment: str, run_dir: Path, *, params: dict[str, str], tags: dict[str, str], start: int
    ) -> None:
        check_uri(uri)
        self._client = None
        if uri.startswith("sqlite:"):  # a server may be asked later
            self._client = open_client(uri)
            existing_experiment(self._client, experiment)
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
                "beside it, and is sent when that is put right and the same command runs again",
                self._journal.record.tracking_uri, self._run_name, status, self._shipper.trouble or "no answer",
                self._journal.path,
            )  # fmt: skip

    def _send(self) -> None:
        """Send what MLflow lacks; where it refuses, look once whether run or experiment were deleted meanwhile."""
        client = self._client = self._client or open_client(self._journal.record.tracking_uri)
        was_open = self._is_open
        try:
            self._send_rest(client)
        except MlflowException as error:
            self._is_open = False
            if not (was_open and error.error_code in _NOT_THERE):
                raise
            self._send_rest(client)

    def _send_rest(self, client: MlflowClient) -> None:
        """Everything that MLflow lacks, the status before artifacts: they may be long or fail."""
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
        restore_deleted(client, run_id, self._run_name)
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


def send_artifact(client: MlflowClient, run_id: str, path: Path, folder: str | None) -> None:
    """Store a file, or what is in a folder, with a run."""
    if path.is_dir():
        client.log_artifacts(run_id, str(path), folder)
    else:
        client.log_artifact(run_id, str(path), folder)


def log_artifacts(run_dir: Path, artifacts: dict[str, Path]) -> None:
    """Store files and folders with a finished run; the keys are the names of folders there."""
    client, run_id = recorded_run(run_dir)
    with in_one_sentence(f"run {run_dir}: {', '.join(artifacts)}", "the same command sends it again"):
        for name, path in artifacts.items():
            send_artifact(client, run_id, path, name if path.is_dir() else None)

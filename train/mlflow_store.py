"""Where MLflow keeps runs, a server or a sqlite file: opening it, and what people delete there.

No call depends on MLflow's global URI: two stores may be in use at once, in several threads.
"""

import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from sharding.recording import InputError
from sharding.store import Store
from train.journal import read_record

_KINDS = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
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


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite store; None for all other stores, and for one in memory."""
    try:
        url = make_url(uri)
    except ArgumentError:
        return None
    is_file = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")
    return Path(str(url.database)) if is_file else None


def open_client(uri: str) -> MlflowClient:
    """Open a store; a sqlite file is made, with its folder, when it does not exist.

    Processes that open one sqlite file wait for each other. A new file is made beside its place and moved there when
    it is complete, so a start that is killed leaves nothing that later ones cannot use.

    Raises:
        InputError: MLflow knows no such store, it cannot be reached, or it is not one of this version.

    """
    check_uri(uri)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    file = sqlite_file(uri)
    try:
        if file is None:
            return _answering(uri)
        with _alone(uri, file):
            if not file.exists() or file.stat().st_size == 0:
                _make(uri, file)
            return _answering(uri)
    except Exception as error:  # besides its own, a damaged store raises alembic's errors, and Python's, too
        raise InputError(f"tracking_uri {uri}: {_way_out(file, error)}") from error


def _way_out(file: Path | None, error: Exception) -> str:
    cause = str(error).partition("\n")[0] or type(error).__name__
    if file is None:
        return f"cannot be reached ({cause}); start it with `make ui`, or name another"
    if isinstance(error, OSError) or not file.is_file():
        return f"cannot be reached ({cause}); name a file in a folder where you may write"
    aside = f"mv {shlex.quote(str(file))} {shlex.quote(f'{file}.aside')}"
    return (
        f"is damaged, or of another version of MLflow ({cause}); use that version, or put the file aside with "
        f"`{aside}`: every run sends what it logged to a new one when its own command runs again"
    )


@contextmanager
def _alone(uri: str, file: Path) -> Iterator[None]:
    """Hold the lock beside a sqlite file, and say so when this has to wait for the process that makes it."""
    folder = Store(file.parent)
    with ExitStack() as held:
        try:
            held.enter_context(folder.locked(file.name))
        except InputError:
            if not file.exists():
                _log.warning("tracking_uri %s: another run is making the store; this one waits for it", uri)
            held.enter_context(folder.locked(file.name, wait=True))
        yield


def _make(uri: str, file: Path) -> None:
    new = file.with_name(f".{file.name}.new")
    for left in (new, new.with_name(f"{new.name}-journal")):  # by a start that was killed
        left.unlink(missing_ok=True)
    _answering(make_url(uri).set(database=str(new)).render_as_string(hide_password=False))
    new.replace(file)


def _answering(uri: str) -> MlflowClient:
    """Make a client whose store has answered once; without the registry's URI, MLflow would take a global one."""
    client = MlflowClient(uri, os.environ.get("MLFLOW_REGISTRY_URI") or uri)
    client.search_experiments(max_results=1)
    return client


def experiment_id(client: MlflowClient, name: str) -> str:
    """Id of an experiment, made when it does not exist, with artifacts beside a sqlite file.

    Raises:
        InputError: it was deleted.

    """
    if (known := existing_experiment(client, name)) is not None:
        return known
    file = sqlite_file(client.tracking_uri)
    artifacts = None if file is None else (file.absolute().parent / "mlartifacts").as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=artifacts))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return experiment_id(client, name)  # another run has made it meanwhile


def existing_experiment(client: MlflowClient, name: str) -> str | None:
    """Id of an experiment, None where there is none.

    Raises:
        InputError: it was deleted.

    """
    found = client.get_experiment_by_name(name)
    if found is None:
        return None
    if found.lifecycle_stage == LifecycleStage.DELETED:
        raise InputError(f"MLflow at {client.tracking_uri}: {_deleted(client, found.name, found.experiment_id)}")
    return str(found.experiment_id)


def missing_run(client: MlflowClient, run_id: str) -> str:
    """Why a run cannot be used, and what brings it back; empty where it is there."""
    place = f"MLflow at {client.tracking_uri}"
    if not run_exists(client, run_id):
        return f"{place} does not have it ({run_id})"
    info = client.get_run(run_id).info
    experiment = client.get_experiment(info.experiment_id)
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        return f"{place}: {_deleted(client, experiment.name, experiment.experiment_id)}"
    if info.lifecycle_stage == LifecycleStage.DELETED:
        return f"{place}: it was deleted; restore it with `{_restore(client, f'runs restore --run-id {run_id}')}`"
    return ""


def restore_deleted(client: MlflowClient, run_id: str, name: str) -> None:
    """Bring back a run that was deleted though something still writes to it, and say so.

    Raises:
        InputError: its experiment was deleted, too.

    """
    info = client.get_run(run_id).info
    experiment = client.get_experiment(info.experiment_id)
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        raise InputError(
            f"MLflow at {client.tracking_uri}: {_deleted(client, experiment.name, experiment.experiment_id)}"
        )
    if info.lifecycle_stage == LifecycleStage.DELETED:
        client.restore_run(run_id)
        _log.warning(
            "run %s was deleted in MLflow at %s, and is restored, because it goes on", name, client.tracking_uri
        )


def run_exists(client: MlflowClient, run_id: str) -> bool:
    """Whether the store still has the run, deleted or not; a sqlite file may have been removed."""
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
        InputError: no run there, none in MLflow yet, deleted or lost there, or the store cannot be reached.

    """
    client, run_id = find_run(run_dir)
    if missing := missing_run(client, run_id):
        again = "" if "restore" in missing else f"; {_resend(run_dir)}"
        raise InputError(f"run {run_dir}: {missing}{again}")
    return client, run_id


def find_run(run_dir: Path) -> tuple[MlflowClient, str]:
    """The MLflow store of a run directory, and the id that the run has or had there.

    Raises:
        InputError: no run there, none in MLflow yet, or the store cannot be reached.

    """
    record = read_record(run_dir)
    if record is None or record.mlflow_run_id is None:
        raise InputError(f"run {run_dir}: is not in MLflow yet; {_resend(run_dir)} while the server is up")
    return open_client(record.tracking_uri), record.mlflow_run_id


@contextmanager
def in_one_sentence(what: str, advice: str) -> Iterator[None]:
    """Turn what a store refuses into an InputError: what was done, MLflow's first line, and what to do.

    Raises:
        InputError: MLflow refused, or did not answer.

    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        cause = str(error).partition("\n")[0][:300]
        raise InputError(f"{what}: MLflow did not take it ({cause}); {advice}") from error


def _resend(run_dir: Path) -> str:
    return f"run `deepspeed train/pretrain.py --config {run_dir}/config.yaml` again"


def _deleted(client: MlflowClient, name: str, number: str) -> str:
    return f"experiment {name} was deleted; restore it with `{_restore(client, f'experiments restore -x {number}')}`"


def _restore(client: MlflowClient, words: str) -> str:
    return f"MLFLOW_TRACKING_URI={shlex.quote(client.tracking_uri)} mlflow {words}"

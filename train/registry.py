"""MLflow's model registry: versions of an exported encoder, and the aliases `candidate` and `champion`.

The second importer of mlflow beside tracking.py, which is about runs: this is about what is taken into use.
"""

from dataclasses import dataclass, field
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from sharding.recording import InputError
from train.tracking import send_artifact

CANDIDATE, CHAMPION = "candidate", "champion"
_IDENTITY_TAG = "us_jepa.identity"


@dataclass(frozen=True)
class Version:
    """One registered encoder.

    Attributes:
        number: of the version, as MLflow counts.
        identity: sha256 over weights and preprocessing.
        run_id: of the pretraining.

    """

    number: str
    identity: str
    run_id: str


@dataclass(frozen=True)
class Entry:
    """What is registered.

    Attributes:
        name: of the registered model.
        run_id: of the pretraining.
        identity: sha256 over weights and preprocessing.
        description: Markdown that the registry shows.
        tags: facts to search by.

    """

    name: str
    run_id: str
    identity: str
    description: str
    tags: dict[str, str] = field(default_factory=dict)


def find_alias(client: MlflowClient, name: str, alias: str) -> Version | None:
    """The version with an alias, None where nobody has it or the model is not registered yet."""
    try:
        return _version(client.get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def register(client: MlflowClient, entry: Entry, export: Path) -> Version:
    """Store an export with the run that trained it, and make it a version; weights that are there stay the version.

    Args:
        client: of the store.
        entry: what it is.
        export: folder that `us-jepa export` wrote.

    Raises:
        InputError: the registry refuses the name.

    """
    _ensure_model(client, entry.name)
    for known in client.search_model_versions(f"name = '{entry.name}'"):
        if known.tags.get(_IDENTITY_TAG) == entry.identity:
            client.update_model_version(entry.name, known.version, entry.description)
            return _version(known)
    folder = f"export-{entry.identity[:12]}"  # a run that trains on has other weights, and another folder
    send_artifact(client, entry.run_id, export, folder)
    source = f"{client.get_run(entry.run_id).info.artifact_uri}/{folder}"
    tags = entry.tags | {_IDENTITY_TAG: entry.identity}
    made = client.create_model_version(
        entry.name, source, entry.run_id, tags=tags, description=entry.description, await_creation_for=0
    )
    return _version(made)


def set_alias(client: MlflowClient, name: str, version: Version, alias: str) -> None:
    """Give a version an alias, which leaves whichever version had it."""
    client.set_registered_model_alias(name, alias, version.number)


def set_tags(client: MlflowClient, name: str, version: Version, tags: dict[str, str]) -> None:
    """Set tags of a version; the same key again is overwritten."""
    for key, value in tags.items():
        client.set_model_version_tag(name, version.number, key, value)


def _ensure_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_ALREADY_EXISTS":
            return
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise InputError(
                f"registry: MLflow takes no model named {name!r}; give --name without / : and dots"
            ) from error
        raise


def _version(found: ModelVersion) -> Version:
    return Version(str(found.version), found.tags.get(_IDENTITY_TAG, ""), str(found.run_id))

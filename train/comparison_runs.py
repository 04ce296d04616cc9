"""What MLflow keeps of a comparison of frozen encoders: one run for all of it, below it one per encoder and data set.

A comparison is continued in its folder; `mlflow_run.json` there says which run is its own.
"""

import hashlib
import json
import logging
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from sharding.recording import InputError
from sharding.store import Store
from train.journal import read_record
from train.mlflow_store import (
    existing_experiment,
    experiment_id,
    find_run,
    in_one_sentence,
    missing_run,
    open_client,
    tracking_uri,
)
from train.tracking import external_model, git_commit, keyed_run, log_scores, send_artifact

_log = logging.getLogger(__name__)
RECORD = "mlflow_run.json"
STAGE_TAG = "us_jepa.stage"  # of both kinds of run: `comparison` and `probe`
_PRETRAINING = "us_jepa.pretraining"  # tag: id of its run
_LINKED = ("data_sha256", "teacher_sha256", "objective")  # tags of a pretraining that its probes show, too


@dataclass(frozen=True)
class Place:
    """Where a comparison is recorded.

    Attributes:
        tracking_uri: of the store.
        experiment: name.
        key: of its run, chosen once.
        time_ms: when it was chosen; all scores have this time, so sending them again changes nothing.
        run_id: of MLflow; empty until it has answered.

    """

    tracking_uri: str
    experiment: str
    key: str
    time_ms: int
    run_id: str = ""


@dataclass(frozen=True)
class Probed:
    """One encoder on one data set.

    Attributes:
        encoder: name.
        identity: sha256 of weights and preprocessing.
        run_dir: of the pretraining, None where the encoder is a stranger's.
        dataset: name and sha256.
        params: what was set.
        scores: metrics, such as `probe/macro_f1`.

    """

    encoder: str
    identity: str
    run_dir: Path | None
    dataset: tuple[str, str]
    params: dict[str, str]
    scores: dict[str, float]

    def digest(self) -> str:
        """32 hexadecimal digits of everything but the scores: other settings are another run."""
        described = json.dumps([self.encoder, self.identity, self.dataset, self.params], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:32]


def check_record(out: Path, run_dirs: list[Path]) -> None:
    """Before the work: can its record be made at the end? What would only lack a link is a warning.

    Args:
        out: folder of the comparison.
        run_dirs: of the pretrainings among the encoders.

    Raises:
        InputError: the experiment was deleted, or a sqlite file cannot be opened. A server that does not answer is a
            warning.

    """
    place = _place(out, run_dirs)
    try:
        client = open_client(place.tracking_uri)
    except InputError as error:
        if place.tracking_uri.startswith("sqlite:"):
            raise
        _log.warning("%s. The comparison goes on; the same command sends it later", error)
        return
    with in_one_sentence(f"comparison {out}", "see what the server says"):
        existing_experiment(client, place.experiment)
        for run_dir in run_dirs:
            try:
                _link(run_dir, place.tracking_uri)
            except InputError as error:
                _log.warning("%s", error)


def record_comparison(out: Path, probed: list[Probed], artifacts: list[Path]) -> str:
    """Send a finished comparison to MLflow and return the id of its run.

    The store and the experiment are those of the first pretraining among the encoders, else the usual ones. A
    comparison of one pretraining becomes a child of it. Called again it adds what is missing, and doubles nothing.

    Args:
        out: folder of the comparison.
        probed: scores of all encoders on all sets.
        artifacts: files to store.

    Raises:
        InputError: the store cannot be reached or refuses, the experiment was deleted, or a pretraining is not in
            MLflow yet.

    """
    place = _place(out, run_dirs := sorted({one.run_dir for one in probed if one.run_dir is not None}))
    with in_one_sentence(f"comparison {out}", "its results are written, and the same command sends them again"):
        return _send(
            out, place, probed, {run_dir: _link(run_dir, place.tracking_uri) for run_dir in run_dirs}, artifacts
        )


def _send(
    out: Path, place: Place, probed: list[Probed], links: dict[Path, dict[str, str]], artifacts: list[Path]
) -> str:
    client = open_client(place.tracking_uri)
    experiment = experiment_id(client, place.experiment)
    tags = {"mlflow.runName": f"comparison {out.resolve().name}", STAGE_TAG: "comparison", "git_commit": git_commit()}
    if len(links) == 1 and (pretraining := next(iter(links.values())).get(_PRETRAINING)):
        tags["mlflow.parentRunId"] = pretraining
    parent = keyed_run(client, experiment, place.key, tags)
    _write(out, Place(**asdict(place) | {"run_id": parent}))
    for one in probed:
        link = {} if one.run_dir is None else links[one.run_dir]
        name = f"{one.dataset[0]}: {one.encoder}"
        tags = {"mlflow.runName": name, "mlflow.parentRunId": parent, STAGE_TAG: "probe", **link}
        child = keyed_run(client, experiment, f"{place.key}/{one.digest()}", tags)
        model = external_model(client, experiment, one.encoder, one.identity, link.get(_PRETRAINING))
        for key, value in one.params.items():
            client.log_param(child, key, value)
        digest = one.dataset[1][:36]  # what MLflow has room for
        log_scores(client, child, one.scores, (one.dataset[0], digest), model, place.time_ms)
        client.set_terminated(child)
    for path in artifacts:
        send_artifact(client, parent, path, None)
    client.set_terminated(parent)
    return parent


def _place(out: Path, run_dirs: list[Path]) -> Place:
    """What the folder says, else a new one."""
    if (out / RECORD).is_file():
        return Place(**json.loads((out / RECORD).read_text()))
    records = [record for record in map(read_record, run_dirs) if record is not None]
    where = (records[0].tracking_uri, records[0].experiment) if records else (tracking_uri(None), "us-jepa")
    place = Place(*where, key=secrets.token_hex(16), time_ms=time.time_ns() // 10**6)
    _write(out, place)
    return place


def _write(out: Path, place: Place) -> None:
    Store(out).write(RECORD, (json.dumps(asdict(place), indent=1) + "\n").encode())


def _link(run_dir: Path, uri: str) -> dict[str, str]:
    """Tags that lead from a probe, recorded in the store `uri`, to its pretraining and the data of that.

    There is no link to a run in another store, and nothing of one that its store has lost: both are said.
    """
    client, run_id = find_run(run_dir)
    if missing := missing_run(client, run_id):
        _log.warning("run %s: %s; its probes are recorded without a link to it", run_dir, missing)
        return {}
    known = client.get_run(run_id).data.tags
    facts = {key: known[key] for key in _LINKED if key in known}
    if client.tracking_uri != uri:
        _log.warning(
            "run %s: is in MLflow at %s, and the comparison at %s; its probes are recorded without a link to it",
            run_dir, client.tracking_uri, uri,
        )  # fmt: skip
        return facts
    return {_PRETRAINING: run_id} | facts

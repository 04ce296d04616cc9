"""States of a tracking store that people bring about in MLflow's page, or by starting many runs at once.

From public reports: mlflow #2690, #6445, #6444, PR 24220 (deleted experiment), #689, #6606 (deleted run), #5917 and
hydraflow #245 (two first starts on one new sqlite file).
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from mlflow.tracking import MlflowClient

from tests.conftest import ROOT

# Imports once, then for every line "URI NUMBER" lets so many children open the store and make a run at one moment.
STARTERS = """
import os, sys
from train.tracking import keyed_run, experiment_id, open_client
for line in sys.stdin:
    uri, number = line.split()
    reader, writer = os.pipe()
    children = []
    for key in range(int(number)):
        if not (child := os.fork()):
            os.close(writer)
            os.read(reader, 1)  # ends when the parent closes its end: all go at once
            client = open_client(uri)
            keyed_run(client, experiment_id(client, "us-jepa"), str(key), {})
            os._exit(0)
        children.append(child)
    os.close(reader), os.close(writer)
    print(*(os.waitpid(child, 0)[1] for child in children), flush=True)
"""


def delete_run(client: MlflowClient, run_id: str) -> None:
    """Delete a run, as the page does: it can be restored."""
    client.delete_run(run_id)


def delete_experiment(client: MlflowClient, run_id: str) -> None:
    """Delete the experiment of a run, and with it all its runs."""
    client.delete_experiment(client.get_run(run_id).info.experiment_id)


def rename_experiment(client: MlflowClient, run_id: str) -> None:
    """Give the experiment of a run another name."""
    number = client.get_run(run_id).info.experiment_id
    client.rename_experiment(number, f"{client.get_experiment(number).name}-old")


def run_command_of(message: str) -> int:
    """Type the command that a message has in backquotes, and return its exit code."""
    found = re.search(r"`(MLFLOW_TRACKING_URI=[^`]+)`", message)
    assert found is not None, message
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(["bash", "-c", found[1]], env=os.environ | {"PATH": path}, check=False).returncode


def start_at_once(folder: Path, stores: dict[str, int]) -> list[str]:
    """Let processes make a run each in one store at the same moment.

    Args:
        folder: where they run.
        stores: URI, and how many.

    Returns:
        what they printed on standard error and, last, the exit codes of each store's processes.

    """
    lines = "".join(f"{uri} {number}\n" for uri, number in stores.items())
    done = subprocess.run(
        [sys.executable, "-c", STARTERS], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
        input=lines, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    return [*done.stderr.splitlines(), *done.stdout.splitlines()]


def copy_of(migrated: Path, place: Path) -> str:
    """A store of its own with MLflow's tables, which are slow to make; returns its URI."""
    place.write_bytes(migrated.read_bytes())
    return f"sqlite:///{place}"

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

# Imports, waits until all others have, then opens the store and makes a run; prints the run's id.
STARTER = """
import sys
from {module} import open_client, experiment_id
from train.tracking import keyed_run
print("ready", flush=True)
sys.stdin.readline()
client = open_client(sys.argv[1])
print(keyed_run(client, experiment_id(client, "us-jepa"), sys.argv[2], {{}}), flush=True)
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


def start_at_once(uri: str, number: int, module: str = "train.mlflow_store") -> list[tuple[str, str]]:
    """Let processes make a run each in one store at the same moment; what each printed, and its standard error."""
    code = STARTER.format(module=module)
    command = [sys.executable, "-c", code, uri]
    starters = [
        subprocess.Popen(
            [*command, str(key)],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for key in range(number)
    ]
    for starter in starters:
        assert starter.stdout is not None
        starter.stdout.readline()
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write("go\n")
        starter.stdin.flush()
    return [starter.communicate(timeout=120) for starter in starters]

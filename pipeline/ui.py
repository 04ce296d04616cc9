"""`make ui`: MLflow on the sqlite file, and the link that opens its machine-learning view."""

import os
import sys
from pathlib import Path

from train.tracking import open_client, tracking_uri


def main() -> None:
    """Print one link per experiment, then become the server."""
    uri, port = tracking_uri(None), os.environ.get("PORT", "5000")
    for experiment in open_client(uri).search_experiments():
        link = f"http://127.0.0.1:{port}/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
        print(f"{experiment.name}: {link}")
    sys.stdout.flush()
    command = Path(sys.executable).parent / "mlflow"
    options = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    os.execv(command, [str(command), "server", *options])


if __name__ == "__main__":
    main()

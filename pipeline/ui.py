"""`make ui` and `make review`: MLflow on the sqlite file, and the links that open what one wants to see."""

import argparse
import os
import sys
from pathlib import Path

from pipeline.views import MODE, VIEWS
from sharding.recording import InputError
from train.mlflow_store import open_client, tracking_uri


def main() -> None:
    """Print links, then become the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--review", action="store_true", help="save views of pretrainings and probes, and link to them")
    review = parser.parse_args().review
    uri, port = tracking_uri(None), os.environ.get("PORT", "5000")
    address = f"http://127.0.0.1:{port}"
    client = open_client(uri)
    for experiment in client.search_experiments():
        number = str(experiment.experiment_id)
        place = f"{address}/#/experiments/{number}"
        links = {"runs": f"{place}/runs?{MODE}", "encoders": f"{place}/models?{MODE}"}
        for view in VIEWS if review else ():
            client.set_experiment_tag(number, view.tag, view.value())
            links[view.name] = view.link(address, number)
        for name, link in links.items():
            print(f"{experiment.name}, {name}: {link}")
    sys.stdout.flush()
    command = Path(sys.executable).parent / "mlflow"
    options = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    os.execv(command, [str(command), "server", *options])


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"ui: {error}", file=sys.stderr)
        sys.exit(2)

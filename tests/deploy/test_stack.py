"""MLflow as deploy/ runs it: accounts, PostgreSQL that crashes in mid-run, artifacts in S3."""

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import mlflow
import pytest

from deploy.stack import Stack, _postgresql
from sharding.recording import InputError
from tests.conftest import ROOT
from tests.train.tiny import SCRIPT, start

STEPS = 320  # of 16 images: more than an outage takes
OUTAGE = 60  # seconds
ARTIFACTS = {"encoder/model.safetensors", "encoder/config.json"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    try:
        _postgresql("initdb")
    except InputError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("stack")
    for place in (folder, *folder.parents):
        place.chmod(place.stat().st_mode | 0o011)  # the account of the database passes through
    made = Stack(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_strangers_and_foreign_names_are_refused(stack: Stack) -> None:
    place = f"{stack.uri}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert status(place) == 401
    assert status(place, Host="evil.example.org") == 403
    assert status(f"{stack.uri}/health") == 200


@pytest.mark.slow
def test_a_minute_without_its_database_costs_no_metric(
    stack: Stack, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in stack.client.items():
        monkeypatch.setenv(key, value)
    run_dir = tmp_path / "run"
    config = ["--config", str(ROOT / "train/configs/demo.yaml"), f"data.shards=[{shards}]", f"run.dir={run_dir}"]
    settings = ["teacher.source=random:vit_tiny_patch16_224", f"optim.steps={STEPS}", "optim.batch=16"]
    settings += ["run.micro_batch=16", "run.save_every=160"]
    process = start([sys.executable, str(SCRIPT), *config, *settings], **stack.client)
    client = mlflow.MlflowClient(stack.uri)

    def until(is_so: object, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():  # type: ignore[operator]
            assert process.poll() is None, process.communicate()[0][-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def logged() -> list[str]:
        return (run_dir / "metrics.jsonl").read_text().splitlines() if (run_dir / "metrics.jsonl").exists() else []

    until(lambda: len(logged()) > 5 and json.loads((run_dir / "run.json").read_text())["num_sent"] > 0)
    stack.kill_database()
    before = len(logged())
    time.sleep(OUTAGE)
    during = len(logged())
    assert process.poll() is None, "the run ended within the outage; give it more steps"
    assert during > before  # training goes on
    stack.start_database()
    said = process.communicate(timeout=900)[0]
    assert process.returncode == 0, said[-3000:]
    assert said.count("training goes on, and it is tried again") == 1

    run_id = json.loads((run_dir / "run.json").read_text())["mlflow_run_id"]
    assert client.get_run(run_id).info.status == "FINISHED"
    lines = [json.loads(line) for line in logged()]
    assert {line["step"] for line in lines} >= set(range(STEPS))
    for key in {key for line in lines for key in line["metrics"]}:
        there = sorted((point.step, point.timestamp, point.value) for point in client.get_metric_history(run_id, key))
        assert there == sorted(
            (line["step"], line["time_ms"], pytest.approx(line["metrics"][key], nan_ok=True))
            for line in lines if key in line["metrics"]
        ), key  # fmt: skip

    s3 = boto3.client("s3", endpoint_url=stack.s3["AWS_ENDPOINT_URL"], aws_access_key_id="us-jepa",
                      aws_secret_access_key=stack.s3["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1")  # fmt: skip
    stored = {
        item["Key"].partition(f"{run_id}/artifacts/")[2] for item in s3.list_objects_v2(Bucket="mlflow")["Contents"]
    }
    assert stored >= ARTIFACTS
    assert urlsplit(client.get_run(run_id).info.artifact_uri).scheme == "mlflow-artifacts"  # clients hold no key of S3
    print(f"\noutage of {OUTAGE} s: {before} lines before it, {during - before} in it, {len(lines) - during} after it")

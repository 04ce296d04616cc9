"""A source with one of everything, its shards, and a server that speaks S3."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import boto3
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from sharding.sources.synthetic import SyntheticSpec, generate
from sharding.sources.synthetic_files import write_mp4
from sharding.store import _remote
from tests.sharding.jobs import make, write_recording


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for seed in range(20):
        write_recording(folder / f"{seed:02d}.dcm", seed, region_tag=seed % 2 == 0)
    write_mp4(generate(SyntheticSpec(geometry="fan", tissue=0, seed=99)), folder / "clip.mp4")
    (folder / "note.dcm").write_text("a text file")
    shutil.copy(folder / "00.dcm", folder / "zz-copy.dcm")  # in another unit than its original
    return folder


@pytest.fixture(scope="session")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(source, tmp_path_factory.mktemp("whole") / "out")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a bucket of a real S3 protocol server on loopback."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"URL_S3": f"http://{host}:{port}", "URL": f"http://{host}:{port}"}.items():
        monkeypatch.setenv(f"AWS_ENDPOINT_{name}", value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    # all servers of a process have the same content: what earlier tests left goes
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="scans")
    forget_servers()
    yield "s3://scans"
    server.stop()


def forget_servers() -> None:
    """Connections are kept by protocol: they would lead to the server of an earlier test."""
    s3fs.S3FileSystem.clear_instance_cache()
    _remote.cache_clear()

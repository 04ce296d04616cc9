"""What `us-jepa doctor` says of a deployment: each fault is made, and must be named with what to change."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline import deployment
from pipeline.deployment import (
    Line,
    Surroundings,
    check_decoders,
    check_key,
    check_launcher,
    check_mlflow,
    check_port,
    check_space,
    check_storage,
    check_teacher,
    surroundings,
)
from sharding.confine import Confinement
from tests.conftest import ROOT

DEMO = ROOT / "train" / "configs" / "demo.yaml"


def test_a_launcher_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert [line.grade for line in check_launcher()] == ["ok", "ok"]
    (tmp_path / "ninja.py").write_text("raise ImportError('no ninja here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    packages, _ = check_launcher()
    assert packages == Line(
        "fail", "packages: ImportError: no ninja here; run `pip install -e .` in this environment"
    )  # fmt: skip
    monkeypatch.setattr(deployment.sys, "executable", "/usr/bin/python3")
    assert "deepspeed launcher: no /usr/bin/deepspeed; run `pip install -e .`" in list(check_launcher())[1].text


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        line = check_port()
        assert line.grade == "warn"
        assert (
            f"port {port} of the master: Address already in use; give `deepspeed --master_port N` another" in line.text
        )
    assert check_port().grade == "ok"


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    assert check_key(key).grade == "warn"
    assert not key.exists()
    key.touch(mode=0o600)
    key.write_bytes(b"k" * 64)
    assert check_key(key) == Line("ok", f"key file {key}: mode 0600")
    key.chmod(0o644)
    assert check_key(key) == Line(
        "fail", f"key file {key}: mode is 0644, others can read it; run `chmod 600 {key}`"
    )  # fmt: skip
    key.chmod(0o600)
    key.write_bytes(b"short")
    assert check_key(key).text.endswith("5 bytes, at least 32 are needed")


def test_what_decoders_can_still_reach_is_said() -> None:
    line = check_decoders()
    assert line.text.startswith("decoders: ")
    assert line.grade == ("warn" if "has taken over could" in line.text else "ok")
    assert Confinement(True, True, 1).missing() == []
    assert Confinement(True, True, 0).missing() == ["read every file of this user, the key and the listing included"]
    assert Confinement().missing()[1] == "open network connections and start programs"


def test_storage_is_measured_and_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {line.grade for line in check_storage(tmp_path / "new", 1)} == {"ok"}
    monkeypatch.setattr(deployment, "_storage_speed", lambda _: (40e6, 90e6))
    writing, reading = check_storage(tmp_path / "new", 100e6)
    assert writing.grade == reading.grade == "warn"
    assert "writing 40 MB/s (at least 50); checkpoints will take long; put run.dir on" in writing.text
    assert "reading 90 MB/s (at least 100); put the shards on faster storage" in reading.text
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").write_text("")
    (line,) = check_storage(tmp_path / "file" / "below", 1)
    assert line == Line(
        "fail", f"storage {tmp_path}/file/below: Not a directory; give --folder one that you can write to"
    )  # fmt: skip


@pytest.fixture
def server() -> Iterator[tuple[str, list[int], list[str]]]:
    """A server that answers with the status in a list, and notes what it was asked."""
    status, seen = [200], []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(f"{self.path} {self.headers.get('Authorization', '')}")
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", status, seen
    http.shutdown()
    http.server_close()


def test_a_server_is_asked_for_experiments_with_its_password(
    server: tuple[str, list[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, status, seen = server
    assert check_mlflow(uri).grade == "ok"
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    assert check_mlflow(uri).grade == "ok"
    assert seen == [
        "/api/2.0/mlflow/experiments/search?max_results=1 ",
        "/api/2.0/mlflow/experiments/search?max_results=1 Basic YW5uYTpzZWNyZXQ=",
    ]
    for code, advice in (
        (401, "says 401; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (403, "says 403; start the server with `--allowed-hosts`"),
        (404, "says 404; is it an MLflow server?"),
    ):
        status[0] = code
        line = check_mlflow(uri)
        assert (line.grade, advice in line.text) == ("fail", True)
        assert "secret" not in line.text


def test_a_server_that_is_gone_or_silent_is_a_warning_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "_SERVER_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        line = check_mlflow(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert (line.grade, "does not answer within 0.5 s (timed out)" in line.text) == ("warn", True)
        port = silent.getsockname()[1]
    line = check_mlflow(f"http://127.0.0.1:{port}")
    assert (line.grade, "Connection refused" in line.text) == ("warn", True)
    assert "a run goes on without it" in line.text


def test_a_place_that_mlflow_does_not_know_is_named(tmp_path: Path) -> None:
    line = check_mlflow("mlruns")
    assert (line.grade, "tracking_uri mlruns: MLflow knows no such place" in line.text) == ("fail", True)


def test_a_teacher_loads_or_is_named(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(DEMO.read_text().replace("build/demo/teacher", "random:test_vit"))
    (line,) = check_teacher(config)
    assert line.grade == "ok"
    assert "teacher: random:test_vit loads, sha256 of its weights " in line.text
    config.write_text(DEMO.read_text().replace("build/demo/teacher", str(tmp_path / "gone")))
    (line,) = check_teacher(config)
    assert (line.grade, "gone" in line.text, "neither a folder" in line.text) == ("fail", True, True)
    (line,) = check_teacher(ROOT / "train" / "configs" / "demo-teacher.yaml")
    assert line == Line("ok", "teacher: objective pixel needs none")


def test_little_room_is_named(tmp_path: Path) -> None:
    assert check_space("disk", tmp_path, 1, "").grade == "ok"
    line = check_space("/dev/shm", tmp_path, 1 << 60, "`docker run --shm-size 8g`")
    assert (line.grade, "(at least 1073741824); `docker run --shm-size 8g`" in line.text) == ("fail", True)
    assert check_space("disk", tmp_path / "none", 1, "").grade == "fail"


def test_all_of_it_is_checked_and_the_config_names_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "mine.yaml"
    text = DEMO.read_text().replace("build/demo/teacher", "random:test_vit")
    config.write_text(text.replace("run:\n", "run:\n  tracking_uri: mlruns\n"))
    monkeypatch.setattr(deployment, "check_launcher", lambda: iter(()))
    monkeypatch.setattr(deployment, "check_process_group", lambda _: Line("ok", "process group"))
    found = list(surroundings(Surroundings(tmp_path, config, tmp_path / "key", 1)))
    starts = ["port", "key", "decoders", "storage", "storage", "teacher", "MLflow", "process"]
    assert [line.text.split()[0].rstrip(":") for line in found] == starts
    assert found[6].grade == "fail"

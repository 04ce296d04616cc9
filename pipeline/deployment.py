"""What a pretraining needs of the machine around it, for `us-jepa doctor`: each check says what to change.

Checks that can hang (process groups, servers) run against the clock.
"""

import base64
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.ranks import GroupError, ranks_here, try_group
from sharding.child import Access, Children, Fault
from sharding.deidentify import load_key
from sharding.policy import Limits
from sharding.recording import InputError
from train.config_file import load_config
from train.mlflow_store import check_uri, open_client, tracking_uri
from train.objective import shape_of
from train.teacher import load_teacher

Grade = Literal["ok", "warn", "fail"]

_PORT = 29500  # of DeepSpeed and torchrun, where nobody gives another
_SERVER_SECONDS = 5
FRAME_BYTES = 40_000  # of a shard
_TRIED_BYTES = 64 << 20
_SLOW = 50e6  # bytes per second
_UNAUTHORISED, _FORBIDDEN = 401, 403


class Line(NamedTuple):
    """One finding, and what to change where it is not ok."""

    grade: Grade
    text: str


@dataclass(frozen=True)
class Surroundings:
    """What is checked beside the machine itself.

    Attributes:
        folder: where runs and shards lie.
        config: of the pretraining; None checks no teacher.
        key_file: secret of the pseudonyms.
        bytes_per_s: that the stream will read.
        num_ranks: of the pretraining.

    """

    folder: Path
    config: Path | None
    key_file: Path
    bytes_per_s: float
    num_ranks: int = 1


def surroundings(asked: Surroundings) -> Iterator[Line]:
    """Check everything, the quick ones first."""
    yield from check_launcher()
    yield check_port()
    yield check_key(asked.key_file)
    yield check_decoders()
    yield from check_storage(asked.folder, asked.bytes_per_s)
    uri = None
    if asked.config is not None:
        uri = yield from check_teacher(asked.config)
    yield check_mlflow(tracking_uri(uri))
    yield check_process_group(asked.num_ranks)


def check_launcher() -> Iterator[Line]:
    """The deepspeed launcher, the package behind it, and what builds its operations."""
    launcher = Path(sys.executable).parent / "deepspeed"
    command = [sys.executable, "-c", "import deepspeed, ninja"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == 0:
        yield Line("ok", "packages: deepspeed and ninja can be imported")
    else:
        yield Line("fail", f"packages: {_last(done.stderr)}; run `pip install -e .` in this environment")
    if launcher.exists():
        yield Line("ok", f"deepspeed launcher: {launcher}")
    else:
        yield Line("fail", f"deepspeed launcher: no {launcher}; run `pip install -e .` in this environment")


def check_port() -> Line:
    """The port where ranks meet."""
    port = int(os.environ.get("MASTER_PORT", _PORT))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            advice = "give `deepspeed --master_port N` another (`us-jepa pretrain` picks a free one by itself)"
            return Line("warn", f"port {port} of the master: {error.strerror}; {advice}")
    return Line("ok", f"port {port} of the master: free here; other nodes must be able to reach it")


def check_key(path: Path) -> Line:
    """The secret of the pseudonyms, which only its owner may read."""
    if not path.exists():
        return Line(
            "warn", f"key file {path}: none yet; `us-jepa shards` makes one. For old pseudonyms copy the old one"
        )
    try:
        load_key(path)
    except InputError as error:
        return Line("fail", str(error))
    except OSError as error:
        return Line("fail", f"key file {path}: {error.strerror}; give --key-file one that you can read")
    return Line("ok", f"key file {path}: mode {path.stat().st_mode & 0o777:04o}")


def check_decoders() -> Line:
    """What this kernel takes from the processes that open recordings, as one of them says itself."""
    children = Children(Limits(), Access(), ())
    try:
        confinement = children.confinement()
    except Fault as fault:
        return Line("fail", f"decoders: no child process starts ({fault}); see how much memory this user may have")
    finally:
        children.replace()
    missing = confinement.missing()
    if missing:
        advice = "shard untrusted files in a container without network, as a user that owns nothing else"
        return Line(
            "warn", f"decoders: on this kernel one that a file has taken over could {' and '.join(missing)}; {advice}"
        )
    return Line(
        "ok",
        "decoders: no environment, no network, no programs (seccomp), no files but the sources and libraries "
        f"(Landlock {confinement.landlock})",
    )


def check_storage(folder: Path, bytes_per_s: float) -> Iterator[Line]:
    """Write and read a file past the cache of the kernel."""
    path = folder / f".us-jepa-doctor-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written, read = _storage_speed(path)
    except OSError as error:
        yield Line("fail", f"storage {folder}: {error.strerror}; give --folder one that you can write to")
        return
    finally:
        with suppress(OSError):  # it was never made
            path.unlink()
    for name, speed, least, advice in (
        ("writing", written, _SLOW, "checkpoints will take long; put run.dir on faster storage"),
        ("reading", read, max(_SLOW, bytes_per_s), "put the shards on faster storage, or fetch them with s3:// shards"),
    ):
        said = f"storage {folder}: {name} {speed / 1e6:,.0f} MB/s (at least {least / 1e6:,.0f})"
        yield Line("ok", said) if speed >= least else Line("warn", f"{said}; {advice}")


def _storage_speed(path: Path) -> tuple[float, float]:
    """Bytes per second, written and read."""
    data = os.urandom(_TRIED_BYTES)
    started = time.perf_counter()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    written = time.perf_counter() - started
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        while file.read(1 << 20):
            pass
    return _TRIED_BYTES / written, _TRIED_BYTES / (time.perf_counter() - started)


def check_mlflow(uri: str) -> Line:
    """Whether the store answers, within seconds: MLflow's own client would try for minutes."""
    said = "" if "MLFLOW_TRACKING_URI" in os.environ else "; for a server set MLFLOW_TRACKING_URI or run.tracking_uri"
    try:
        check_uri(uri)
        if uri.startswith(("http://", "https://")):
            return _ask_server(uri.rstrip("/"))
        open_client(uri)
    except InputError as error:
        return Line("fail", f"MLflow: {error}")
    return Line("ok", f"MLflow: {uri}{said}")


def _ask_server(uri: str) -> Line:
    request = urllib.request.Request(f"{uri}/api/2.0/mlflow/experiments/search?max_results=1")
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    if user and password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    advice = {
        _UNAUTHORISED: "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        _FORBIDDEN: "start the server with `--allowed-hosts` and the name that is used here",
    }
    started = time.perf_counter()
    try:
        with urllib.request.urlopen(request, timeout=_SERVER_SECONDS):
            return Line("ok", f"MLflow: {uri} answers in {time.perf_counter() - started:.2f} s")
    except urllib.error.HTTPError as error:
        return Line("fail", f"MLflow: {uri} says {error.code}; {advice.get(error.code, 'is it an MLflow server?')}")
    except OSError as error:
        cause = getattr(error, "reason", error)
        return Line(
            "warn",
            f"MLflow: {uri} does not answer within {_SERVER_SECONDS} s ({cause}); a run goes on without it, and sends "
            "what it logged when it is back",
        )


def check_teacher(config: Path) -> Generator[Line, None, str | None]:
    """Load the teacher of a config; returns the config's tracking URI."""
    try:
        cfg = load_config(config, [])
        if cfg.teacher is None:
            yield Line("ok", f"teacher: objective {cfg.objective} needs none")
        else:
            _, digest = load_teacher(cfg.teacher, shape_of(cfg).grid, cfg.target.layers)
            yield Line("ok", f"teacher: {cfg.teacher.source} loads, sha256 of its weights {digest[:16]}...")
    except InputError as error:
        yield Line("fail", f"config {config}: {error}")
        return None
    return cfg.run.tracking_uri


def check_process_group(num_ranks: int) -> Line:
    """A group as training makes it, of as many ranks as this host can try: one per GPU."""
    num_here = ranks_here(num_ranks)
    name = f"process group of {num_here} {'rank' if num_here == 1 else 'ranks'}"
    if num_here < num_ranks:
        name += f" (of {num_ranks}, as many as are tried on this host)"
    started = time.perf_counter()
    try:
        backends = try_group(num_here)
    except GroupError as error:
        return Line("fail", f"{name}: {error}")
    return Line("ok", f"{name}: {backends}, {time.perf_counter() - started:.1f} s")


def check_space(name: str, place: Path, least: int, advice: str) -> Line:
    """Free bytes of a file system."""
    free = shutil.disk_usage(place).free if place.exists() else 0
    said = f"{name}: {free / 2**30:.1f} GiB free (at least {least / 2**30:.0f})"
    return Line("ok", said) if free >= least else Line("fail", f"{said}; {advice}")


def _last(stderr: str) -> str:
    """The last line of a traceback: the message."""
    return (stderr.strip().splitlines() or ["no message"])[-1]

"""The server: the vectors of the offline way, who may ask, what is refused how, and that nothing is kept."""

import concurrent.futures
import json
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import torch
from pyarrow import parquet

from deploy.decoders import Decoders
from deploy.embedder import Embedder
from deploy.serve import ServeConfig, Service, is_loopback, run
from deploy.upload import UploadLimits
from pipeline.serve import token_for
from sharding.convert import Task, convert
from sharding.policy import Limits, Policy
from sharding.preprocess import stretch, to_square
from sharding.reader import ShardReader
from sharding.recording import FrameChoice, InputError
from sharding.sources.synthetic_files import HOSPITAL
from tests.conftest import make_shards
from tests.deploy.conftest import SIZE
from tests.deploy.server import Server, multipart, started
from train.vit import load_encoder


def offline(encoder: Path, recording: Path, folder: Path, pixels: str = "certified") -> dict[int, np.ndarray]:
    """Vectors by frame of one recording that is sharded alone."""
    source = folder / "source"
    source.mkdir()
    shutil.copy(recording, source)
    policy = Policy("one", FrameChoice(), val_share=0, pixels=pixels)  # type: ignore[arg-type]
    embedder, found = Embedder(load_encoder(encoder)), {}
    for tar in make_shards(source, folder / "shards", policy).glob("*.tar"):
        with ShardReader(tar) as reader:
            for sample in reader:
                frame = stretch(sample.frame, sample.region, sample.meta.percentiles)
                square = torch.from_numpy(to_square(frame, sample.region, SIZE))[:, None, None] / 255
                found[sample.meta.frame] = embedder(square[0], square[1])[0][0].numpy()
    return found


@pytest.fixture(scope="module")
def dicom(labelled: Path) -> bytes:
    """Of the patient Zelmira0^Quorvath."""
    return (labelled / "r0000_0.dcm").read_bytes()


@pytest.fixture(scope="module")
def png(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    capture = cv2.VideoCapture(str(labelled / "r0000_1.mp4"))
    path = tmp_path_factory.mktemp("png") / "still.png"
    cv2.imwrite(str(path), capture.read()[1])
    return path


@pytest.mark.parametrize("name", ["r0000_0.dcm", "r0001_1.mp4"])
def test_vectors_are_those_of_the_offline_way(
    name: str, guarded: Server, small_encoder: Path, labelled: Path, tmp_path: Path
) -> None:
    wanted = offline(small_encoder, labelled / name, tmp_path)
    assert len(wanted) > 5
    data = (labelled / name).read_bytes()
    body, kind = multipart(data)
    answers = [guarded.ask("/embed", data).json(), guarded.ask("/embed", body, content_type=kind).json()]
    for answer in answers:
        found = {frame["index"]: np.array(frame["vector"]) for frame in answer["frames"]}
        assert found.keys() == wanted.keys()
        assert max(np.abs(found[index] - wanted[index]).max() for index in wanted) < 1e-4
        (clip,) = answer["clips"]
        assert np.abs(np.mean(list(wanted.values()), axis=0) - clip["vector"]).max() < 1e-4
        assert (answer["view"], answer["nearest"], clip["num_frames"]) == (None, None, len(wanted))


def test_a_still_that_the_site_vouches_for(public: Server, small_encoder: Path, png: Path, tmp_path: Path) -> None:
    (wanted,) = offline(small_encoder, png, tmp_path, "public").values()
    answer = public.ask("/embed", png.read_bytes()).json()
    assert np.abs(np.array(answer["frames"][0]["vector"]) - wanted).max() < 1e-4
    assert answer["clips"][0]["certificate"] == "public"


def test_real_recordings_have_the_outcome_of_sharding(guarded: Server, shared_data: Path) -> None:
    found, wanted = {}, {}
    for path in sorted((shared_data / "dicom").rglob("*.dcm")):
        if path.stat().st_size < 4 << 20:  # the limit of this server
            answer = guarded.ask("/embed", path.read_bytes()).json()
            found[path.name] = answer.get("reason") or [len(answer["frames"]), len(answer["clips"])]
            converted = convert(Task(path, "upload"))
            num_frames = sum(len(clip.frames) for clip in converted.clips)
            wanted[path.name] = converted.refusal or [num_frames, len(converted.clips)]
    assert found == wanted
    assert len(found) > 5


def test_many_at_once_get_their_own_vectors(public: Server, labelled: Path) -> None:
    uploads = [path.read_bytes() for path in sorted(labelled.glob("*.dcm"))[:6]] * 2
    alone = [public.ask("/embed", data).json() for data in uploads[:6]] * 2
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda data: public.ask("/embed", data).json(), uploads))
    for one, other in zip(alone, together, strict=True):
        assert np.abs(np.array(one["clips"][0]["vector"]) - other["clips"][0]["vector"]).max() < 1e-4
    batches = public.ask("/metrics").body.decode()
    assert 'us_jepa_batch_frames_bucket{le="32.0"}' in batches


def test_neighbours_are_those_of_the_table(public: Server, small_table: Path, dicom: bytes) -> None:
    answer = public.ask("/embed?nearest=3&view=true", dicom).json()
    assert [set(one) >= {"cosine", "key", "clip", "patient"} for one in answer["nearest"]] == [True] * 3
    assert answer["nearest"][0]["cosine"] > 0.99  # frames of this clip are in the table
    keys = set(parquet.read_table(small_table)["key"].to_pylist())
    assert {one["key"] for one in answer["nearest"]} <= keys
    assert answer["view"]["frame"].startswith("data:image/png;base64,")


def test_without_the_token_nothing_is_answered(guarded: Server, dicom: bytes) -> None:
    for path, body in (("/embed", dicom), ("/metrics", None), ("/nothing", None), ("/embed/", dicom)):
        for token in (None, "", guarded.token[:-1] if guarded.token else "", "ÿ"):
            reply = guarded.ask(path, body, token=token or None)
            assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert reply.json()["reason"] == "no_token"
    assert guarded.ask("/healthz", token=None).json() == {"status": "ok"}
    assert guarded.ask("/", token=None).status == guarded.ask("/docs", token=None).status == 200
    assert guarded.ask("/metrics").status == 200


def test_the_token_file_is_for_its_owner_alone(guarded: Server) -> None:
    path = guarded.home.parent / "home.token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert str(path) in guarded.log.read_text()
    assert guarded.token
    assert guarded.token not in guarded.log.read_text()


def test_a_page_of_a_stranger_cannot_reach_a_server_without_a_token(public: Server, dicom: bytes) -> None:
    assert public.ask("/embed", dicom, host="evil.example:8600").json()["reason"] == "wrong_host"
    assert public.ask("/healthz", host=f"localhost:{public.port}").status == 200
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("example.org")


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "no_file"),
        (b"hello", 415, "not_readable_kind"),
        (b"PK\x03\x04" + bytes(100), 415, "nested_archive"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), 422, "empty"),
        (b"\xff\xd8\xff" + bytes(100), 422, "undecodable"),
        (bytes(5 << 20), 413, "body_too_large"),
    ],
)
def test_refusals_have_a_reason(guarded: Server, body: bytes, status: int, reason: str) -> None:
    reply = guarded.ask("/embed", body)
    assert (reply.status, reply.json()["reason"]) == (status, reason)
    assert reply.json()["meaning"]


def test_pixels_without_a_certificate_are_refused(guarded: Server, png: Path) -> None:
    reply = guarded.ask("/embed", png.read_bytes())
    assert (reply.status, reply.json()["reason"]) == (422, "uncertified_still")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"--edge\r\n\r\nabc", "malformed_multipart"),
        (b"no edge at all", "malformed_multipart"),
        (b"--edge\r\n\r\na\r\n--edge\r\n\r\nb\r\n--edge--\r\n", "several_files"),
        (b"--edge\r\n\r\n\r\n--edge--\r\n", "no_file"),
    ],
)
def test_odd_multipart_bodies(guarded: Server, body: bytes, reason: str) -> None:
    reply = guarded.ask("/embed", body, content_type="multipart/form-data; boundary=edge")
    assert (reply.status, reply.json()["reason"]) == (400, reason)


def test_a_body_of_unknown_length_is_counted(guarded: Server) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(1024):
            yield bytes(1 << 20)

    reply = guarded.ask("/embed", endless())
    assert (reply.status, reply.json()["reason"]) == (413, "body_too_large")


def test_a_slow_body_ends(guarded: Server) -> None:
    head = (
        f"POST /embed HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {guarded.token}\r\nContent-Length: 9999\r\n"
    )
    started_at = time.monotonic()
    with socket.create_connection(("127.0.0.1", guarded.port), 20) as client:
        client.sendall(f"{head}\r\nabc".encode())
        answer = client.makefile("rb").read()  # until the server hangs up
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"slow_body" in answer
    assert time.monotonic() - started_at < 6


def test_more_than_may_wait_are_told_to_come_again(guarded: Server, dicom: bytes) -> None:
    head = (
        f"POST /embed HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {guarded.token}\r\nContent-Length: 9999\r\n"
    )
    slow = [socket.create_connection(("127.0.0.1", guarded.port), 20) for _ in range(6)]
    for client in slow:
        client.sendall(f"{head}\r\nabc".encode())
    time.sleep(0.5)
    reply = guarded.ask("/embed", dicom)
    assert (reply.status, reply.headers["Retry-After"], reply.json()["reason"]) == (503, "1", "busy")
    assert guarded.is_well()
    for client in slow:
        assert client.recv(65536).startswith(b"HTTP/1.1 408 ")
        client.close()
    assert guarded.ask("/embed", dicom).status == 200


def test_nothing_of_an_upload_is_kept(guarded: Server, labelled: Path) -> None:
    data = (labelled / "r0000_0.dcm").read_bytes() + bytes(3 << 20)
    body, kind = multipart(data, "Zelmira-from-the-file-name.dcm")
    assert guarded.ask("/embed", data).status == 200
    before, written, log = guarded.files(), _bytes_written(guarded), len(guarded.log.read_bytes())
    for number in range(3):
        reply = guarded.ask(f"/embed?name=Zelmira{number}", body, content_type=kind)
        assert reply.status == 200
        for secret in (b"Zelmira", b"Quorvath", HOSPITAL.encode(), b"SYN-07"):
            assert secret not in reply.body
    guarded.ask("/Zelmira.dcm")
    guarded.ask("/embed", b"--edgeZelmira", content_type="multipart/form-data; boundary=edge")
    assert guarded.files() == before
    said = guarded.log.read_text()[log:]
    assert "POST /embed 200" in said
    assert "GET other 404" in said
    for secret in ("Zelmira", "Quorvath", HOSPITAL, "SYN-07", "name=", str(guarded.token)):
        assert secret not in said
    assert _bytes_written(guarded) - written < 1 << 20  # of 9 MiB that were sent
    open_files = [str(path.readlink()) for path in Path(f"/proc/{guarded.process.pid}/fd").iterdir()]
    assert not [name for name in open_files if "upload" in name]


def _bytes_written(server: Server) -> int:
    """To any storage, by the server and its children."""
    every = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    return sum(process.io_counters().write_bytes for process in every)


@pytest.mark.slow
def test_a_server_for_others_makes_a_token_by_itself(small_encoder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with started(small_encoder, home, "--host", "0.0.0.0") as server:
        made = home / "us-jepa" / "serve-token"
        assert str(made) in server.log.read_text()
        assert server.ask("/metrics").status == 401
        assert server.ask("/metrics", token=made.read_text()).status == 200
        assert "put it behind TLS" in server.log.read_text()


def test_a_host_that_others_reach_gets_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    token = token_for(None, "0.0.0.0")
    made = tmp_path / "us-jepa" / "serve-token"
    assert made.read_bytes() == token
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert token_for(None, "0.0.0.0") == token
    assert token_for(None, "127.0.0.1") is None
    assert token_for(made, "127.0.0.1") == token
    made.chmod(0o644)
    with pytest.raises(InputError, match=r"mode is 0644, others can read it"):
        token_for(made, "127.0.0.1")
    with pytest.raises(InputError, match=r"--host 0.0.0.0: others reach it, so it needs a token"):
        run(ServeConfig("pixels"), "0.0.0.0", 0)


def test_its_documents_come_from_itself(public: Server) -> None:
    described = json.loads(public.ask("/openapi.json").body)
    assert {"200", "401", "408", "413", "415", "422", "503"} <= set(described["paths"]["/embed"]["post"]["responses"])
    for path in ("/docs", "/"):
        page = public.ask(path).body.decode()
        assert "https://" not in page
        assert "http://" not in page
    assert public.ask("/static-offline-docs/swagger-ui.css").status == 200


def test_wrong_settings_are_named(small_encoder: Path, small_table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no.parquet: no such file; `us-jepa embed` writes one"):
        Service(ServeConfig(str(small_encoder), table=tmp_path / "no.parquet"))
    with pytest.raises(InputError, match=r"vectors of 192, random vit_small_patch16_224 gives 384"):
        Service(ServeConfig("random:vit_small_patch16_224", table=small_table))
    with pytest.raises(InputError, match=r"max_batch is 0; it must be at least 1"):
        ServeConfig("pixels", max_batch=0)
    starved = UploadLimits(decode=Limits(memory=1 << 20))
    with pytest.raises(InputError, match=r"decoders fail .* within Limits"):
        Decoders(1, starved, SIZE)


def test_an_undecodable_table_is_named(small_encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"a.parquet: no table of `us-jepa embed`"):
        Service(ServeConfig(str(small_encoder), table=tmp_path / "a.parquet"))

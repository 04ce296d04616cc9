"""What a child that decodes can still reach: tried by calls that a decoder never makes, in a real child."""

import os
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharding.child import Access, Children, Fault
from sharding.convert import Task
from sharding.isolate import Converter
from sharding.plan import make_plan, readable_places
from sharding.policy import Job, Limits, Policy
from sharding.recording import InputError, Reason, Rejected
from tests.sharding import reach
from tests.sharding.jobs import write_recording


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job whose key and listing lie beside its source."""
    monkeypatch.setenv(reach.SECRET, "secret")
    (tmp_path / "source").mkdir()
    write_recording(tmp_path / "source" / "one.dcm", 0)
    job = Job(str(tmp_path / "source"), str(tmp_path / "out"), Policy("one"), tmp_path / "keys" / "key")
    make_plan(job)
    return job


@pytest.fixture
def children(job: Job, tmp_path: Path) -> Iterator[Children]:
    (tmp_path / "scratch").mkdir()
    access = Access(tuple(readable_places(job)), (tmp_path / "scratch",))
    found = Children(Limits(), access, (reach.Known,))
    yield found
    found.replace()


def needs_landlock(children: Children) -> None:
    if not children.confinement().landlock:
        pytest.skip("this kernel has no Landlock")


def needs_seccomp(children: Children) -> None:
    if not children.confinement().system_calls:
        pytest.skip("this kernel or architecture has no seccomp filter")


def test_a_child_reads_its_source_and_neither_key_nor_listing(children: Children, job: Job, tmp_path: Path) -> None:
    needs_landlock(children)
    beside = [path for path in job.key_file.parent.rglob("*") if path.is_file()]
    assert len(beside) > 1
    assert [children.attempt(reach.read, path) for path in beside] == ["EACCES"] * len(beside)
    assert children.attempt(reach.read, Path(job.source) / "one.dcm") == ""
    assert children.attempt(reach.read, Path(f"/proc/{os.getpid()}/environ")) == "EACCES"
    assert children.attempt(reach.read, Path.home() / ".bashrc") in {"EACCES", "ENOENT"}
    assert children.attempt(reach.read, Path("/etc/passwd")) == "EACCES"
    assert children.attempt(reach.names, tmp_path) == "EACCES"


def test_a_child_writes_where_members_are_unpacked_alone(children: Children, job: Job, tmp_path: Path) -> None:
    needs_landlock(children)
    assert children.attempt(reach.write, tmp_path / "scratch" / "member") == ""
    assert children.attempt(reach.write, Path(job.source) / "one.dcm") == "EACCES"
    assert children.attempt(reach.write, tmp_path / "new") == "EACCES"


def test_a_child_has_no_network_and_starts_no_program(children: Children, tmp_path: Path) -> None:
    needs_seccomp(children)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "socket"))
        local.listen()
        assert reach.connect(socket.AF_INET, server.getsockname()) == ""  # from here
        assert reach.connect(socket.AF_UNIX, str(tmp_path / "socket")) == ""
        assert children.attempt(reach.connect, socket.AF_INET, server.getsockname()) == "EPERM"
        assert children.attempt(reach.connect, socket.AF_INET6, ("::1", 1)) == "EPERM"
        assert children.attempt(reach.connect, socket.AF_UNIX, str(tmp_path / "socket")) == "EPERM"
    assert children.attempt(reach.start_program) == "EPERM"
    assert children.attempt(reach.signal_parent) == "EPERM"


def test_a_child_has_no_secret_in_its_environment(job: Job) -> None:
    children = Children(Limits(), Access((Path("/proc"),)), (reach.Known,))
    found, has_secret, began_with_it = children.attempt(reach.environment)
    kept = ("PYTHON", "OMP_", "OPENBLAS_", "OPENCV_", "DECORD_", "LC_", "LANG", "TZ", "PATH", "LD_LIBRARY_PATH")
    assert os.environ[reach.SECRET] == "secret"
    assert not [name for name in found if not name.startswith(kept)]
    assert not has_secret
    assert not began_with_it
    children.replace()


def test_a_child_has_no_privileges(job: Job) -> None:
    children = Children(Limits(), Access((Path("/proc"),)), (reach.Known,))
    found = dict(line.split(":\t") for line in children.attempt(reach.privileges))
    assert found["NoNewPrivs"] == "1"
    assert int(found["CapEff"], 16) & ~0b110 == int(found["CapInh"], 16) == 0  # reading files of others, for root
    children.replace()


def test_an_answer_that_names_a_function_is_not_built(
    children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Fault, match="crashed"):
        children.attempt(reach.harmful)
    assert not Path("made-by-a-child").exists()
    pickle.loads(pickle.dumps(reach.Outside()))
    assert Path("made-by-a-child").exists()  # as any other reader would


def test_errors_of_a_call_arrive_without_what_a_file_holds(children: Children) -> None:
    with pytest.raises(Rejected, match="empty"):
        children.attempt(reach.refused)
    with pytest.raises(InputError, match="no such thing"):
        children.attempt(reach.misused)
    with pytest.raises(Fault, match=r"^crashed: KeyError at reach.py:\d+$"):
        children.attempt(reach.broken)
    assert children.attempt(reach.read, Path("/dev/null")) == ""


def test_a_descriptor_is_handed_over_and_gone_after_its_call(children: Children) -> None:
    memory = os.memfd_create("upload")
    os.write(memory, b"recording")
    assert children.attempt(reach.read_descriptor, descriptor=memory) == b"recording"
    with pytest.raises(FileNotFoundError):
        children.attempt(reach.read_descriptor)
    os.close(memory)


def test_recordings_are_decoded_where_nothing_else_can_be_read(job: Job, tmp_path: Path) -> None:
    with Converter(Limits(), tmp_path / "scratch", readable_places(job)) as converter:
        (good,) = converter.convert(Task(Path(job.source) / "one.dcm", "one.dcm"))
        outside = converter.convert_file(Task(job.key_file, "key"))
        if converter.confinement().landlock:
            assert outside.refusal == Reason.UNREADABLE
    assert good.refusal is None

"""Killable converters: every file has one outcome, whatever happens to the process that holds it."""

import os
import signal
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.bench.hostile import bombs, mutate
from sharding.convert import Task
from sharding.isolate import Converter
from sharding.policy import Limits
from sharding.recording import FrameChoice, Reason
from sharding.sources.synthetic import SyntheticSpec, generate
from sharding.sources.synthetic_files import write_dicom


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / "one.dcm"
    spec = SyntheticSpec("fan", 0, num_frames=9, height=160, width=200)
    write_dicom(generate(spec), spec, path)
    return path


def task_of(path: Path) -> Task:
    return Task(path, path.name, FrameChoice(3))


def test_a_file_becomes_encoded_clips(recording: Path, tmp_path: Path) -> None:
    with Converter(Limits(), tmp_path, [recording.parent]) as converter:
        [converted] = converter.convert(task_of(recording))
    assert converted.refusal is None
    assert [len(clip.frames) for clip in converted.clips] == [3]


def test_a_child_that_is_killed_costs_nothing(recording: Path, tmp_path: Path) -> None:
    with Converter(Limits(), tmp_path, [recording.parent]) as converter:
        list(converter.convert(task_of(recording)))
        assert converter.pid is not None
        os.kill(converter.pid, signal.SIGKILL)
        [converted] = converter.convert(task_of(recording))
    assert converted.refusal is None


def test_a_decoder_that_always_dies_is_an_outcome_and_the_next_file_is_fine(recording: Path, tmp_path: Path) -> None:
    stop = threading.Event()

    def kill_children() -> None:
        while not stop.is_set():
            if converter.pid is not None and psutil.pid_exists(converter.pid):
                os.kill(converter.pid, signal.SIGKILL)
            time.sleep(0.001)

    with Converter(Limits(), tmp_path, [recording.parent]) as converter:
        list(converter.convert(task_of(recording)))  # the fork server runs
        killer = threading.Thread(target=kill_children)
        killer.start()
        [killed] = converter.convert(task_of(recording))
        stop.set()
        killer.join()
        [after] = converter.convert(task_of(recording))
    assert killed.refusal == Reason.CRASHED
    assert after.refusal is None


def test_a_decoder_that_takes_too_long_is_an_outcome(recording: Path, tmp_path: Path) -> None:
    with Converter(Limits(seconds=0.0005), tmp_path, [recording.parent]) as converter:
        [converted] = converter.convert(task_of(recording))
    assert converted.refusal == Reason.TIMEOUT


def test_a_decoder_that_wants_too_much_memory_is_an_outcome(tmp_path: Path) -> None:
    path = tmp_path / "big.dcm"
    spec = SyntheticSpec("linear", 0, num_frames=9, height=160, width=200)
    write_dicom(generate(spec), spec, path)
    with Converter(Limits(memory=300 << 20), tmp_path, [tmp_path]) as converter:  # less than the libraries take
        [converted] = converter.convert(task_of(path))
    assert converted.refusal in {Reason.OUT_OF_MEMORY, Reason.CRASHED, Reason.UNDECODABLE}


def test_children_are_replaced_and_leave_none_behind(recording: Path, tmp_path: Path) -> None:
    pids = set()
    with Converter(Limits(), tmp_path, [recording.parent]) as converter:
        for _ in range(70):
            list(converter.convert(task_of(recording)))
            pids.add(converter.pid)
    assert len(pids) == 3
    assert not [pid for pid in pids if pid is not None and psutil.pid_exists(pid)]


def test_an_archive_gives_an_outcome_per_member(recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(recording, "one.dcm")
        archive.writestr("../escape.dcm", b"x")
        archive.writestr("note.txt", b"hello")
    with Converter(Limits(), tmp_path, [recording.parent]) as converter:
        found = [(converted.name, converted.refusal) for converted in converter.convert(task_of(path))]
    assert found == [
        ("a.zip!one.dcm", None),
        ("a.zip!../escape.dcm", Reason.UNSAFE_NAME),
        ("a.zip!note.txt", Reason.NOT_READABLE_KIND),
    ]


def test_bombs_are_outcomes(tmp_path: Path) -> None:
    limits = Limits(seconds=20, memory=2 << 30)
    with Converter(limits, tmp_path, []) as converter:
        for name, data in bombs():
            (tmp_path / name).write_bytes(data)
            for converted in converter.convert(task_of(tmp_path / name)):
                assert converted.refusal is not None, name
                assert not converted.fault, (name, converted.fault)
            (tmp_path / name).unlink()


def test_mutated_files_are_outcomes(recording: Path, tmp_path: Path) -> None:
    rng, data = np.random.default_rng(0), recording.read_bytes()
    with Converter(Limits(seconds=20, memory=2 << 30), tmp_path, [recording.parent]) as converter:
        for number in range(60):
            path = tmp_path / f"{number}.dcm"
            path.write_bytes(mutate(data, rng))
            [converted] = converter.convert(task_of(path))
            assert not converted.fault, converted.fault

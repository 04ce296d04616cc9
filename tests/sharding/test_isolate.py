"""Killable converters: every file has one outcome, whatever happens to the process that holds it."""

import io
import os
import signal
import tarfile
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import psutil
import pytest

from pipeline.bench.hostile import bombs, mutate, slow_dicom
from sharding.convert import Task
from sharding.isolate import Converter
from sharding.policy import Limits
from sharding.recording import FrameChoice, Reason
from sharding.sources.synthetic import SyntheticSpec, generate
from sharding.sources.synthetic_files import write_dicom
from tests.cases.cut_tar import cuts
from tests.cases.scans import cine


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


def test_a_child_that_dies_while_it_is_idle_costs_nothing(recording: Path, tmp_path: Path) -> None:
    with Converter(Limits(), tmp_path, [recording.parent]) as converter:
        list(converter.convert(task_of(recording)))
        dead = converter.pid
        end(dead)
        after = [one.refusal for _ in range(4) for one in converter.convert(task_of(recording))]
        assert converter.pid != dead
    assert after == [None] * 4


def end(pid: int | None) -> None:
    """Kill a child, and wait until it is gone."""
    child = psutil.Process(pid)
    child.kill()
    child.wait(60)


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


STILL = {(rows, columns): cine(1, rows, columns)[0] for rows, columns in ((1080, 1440), (96, 128))}


def still(number: int, rows: int, columns: int) -> bytes:
    """A JPEG of its own pixels."""
    frame = STILL[rows, columns].copy()
    bits = np.repeat(number >> np.arange(10) & 1, 6)
    frame[rows // 2 : rows // 2 + 8, columns // 2 : columns // 2 + 60] = 60 + bits * 120
    return cv2.imencode(".jpg", frame)[1].tobytes()


def zip_of_stills(path: Path, num: int, rows: int, columns: int) -> Path:
    """Write num stills into a zip."""
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(num):
            archive.writestr(f"{number:04}.jpg", still(number, rows, columns))
    return path


def tar_of_stills(path: Path, num: int, mode: Literal["w", "w:gz"] = "w") -> Path:
    """Write num small stills into a tar."""
    with tarfile.open(path, mode) as archive:
        for number in range(num):
            info, data = tarfile.TarInfo(f"{number:04}.jpg"), still(number, 96, 128)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def contents(converter: Converter, path: Path) -> list[tuple[str, Reason | None, bytes]]:
    """Name, outcome and hash of the pixels of each member."""
    task = Task(path, path.name, FrameChoice(3), pixels="public")
    return [(one.name, one.refusal, one.content) for one in converter.convert(task)]


@pytest.mark.parametrize(
    ("num", "seconds", "num_times"), [(200, 0.5, 1), pytest.param(1000, 1, 3, marks=pytest.mark.slow)]
)
def test_limits_are_of_a_member_and_never_of_the_archive(
    num: int, seconds: float, num_times: int, tmp_path: Path
) -> None:
    """A child may use 2 or 3 s of a processor at most, which a tenth of 1,000 stills takes."""
    path = zip_of_stills(tmp_path / "a.zip", num, 1080, 1440)
    with Converter(Limits(seconds=seconds), tmp_path, [tmp_path]) as converter:
        found = [contents(converter, path) for _ in range(num_times)]
    assert [(name, refusal) for name, refusal, _ in found[0]] == [(f"a.zip!{n:04}.jpg", None) for n in range(num)]
    assert len({content for _, _, content in found[0]}) == num
    assert all(again == found[0] for again in found)


def test_members_that_are_too_slow_each_have_an_outcome_under_their_own_name(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(20):
            archive.writestr(f"slow-{number}.dcm", slow_dicom())
    with Converter(Limits(seconds=0.25), tmp_path, [tmp_path]) as converter:
        found = [(name, refusal) for name, refusal, _ in contents(converter, path)]
    assert found == [(f"a.zip!slow-{number}.dcm", Reason.TIMEOUT) for number in range(20)]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("victim", ["pid", "unpacker_pid"])
def test_whatever_dies_between_members_none_is_lost_or_twice(kind: str, victim: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    if kind == "zip":
        zip_of_stills(path, 6, 96, 128)
    else:
        tar_of_stills(path, 6, "w:gz" if kind == "tar.gz" else "w")
    with Converter(Limits(), tmp_path, [tmp_path]) as converter:
        found = []
        for one in converter.convert(Task(path, "a", FrameChoice(3), pixels="public")):
            found.append((one.name, one.refusal))
            end(getattr(converter, victim))
    assert found == [(f"a!{number:04}.jpg", None) for number in range(6)]


def test_a_cut_tar_has_an_outcome_and_so_has_each_of_its_members(tmp_path: Path) -> None:
    path = tar_of_stills(tmp_path / "a.tar", 3)
    whole = [("a.tar!0000.jpg", None)]
    broken = [("a.tar", Reason.UNDECODABLE)]
    inside = [("a.tar!0001.jpg", Reason.UNDECODABLE)]
    expected = {"in_header": whole + broken, "in_data": whole + inside + broken}
    found = cuts(path.read_bytes())
    with Converter(Limits(), tmp_path, [tmp_path]) as converter:
        for place, outcomes in expected.items():
            path.write_bytes(found[place])
            assert [(name, refusal) for name, refusal, _ in contents(converter, path)] == outcomes


def test_a_scan_mask_that_is_no_picture_has_its_own_reason(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(still(0, 96, 128))
    (tmp_path / "text.png").write_text("no picture")
    cv2.imwrite(str(tmp_path / "small.png"), np.ones((9, 9), np.uint8))
    cv2.imwrite(str(tmp_path / "empty.png"), np.zeros((96, 128), np.uint8))
    cv2.imwrite(str(tmp_path / "good.png"), np.ones((96, 128), np.uint8))
    expected = {
        "absent.png": Reason.MASK_UNREADABLE,
        "text.png": Reason.MASK_UNREADABLE,
        "small.png": Reason.MASK_MISMATCH,
        "empty.png": Reason.MASK_EMPTY,
        "good.png": None,
    }
    with Converter(Limits(), tmp_path, [tmp_path]) as converter:
        task = Task(tmp_path / "a.jpg", "a.jpg", pixels="public")
        masked = [converter.convert_file(replace(task, mask=tmp_path / name)) for name in expected]
    assert [one.refusal for one in masked] == list(expected.values())


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

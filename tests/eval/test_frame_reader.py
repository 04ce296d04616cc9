"""Labelled recordings in a child: what kills it, or may not be read, is left out by name."""

import os
import signal
import threading
from pathlib import Path

import psutil
import pytest

from eval.datasets import load_set
from eval.frame_reader import FrameReader
from eval.labelled_files import Entry
from eval.ultrabench import BENCH_SETS
from pipeline.bench.hostile import slow_dicom
from sharding.child import Fault
from sharding.recording import FrameChoice, Reason, Rejected
from tests.eval.fakes import write_fake

SIZE = 48
GBCU = next(one for one in BENCH_SETS if one.key == "gbcu")


def test_a_recording_that_kills_its_decoder_costs_itself_alone(tmp_path: Path) -> None:
    folder = write_fake(GBCU, "head", tmp_path)
    (folder / "images" / "slow.dcm").write_bytes(slow_dicom())
    slow = Entry(folder / "images" / "slow.dcm", "images/slow.dcm", "0", "p")
    entries = [Entry(folder / "images" / name, name, "0", "p") for name in ("test_0.png", "test_1.png")]
    with FrameReader([*entries, slow]) as reader:
        good = [reader.read(entry, FrameChoice(4), SIZE) for entry in entries]
        stop = threading.Event()
        killer = threading.Thread(target=kill_children, args=(reader, stop))
        killer.start()
        with pytest.raises(Fault, match="crashed"):
            reader.read(slow, FrameChoice(4), SIZE)
        stop.set()
        killer.join()
        again = [reader.read(entry, FrameChoice(4), SIZE) for entry in entries]
    assert [frame.square.tolist() for frames in again for frame in frames] == [
        frame.square.tolist() for frames in good for frame in frames
    ]


def kill_children(reader: FrameReader, stop: threading.Event) -> None:
    while not stop.wait(0.001):
        if reader.pid is not None and psutil.pid_exists(reader.pid):
            os.kill(reader.pid, signal.SIGKILL)


def test_what_is_left_out_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_fake(GBCU, "head", tmp_path)
    (folder / "images" / "test_0.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    made = load_set(str(folder), SIZE)
    assert made.num_refused == 1
    assert "recordings are left out: images/test_0.png (too_large)\n" in capsys.readouterr().out


def test_files_of_others_are_not_read_and_links_of_the_set_are(tmp_path: Path) -> None:
    folder = write_fake(GBCU, "head", tmp_path / "set")
    away = tmp_path / "annex" / "store.png"
    away.parent.mkdir()
    (folder / "images" / "test_0.png").rename(away)
    (folder / "images" / "test_0.png").symlink_to(away)
    (tmp_path / "other.png").write_bytes(away.read_bytes())
    linked = Entry(folder / "images" / "test_0.png", "a", "0", "p")
    other = Entry(tmp_path / "other.png", "b", "0", "p")
    with FrameReader([linked]) as reader:
        assert len(reader.read(linked, FrameChoice(4), SIZE)) == 1
        with pytest.raises((OSError, Rejected)) as error:
            reader.read(other, FrameChoice(4), SIZE)
    assert isinstance(error.value, PermissionError) or error.value.args == (str(Reason.UNREADABLE),)

"""Shards are many, descriptors few: a pass over more shards than may be open, and a sentence when there are none."""

import errno
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sharding.open_files import explain_exhausted, max_open
from sharding.reader import ShardReader
from sharding.stream import PositionDataset
from sharding.unit import explain
from tests.conftest import ROOT
from tests.sharding.jobs import job_of
from tests.sharding.streams import open_stream, write_tar

_ONE_PASS = """
import os, resource, sys
from pathlib import Path
import numpy as np
from sharding.open_files import allow_open_files
from sharding.reader import BadSampleError
from tests.sharding.streams import open_stream

num_files = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (num_files, num_files))
dataset = open_stream([sys.argv[1]], Path(sys.argv[2]), batch=100)
allow_open_files()
most, seen = 0, []
for start in range(0, dataset.order.num_samples, 100):
    for _, sample in dataset.samples(np.arange(start, min(start + 100, dataset.order.num_samples))):
        assert not isinstance(sample, BadSampleError), sample
        seen.append(sample.frame.sum())
    most = max(most, len(os.listdir("/proc/self/fd")))
print(len(seen), len(set(seen)), most)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("US_JEPA_CACHE", str(folder))
    return folder


def _copies(folder: Path, num: int) -> Path:
    """A folder of equal shards of two samples, which are one file with many names."""
    first = write_tar(folder.parent / "first.tar", ["a.png", "b.png"])
    folder.mkdir()
    for number in range(num):
        os.link(first, folder / f"{number:05}.tar")
    return folder


def _pass(folder: Path, tmp_path: Path, num_files: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _ONE_PASS, str(folder), str(tmp_path), str(num_files)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize(("num_shards", "num_files"), [(400, 256), pytest.param(5000, 4096, marks=pytest.mark.slow)])
def test_a_pass_over_more_shards_than_files_may_be_open(num_shards: int, num_files: int, tmp_path: Path) -> None:
    done = _pass(_copies(tmp_path / "set", num_shards), tmp_path, num_files)
    assert done.returncode == 0, done.stderr[-1000:]
    num_read, num_distinct, most = map(int, done.stdout.split())
    assert (num_read, num_distinct) == (2 * num_shards, 2)
    assert most <= num_files // 4 + 64  # shards, and the files of Python and its libraries


def test_a_limit_too_low_for_anything_is_said_as_such(tmp_path: Path) -> None:
    """The files that Python and its libraries have open are all that may be."""
    folder = _copies(tmp_path / "set", 3)
    code = (
        "import os, resource\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from tests.sharding.streams import open_stream\n"
        f"dataset = open_stream(['{folder}'], Path('{tmp_path}'))\n"
        "list(dataset.samples(np.arange(6)))\n"  # imports what is imported at the first need
        "dataset.__setstate__({})\n"  # closes all
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "held = []\n"
        "try:\n"
        "    while True: held.append(os.open('/dev/null', os.O_RDONLY))\n"
        "except OSError: pass\n"
        "list(dataset.samples(np.arange(6)))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith(f"sharding.recording.InputError: shard {folder}/0000")
    assert said.endswith(
        "this process has all of its 64 files open, and may have no more; its hard limit is 64: let an administrator "
        "raise it, type `ulimit -n 4096`, and start again"
    )


def _open_files() -> set[int]:
    return {int(path.name) for path in Path("/proc/self/fd").iterdir()}


def _readers(dataset: PositionDataset) -> int:
    return len(dataset._readers)


def test_where_no_more_files_may_be_open_others_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that other programs' files have used up in part: shards give way, and every sample is read."""
    dataset = open_stream([str(_copies(tmp_path / "set", 60))], tmp_path)
    monkeypatch.setattr("sharding.stream.max_open", lambda: 1000)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = sorted(set(range(2000)) - _open_files())[30]  # 30 more may be opened
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        read = dict(dataset.samples(np.arange(120)))
        held = _readers(dataset)
        dataset.__setstate__({})  # closes them
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert sorted(read) == list(range(120))
    assert not [sample for sample in read.values() if isinstance(sample, Exception)]
    assert 0 < held < 60


def test_a_reader_holds_one_file_open(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", ["a.png"])
    before = len(_open_files())
    with ShardReader(path) as reader:
        assert len(_open_files()) == before + 1
        assert reader[0].key == "a"
    assert len(_open_files()) == before


@pytest.mark.parametrize(("soft", "hard", "advice"), [
    (1024, 4096, "type `ulimit -n 4096` and start again"),
    (1024, resource.RLIM_INFINITY, "type `ulimit -n 4096` and start again"),
    (8192, 65536, "type `ulimit -n 16384` and start again"),
    (4096, 4096, "its hard limit is 4096: let an administrator raise it, type `ulimit -n 8192`, and start again"),
])  # fmt: skip
def test_the_sentence_says_what_to_type(soft: int, hard: int, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    said = explain_exhausted(OSError(errno.EMFILE, "Too many open files"))
    assert said == f"this process has all of its {soft} files open, and may have no more; {advice}"
    assert max_open() == min(1024, soft // 4)
    assert "file-max" in explain_exhausted(OSError(errno.ENFILE, "Too many open files in system"))


def test_a_job_says_it_too(tmp_path: Path) -> None:
    said = explain(OSError(errno.EMFILE, "Too many open files"), job_of("source", "out", tmp_path))
    assert re.fullmatch(r"out: this process has all of its \d+ files open, .*; finished units are kept", said)

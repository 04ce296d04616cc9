"""Names that are no UTF-8: sources, folders, members, lists, OUT, in this process and through the command."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sharding.deidentify import Pseudonyms
from sharding.job import on_processes, run
from sharding.manifest import load_manifest
from sharding.names import path_for_decoders, printable
from sharding.plan import make_plan
from sharding.policy import Policy
from sharding.reader import ShardReader
from sharding.recording import FrameChoice
from tests.cases.odd_names import LATIN, dicom, still, write_sources
from tests.conftest import KEY, ROOT
from tests.sharding.jobs import job_of, outcomes_of

PUBLIC = Policy("odd", FrameChoice(max_frames=2), val_share=0.0, pixels="public")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("odd") / LATIN
    folder.mkdir()
    return folder, write_sources(folder)


def test_every_kind_of_source_has_its_outcome_under_an_odd_name(
    odd: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    source, expected = odd
    out = tmp_path / f"{LATIN}-out"
    job = job_of(source, out, tmp_path, policy=PUBLIC)
    list(run(job, make_plan(job), on_processes(2)))
    assert load_manifest(out).outcomes == expected
    known = {line["source"] for line in outcomes_of(out)}
    assert Pseudonyms(KEY).of("source", f"{LATIN}/{LATIN}.tif") in known


def test_pseudonyms_of_all_other_names_stay() -> None:
    pseudonyms = Pseudonyms(bytes(32))
    assert pseudonyms.of("source", "a/Müller.dcm") == "vyug3tfbjwy7vu35vkqilfy45u"
    assert pseudonyms.of("source", LATIN) != pseudonyms.of("source", os.fsdecode(b"M\xe4ller"))


def test_a_table_of_labels_may_name_files_by_their_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / f"{LATIN}.png").write_bytes(still())
    table = tmp_path / "labels.csv"
    table.write_bytes(b"path,label,group\nM\xfcller.png,benign,p\n")
    job = job_of(folder, tmp_path / "out", tmp_path, policy=PUBLIC, labels=table)
    list(run(job, make_plan(job), on_processes(1)))
    reader = ShardReader(tmp_path / "out" / load_manifest(job.out).shards[0].name)
    assert reader[0].meta.label == "benign"


def test_decoders_get_a_path_that_they_can_take(tmp_path: Path) -> None:
    path = tmp_path / LATIN
    path.write_bytes(b"content")
    with path_for_decoders(path) as place:
        assert str(place).isascii()
        assert place.read_bytes() == b"content"
    assert not place.exists()
    with path_for_decoders(tmp_path) as place:
        assert place == tmp_path
    with pytest.raises(FileNotFoundError), path_for_decoders(tmp_path / f"{LATIN}.gone"):
        pass


def us_jepa(*words: str | Path, home: Path) -> tuple[int, str]:
    """Exit code and all output of the command; its output is no terminal, and ASCII."""
    settings = os.environ | {"US_JEPA_KEY_FILE": str(home / "key"), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"}
    settings |= {"US_JEPA_CACHE": str(home / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipeline.cli", *map(str, words)]
    done = subprocess.run(command, env=settings, capture_output=True, check=False, timeout=300)
    return done.returncode, (done.stdout + done.stderr).decode()


@pytest.mark.launch
@pytest.mark.parametrize("kind", ["file", "folder", "dry run", "out"])
def test_the_command_takes_odd_names_and_prints_them(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / LATIN
    folder.mkdir()
    (folder / f"{LATIN}.dcm").write_bytes(dicom())
    source = folder / f"{LATIN}.dcm" if kind == "file" else folder
    more = ["--dry-run"] if kind == "dry run" else []
    out = tmp_path / (LATIN if kind == "out" else "set")
    if kind == "out":
        shutil.copytree(folder, tmp_path / "plain")
        source = tmp_path / "plain"
        out = tmp_path / f"{LATIN}.out"
        code, text = us_jepa("shards", source, out, home=tmp_path)
        assert (code, "give a name of your own with --dataset" in text) == (2, True), text
        more = ["--dataset", "odd"]
    code, text = us_jepa("shards", source, out, "--workers", "1", "--max-frames", "2", *more, home=tmp_path)
    assert code == 0, text
    assert "Traceback" not in text
    assert "accepted" in text
    if kind == "out":
        assert printable(str(out)) in text
        code, text = us_jepa("verify", out, home=tmp_path)
        assert (code, "2 samples in 1 shards are whole" in text) == (0, True), text

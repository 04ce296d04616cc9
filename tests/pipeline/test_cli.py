"""The us-jepa command: messages, exit codes, and shards from the shell."""

from pathlib import Path

import pytest

from pipeline.doctor import examine
from sharding.manifest import load_manifest
from tests.conftest import run_command

pytestmark = pytest.mark.launch


def us_jepa(*words: str | Path, home: Path) -> tuple[int, str, str]:
    done = run_command("us-jepa", *map(str, words), US_JEPA_KEY_FILE=str(home / "key"))
    return done.returncode, done.stdout, done.stderr


def test_an_empty_source_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, errors = us_jepa("shards", tmp_path / "empty", tmp_path / "out", home=tmp_path)
    assert code == 2
    assert errors.strip() == (
        f"us-jepa shards: source {tmp_path}/empty: no file in it; give a folder of DICOM, video or image files"
    )


def test_a_text_file_named_dcm_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.dcm").write_text("hello")
    code, _, errors = us_jepa("shards", tmp_path / "src", tmp_path / "out", home=tmp_path)
    assert code == 2
    assert "none of its 1 files was accepted (not_readable_kind: 1)" in errors
    assert load_manifest(tmp_path / "out").outcomes == {"not_readable_kind": 1}


def test_shards_and_verify_from_the_shell(labelled: Path, tmp_path: Path) -> None:
    code, printed, errors = us_jepa("shards", labelled, tmp_path / "out", "--max-frames", "2", home=tmp_path)
    assert code == 0, errors
    assert "next: us-jepa verify" in printed
    code, printed, _ = us_jepa("verify", tmp_path / "out", home=tmp_path)
    assert code == 0
    assert "samples in" in printed
    assert "Accepted frames" in (tmp_path / "out" / "report.html").read_text()
    assert "http" not in (tmp_path / "out" / "report.html").read_text()


def test_a_missing_shard_directory_and_run_are_one_sentence(tmp_path: Path) -> None:
    code, _, errors = us_jepa("verify", tmp_path / "none", home=tmp_path)
    assert code == 2
    assert "is not a folder; make it with `make shards SRC=... OUT=" in errors
    code, _, errors = us_jepa("probe", tmp_path, "--data", tmp_path, home=tmp_path)
    assert code == 2
    assert "has no encoder/; finish it with" in errors


def test_doctor_says_which_shards_are_bad(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examine([shards])
    assert f"ok   {shards}: " in capsys.readouterr().out
    assert examine([tmp_path / "none"]) == 1
    assert "BAD  shards:" in capsys.readouterr().out

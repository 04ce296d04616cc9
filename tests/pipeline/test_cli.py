"""The us-jepa command: messages, exit codes, and shards from the shell."""

import argparse
import re
from collections import Counter
from pathlib import Path

import pytest

from pipeline.arguments import make_parser
from pipeline.doctor import Load, examine
from sharding.manifest import load_manifest
from sharding.reader import ShardReader
from tests.cases.label_tables import NAMES, variants, write_pictures
from tests.cases.strangers_tars import make
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
        f"us-jepa shards: source {tmp_path}/empty: no file in it; give a folder of DICOM, video, image or archive files"
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


def test_a_dry_run_foretells_and_writes_nothing(labelled: Path, tmp_path: Path) -> None:
    code, printed, errors = us_jepa("shards", labelled, tmp_path / "out", "--dry-run", home=tmp_path)
    assert code == 0, errors
    assert "of 24 sources tried. All 25 would give about" in " ".join(printed.split())
    assert "Nothing was written" in printed
    assert not (tmp_path / "out").exists()


def test_slices_from_the_shell_end_in_one_manifest_and_a_preview(labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for place, said in (("1/2", "units of other slices are missing"), ("0/2", "next: us-jepa verify")):
        code, printed, errors = us_jepa("shards", labelled, out, "--unit", place, "--max-frames", "2", home=tmp_path)
        assert code == 0, errors
        assert said in printed
    code, _, errors = us_jepa("preview", out, "--to", tmp_path / "sheet.png", home=tmp_path)
    assert code == 0, errors
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    code, _, errors = us_jepa("shards", labelled, out, "--unit", "2/2", home=tmp_path)
    assert (code, errors.strip()) == (2, "us-jepa shards: unit 2/2: the first number must be from 0 to 1")
    code, _, errors = us_jepa("shards", labelled, out, "--unit", "two", home=tmp_path)
    assert (code, errors.strip()) == (2, "us-jepa shards: --unit two: must be I/N, for example 0/4")


def test_verify_refuses_forbidden_names(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("synthetic hospital\ntiny\n")  # `tiny` is the name of the data set
    code, _, errors = us_jepa("verify", shards, "--forbid", tmp_path / "names.txt", home=tmp_path)
    assert code == 2
    assert "a forbidden string occurs at byte" in errors
    code, _, errors = us_jepa("verify", shards, "--forbid", tmp_path / "none.txt", home=tmp_path)
    assert (code, "no such file; give one name or number per line" in errors) == (2, True)


def test_labels_that_are_missing_are_named(labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,label,group\nnot-there.dcm,a,b\n")
    code, _, errors = us_jepa("shards", labelled, tmp_path / "out", "--labels", tmp_path / "labels.csv", home=tmp_path)
    assert code == 2
    assert "1 of 1 rows match no source, the first is not-there.dcm; paths are relative to" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("kind", ["utf16_tab", "nan_label", "dotslash"])
def test_shards_prints_the_classes_of_a_table_first(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "scans"
    write_pictures(source, NAMES)
    table = tmp_path / "labels.csv"
    table.write_bytes(variants(source)[kind][1] + (b"gone.png,malignant,p99\n" if kind == "nan_label" else b""))
    words = ("shards", source, tmp_path / "out", "--pixels", "public", "--labels", table, "--workers", "1")
    code, printed, errors = us_jepa(*words, "--allow-unmatched", home=tmp_path)
    assert code == 0, errors
    num_rows, num_benign, num_malignant = (25, 8, 13) if kind == "nan_label" else (24, 12, 12)
    first = f"labels {table}: {num_rows} listed sources; classes: benign {num_benign}, malignant {num_malignant}"
    assert printed.splitlines()[0] == first
    assert ("1 of 25 rows match no source, the first is gone.png" in printed) == (kind == "nan_label")
    found: Counter[str | None] = Counter()
    for shard in load_manifest(tmp_path / "out").shards:
        reader = ShardReader(tmp_path / "out" / shard.name)
        found.update(reader[row].meta.label for row in range(len(reader)))
    assert found == (
        {"benign": 8, "malignant": 12, None: 4} if kind == "nan_label" else {"benign": 12, "malignant": 12}
    )


def test_an_out_that_names_no_data_set_is_told_of_dataset(labelled: Path, tmp_path: Path) -> None:
    code, _, errors = us_jepa("shards", labelled, tmp_path / "My.Out", home=tmp_path)
    assert code == 2
    assert "its last part, my.out, names the data set; only [a-z0-9_-] is allowed there" in errors
    assert "give a name of your own with --dataset" in errors


def test_verify_says_what_it_looked_for(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_bytes("Quorvath^Zoë;1947-01-02\nQuorvath^Max;x\n".encode("utf-16"))
    code, printed, errors = us_jepa("verify", shards, "--forbid", tmp_path / "names.csv", home=tmp_path)
    assert code == 0, errors
    assert "2 lines hold several cells, the first is line 1; each cell is looked for on its own" in printed
    assert "are whole, and none of the 4 strings of" in " ".join(printed.split())


def test_a_missing_shard_directory_and_run_are_one_sentence(tmp_path: Path) -> None:
    code, _, errors = us_jepa("verify", tmp_path / "none", home=tmp_path)
    assert code == 2
    assert "is not a folder; make it with `make shards SRC=... OUT=" in errors
    code, _, errors = us_jepa("probe", tmp_path, "--data", tmp_path, home=tmp_path)
    assert code == 2
    assert "has no encoder/; finish it with" in errors


def test_doctor_measures_the_stream_and_says_what_to_change(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examine([str(shards)], Load(world=1, num_workers=2, images_per_s=1, cap=30))
    said = capsys.readouterr().out
    assert re.search(rf"ok   {shards}: \d+ training frames in 2 shards, 100% of an epoch, all of them seen after", said)
    assert re.search(r"ok   first batch of 128 at step 10\^6: 0\.\d+ s", said)
    assert re.search(r"ok   0 bad samples among \d+", said)
    assert examine([str(tmp_path / "none"), str(shards)], Load(world=4, num_workers=1, images_per_s=1e6)) == 1
    said = capsys.readouterr().out
    assert "fail shards:" in said
    assert "fail 2 shards for 4 ranks; ranks share shards" in said
    assert re.search(r"fail decoding .* needed 4,000,000/s; set run.num_workers to \d+ on \d+ cores", said)


def test_doctor_reads_any_names_and_says_what_is_wrong_with_the_first_bad_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("US_JEPA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pipeline.doctor._SECONDS", 0.1)
    names, apart = (make(name, tmp_path) for name in ("latin1_pax", "not_adjacent"))
    examine([str(names)], Load(world=1, num_workers=1, images_per_s=1))
    assert f"ok   {names}: 32 training frames in 1 shards" in capsys.readouterr().out
    assert examine([str(apart)], Load(world=1, num_workers=1, images_per_s=1)) == 1
    said = capsys.readouterr().out
    assert re.search(
        rf"fail \d+ bad samples among \d+; the first: shard {apart}/x\.tar: sample s00\d\d: no picture", said
    )


def test_encoders_are_compared_from_the_shell(labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "probe"
    command = ("us-jepa", "probe", "--encoders", "random:test_vit", "--sets", str(labelled), "--out", str(out))
    store = f"sqlite:///{tmp_path}/mlflow.db"
    more = ("--size", "32", "--frames", "1", "--folds", "3", "--protocol", "fair,knn", "--few-shot")
    done = run_command(*command, *more, MLFLOW_TRACKING_URI=store)
    assert done.returncode == 0, done.stderr
    assert "random test_vit" in done.stdout
    assert "Probe (knn) on" in done.stdout
    assert "few shots" in (out / "report.html").read_text()
    assert "next:    make review" in done.stdout
    names = {"results.json", "table.md", "table.tex", "report.html", "mlflow_run.json"}
    assert names < {path.name for path in out.iterdir()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--encoders", "pixels"], "give RUN and --data SET, or --encoders A,B --sets X,Y --out DIR"),
        (["run", "--data", "x", "--sets", "y"], "give RUN and --data SET, or"),
        (["no-run", "--data", "x"], "run no-run: has no encoder/; finish it with"),
    ],
)
def test_what_probe_lacks_is_one_sentence(words: list[str], message: str, tmp_path: Path) -> None:
    code, _, errors = us_jepa("probe", *words, home=tmp_path)
    assert code == 2
    assert message in errors


def test_every_option_that_the_makefile_and_the_readme_show_exists() -> None:
    root = Path(__file__).parents[2]
    [commands] = [one for one in make_parser("")._actions if isinstance(one, argparse._SubParsersAction)]
    text = (root / "Makefile").read_text().replace("\n\t", " ") + (root / "README.md").read_text().replace("\\\n", " ")
    shown = [
        (option, name)
        for line in text.splitlines()
        if (name := next(iter(re.findall(r"us-jepa ([a-z]+)", line)), "")) in commands.choices
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)
    ]
    assert len(shown) > 10
    unknown = [pair for pair in shown if pair[0] not in commands.choices[pair[1]]._option_string_actions]
    assert not unknown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("shards a b --workers 0", "argument --workers: must be at least 1, not 0"),
        ("shards a b --seconds nan", "argument --seconds: must be a number above 0, not nan"),
        ("shards a b --memory -1", "argument --memory: must be a number above 0, not -1"),
        ("embed a b c --topk -1", "argument --topk: must be at least 0, not -1"),
        ("serve a --max-wait-ms inf", "argument --max-wait-ms: must be a finite number, not inf"),
        ("pretrain --config c --num-gpus 0", "argument --num-gpus: must be at least 1, not 0"),
        ("probe --folds 0", "argument --folds: must be at least 1, not 0"),
        ("plan --frames nan", "argument --frames: must be a number above 0, not nan"),
        ("doctor --ranks 0", "argument --ranks: must be at least 1, not 0"),
        ("verify ~nobody-here/a", "argument directory: ~nobody-here is no user of this machine; write the path out"),
    ],
)
def test_a_number_or_path_that_makes_no_sense_is_refused(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser("").parse_args(words.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_home_directory_is_meant_where_a_shell_leaves_the_tilde() -> None:
    args = make_parser("").parse_args(["shards", "~/scans", "s3://b/~x", "--labels=~/labels.csv", "--max-frames", "3"])
    assert args.source == str(Path.home() / "scans")
    assert args.out == "s3://b/~x"
    assert args.labels == Path.home() / "labels.csv"

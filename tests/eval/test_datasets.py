"""Labelled sets: UltraBench's layouts, labels.csv, shards; keys and content hashes; what is refused."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest

from eval.comparison_sets import set_identity
from eval.datasets import load_set
from eval.ultrabench import BENCH_SETS, BenchSet, bench_set, find_folder
from sharding.policy import Policy
from sharding.recording import FrameChoice, InputError
from sharding.sources.synthetic_files import write_demo_set
from tests.cases.odd_names import LATIN
from tests.conftest import make_shards
from tests.eval.fakes import Layout, draw, scaled, write_fake

SIZE = 48


def write_table(folder: Path, rows: list[dict[str, str]]) -> Path:
    """A labels.csv of rows with new pictures."""
    rng = np.random.default_rng(0)
    for row in rows:
        if not (folder / row["path"]).exists():
            cv2.imwrite(str(folder / row["path"]), draw(0.5, rng)[0])
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def some_rows(num: int = 8, **more: str) -> list[dict[str, str]]:
    return [{"path": f"{n}.png", "label": "ab"[n % 2], "group": f"g{n // 2}"} | more for n in range(num)]


def known(key: str) -> BenchSet:
    found = bench_set(key)
    assert found is not None
    return found


@pytest.mark.parametrize("layout", ["v1.0.1", "head"])
@pytest.mark.parametrize("one", BENCH_SETS, ids=[one.key for one in BENCH_SETS])
def test_a_set_of_the_paper_is_read_by_name(one: BenchSet, layout: Layout, tmp_path: Path) -> None:
    write_fake(one, layout, tmp_path)
    made = load_set(f"{one.key}={tmp_path}", SIZE)
    assert made.name == one.name
    assert made.classes == one.classes
    assert made.num_refused == 0
    assert made.splits is not None
    expected = one.expected(has_val=layout == "v1.0.1")
    for split, number in expected.items():
        assert (made.splits == split).sum() == scaled(number, len(one.classes))
    assert set(made.splits) == set(expected)
    assert 0.3 < (made.squares[:, 1] > 0).mean() < 0.8
    groups_are_images = len(set(made.groups)) == len(made.groups)
    assert groups_are_images == (one.unit == "image")
    for group in set(made.groups):
        assert len(set(made.splits[made.groups == group])) == 1


def test_the_paper_s_counts_are_those_of_its_table_and_of_the_lists() -> None:
    totals = {"aul": 735, "busbra": 1064, "butterfly": 41076, "fatty_liver": 550, "gbcu": 1255, "mmotu": 1469}
    totals |= {"pocus": 2064, "tn5000": 5000}
    assert {one.key: sum(one.counts) for one in BENCH_SETS} == totals
    same = [one for one in BENCH_SETS if one.listed is not None and one.key != "pocus"]
    assert all(one.listed == (sum(one.counts[:2]), one.counts[2]) for one in same)
    assert bench_set("Fatty Liver") is bench_set("FATTY_LIVER") is known("fatty_liver")


def test_masks_lie_on_the_squares_as_the_lesions_do(tmp_path: Path) -> None:
    write_fake(known("aul"), "head", tmp_path)
    made = load_set(f"aul={tmp_path}", SIZE)
    assert made.masks is not None
    assert made.masks.shape == (len(made.labels), SIZE, SIZE)
    assert set(np.unique(made.masks)) == {0, 1}
    inside = made.squares[:, 1] > 0
    assert not made.masks[~inside].any()
    lesion, rest = (made.masks > 0), (made.masks == 0) & inside
    assert made.squares[:, 0][lesion].mean() + 60 < made.squares[:, 0][rest].mean()  # drawn darker
    write_fake(known("mmotu"), "head", tmp_path)
    tumours = load_set(f"mmotu={tmp_path}", SIZE)
    assert tumours.masks is not None
    for label, mask in zip(tumours.labels, tumours.masks, strict=True):
        assert set(np.unique(mask)) == {0, label + 1}


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = write_fake(known("aul"), "head", tmp_path)
    cv2.imwrite(str(folder / "masks" / "mass" / "test_0.png"), np.zeros((5, 6), np.uint8))
    with pytest.raises(InputError, match=r"test_0\.png: \(5, 6\); the picture is \(60, 80\)"):
        load_set(str(folder), SIZE)


def test_keys_and_hash_do_not_depend_on_the_order(tmp_path: Path) -> None:
    folder = write_fake(known("fatty_liver"), "v1.0.1", tmp_path)
    made = load_set(str(folder), SIZE)
    for name in ("train.json", "test.json"):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text())[::-1]))
    again = load_set(str(folder), SIZE)
    assert made.sha256 == again.sha256
    assert set(made.keys) == set(again.keys)
    assert list(made.keys) != list(again.keys)
    place = {key: row for row, key in enumerate(again.keys)}
    rows = [place[key] for key in made.keys]
    for name in ("squares", "labels", "groups", "splits"):
        assert (getattr(made, name) == getattr(again.take(np.array(rows)), name)).all()


def test_equal_pictures_have_keys_of_their_own_whatever_the_order(tmp_path: Path) -> None:
    rows = some_rows(4)
    write_table(tmp_path, rows)
    shutil.copy(tmp_path / "0.png", tmp_path / "1.png")  # the same picture and group with another label
    made = load_set(str(tmp_path), SIZE)
    assert len(set(made.keys)) == 4
    write_table(tmp_path, rows[::-1])
    again = load_set(str(tmp_path), SIZE)
    known_labels = dict(zip(made.keys, made.labels, strict=True))
    assert known_labels == dict(zip(again.keys, again.labels, strict=True))
    assert made.sha256 == again.sha256


@pytest.mark.parametrize("part", ["squares", "labels", "groups", "splits", "masks"])
def test_the_hash_is_of_everything_that_changes_a_number(part: str, tmp_path: Path) -> None:
    write_fake(known("aul"), "v1.0.1", tmp_path)
    made = load_set(f"aul={tmp_path}", SIZE)
    values = getattr(made, part).copy()
    values[0] = values[-1] if part in {"labels", "groups", "splits"} else 255 - values[0]
    assert replace(made, **{part: values}).sha256 != made.sha256


def test_a_table_may_have_splits(tmp_path: Path) -> None:
    rows = [row | {"split": ("train", "validation", "test")[n % 3]} for n, row in enumerate(some_rows())]
    made = load_set(str(write_table(tmp_path, rows)), SIZE)
    assert made.splits is not None
    assert set(made.splits) == {"train", "val", "test"}
    assert made.classes == ("a", "b")
    rows[2]["split"] = ""
    with pytest.raises(InputError, match=r"labels\.csv: 2\.png has no split, others have; all or none"):
        load_set(str(write_table(tmp_path, rows)), SIZE)
    rows[2]["split"] = "dev"
    with pytest.raises(InputError, match=r"2\.png has the split 'dev'; one of train, val, test is needed"):
        load_set(str(write_table(tmp_path, rows)), SIZE)


def test_a_shard_directory_with_labels_is_a_set(labelled: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(labelled, source)
    table = source / "labels.csv"
    names = {row["path"] for row in csv.DictReader(table.open())}
    shutil.move(table, tmp_path / "labels.csv")
    shards = make_shards(source, tmp_path / "out", Policy("set", FrameChoice(4)), labels=tmp_path / "labels.csv")
    made = load_set(str(shards), SIZE, frames_per_recording=2)
    assert made.classes == ("tissue_0", "tissue_1", "tissue_2")
    assert len(made.labels) == 2 * len(names)
    assert made.splits is None
    assert len(set(made.groups)) == 12
    straight = load_set(str(labelled), SIZE, frames_per_recording=2)
    assert sorted(made.labels) == sorted(straight.labels)
    assert not set(made.groups) & set(straight.groups)  # pseudonyms


def test_a_shard_directory_without_labels_is_refused(shards: Path) -> None:
    with pytest.raises(InputError, match="no sample has a label; make the shards with a table of labels"):
        load_set(str(shards), SIZE)


def test_a_folder_is_found_or_its_source_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no gbcu_v\* in .*; get it from https://gbc-iitd.*by request"):
        load_set(f"gbcu={tmp_path}", SIZE)
    for layout in ("v1.0.1", "head"):
        folder = write_fake(known("gbcu"), layout, tmp_path)  # type: ignore[arg-type]
        assert find_folder(known("gbcu"), folder) == folder
    with pytest.raises(InputError, match=r"has gbcu_v1\.0\.1, gbcu_v2\.0\.0; name one of them"):
        load_set(f"gbcu={tmp_path}", SIZE)
    with pytest.raises(InputError, match=r"set gbc=.*: gbc is none of aul, busbra,"):
        load_set(f"gbc={tmp_path}", SIZE)


def test_lists_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    folder = write_fake(known("gbcu"), "head", tmp_path)
    records = json.loads((folder / "test.json").read_text())
    cases = {
        "not a list of records": '{"a": 1}',
        "not JSON": "[",
        "label '7' is none of GBCU's: normal, benign, malignant, or 0 to 2": json.dumps([records[0] | {"label": 7}]),
        "has neither label nor pathology": json.dumps([{"image": records[0]["image"]}]),
        r"1 of 19 rows match no source, the first is images/gone": json.dumps(
            [records[0] | {"image": "images/gone.png"}]
        ),
    }
    for message, text in cases.items():
        (folder / "test.json").write_text(text)
        with pytest.raises(InputError, match=message):
            load_set(f"gbcu={folder}", SIZE)
    with pytest.raises(InputError, match="no such folder"):
        load_set(str(tmp_path / "nothing"), SIZE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"neither labels\.csv in it or beside it"):
        load_set(str(tmp_path / "empty"), SIZE)


def test_a_scan_mask_that_marks_nothing_is_a_refused_recording(tmp_path: Path) -> None:
    folder = write_fake(known("gbcu"), "head", tmp_path)
    cv2.imwrite(str(folder / "masks" / "scan" / "test_0.png"), np.zeros((60, 80), np.uint8))
    made = load_set(str(folder), SIZE)
    assert made.num_refused == 1


class Counted(np.ndarray):
    """Pixels that count how many of them are read as bytes."""

    num_read = 0

    def tobytes(self, order: Literal["A", "C", "F", "K"] | None = "C") -> bytes:
        Counted.num_read += self.nbytes
        return super().tobytes(order)


def test_the_pixels_of_a_set_are_hashed_once(tmp_path: Path) -> None:
    write_demo_set(tmp_path / "set", num_patients=4, seed=0)
    plain = load_set(str(tmp_path / "set"), size=16, frames_per_recording=1)
    made = replace(plain, squares=plain.squares.view(Counted))
    assert set_identity(made) == set_identity(made) == set_identity(plain)
    assert Counted.num_read == plain.squares.nbytes
    other = made.take(np.arange(len(made.labels) - 1))  # other samples, another hash
    assert other.sha256 != made.sha256


def test_a_set_may_have_names_that_are_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()  # OpenCV cannot write below another name
    folder = write_table(tmp_path / "plain", some_rows(2)).rename(tmp_path / LATIN)
    (folder / "0.png").rename(folder / f"{LATIN}.png")
    (folder / "labels.csv").write_bytes(b"path;label;group\nM\xfcller.png;a;g\n1.png;b;h\n")
    made = load_set(str(folder), SIZE)
    assert (made.name, made.classes, made.num_refused) == ("M\\udcfcller", ("a", "b"), 0)
    (folder / "labels.csv").write_bytes(b"path;label;group\nM\xfcller.jpg;a;g\n1.png;b;h\n")
    with pytest.raises(InputError, match="line 2 is not UTF-8; it seems to be Windows-1252, in which it has 'Müller"):
        load_set(str(folder), SIZE)

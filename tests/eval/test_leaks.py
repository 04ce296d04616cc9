"""Leaks that were planted are found, and nothing else; said without names of patients."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.cells import Json
from eval.comparison import ComparisonConfig, compare
from eval.datasets import LabelledSet, load_set
from eval.leaks import find_leaks
from eval.probe import ProbeConfig
from eval.ultrabench import BENCH_SETS, bench_set
from tests.eval.fakes import draw, write_fake

SIZE = 96
PICTURE_GROUPS = "every sample is a group of its own, so intervals are over pictures, not patients"


@pytest.fixture
def fatty(tmp_path: Path) -> Path:
    """A fake in which patients are known."""
    found = bench_set("fatty_liver")
    assert found is not None
    return write_fake(found, "v1.0.1", tmp_path)


def records_of(folder: Path, name: str) -> list[Json]:
    found: list[Json] = json.loads((folder / name).read_text())
    return found


def found_in(folder: Path) -> list[str]:
    return find_leaks(load_set(str(folder), SIZE)).lines()


def test_a_clean_set_has_none(fatty: Path) -> None:
    leaks = find_leaks(load_set(str(fatty), SIZE))
    assert leaks.lines() == []
    assert leaks.exact.shape == leaks.near.shape == (0, 2)


def test_a_patient_on_both_sides_is_found_without_a_name(fatty: Path) -> None:
    records = records_of(fatty, "test.json")
    theirs = records_of(fatty, "train.json")[0]["patient"]
    records[0]["patient"] = theirs
    (fatty / "test.json").write_text(json.dumps(records))
    made = load_set(str(fatty), SIZE)
    leaks = find_leaks(made)
    assert leaks.shared_groups == (theirs,)
    num = int(((made.groups == theirs) & (made.splits == "train")).sum())
    assert leaks.lines() == [
        f"1 groups (patients) are in several splits, with samples {num} of train, 0 of val, 1 of test"
    ]


def test_a_picture_on_both_sides_is_found(fatty: Path) -> None:
    shutil.copy(fatty / "images" / "train_0.png", fatty / "images" / "test_0.png")
    shutil.copy(fatty / "images" / "val_1.png", fatty / "images" / "test_1.png")
    made = load_set(str(fatty), SIZE)
    leaks = find_leaks(made)
    assert len(leaks.exact) == 2
    assert len(leaks.near) == 0
    for one, other in leaks.exact:
        assert (made.squares[one] == made.squares[other]).all()
        assert made.splits is not None
        assert {made.splits[one], made.splits[other]} in ({"train", "test"}, {"val", "test"})
    num = int((made.splits == "test").sum())
    assert leaks.lines() == [
        f"1 of {num} test samples have the same picture as one of train",
        f"1 of {num} test samples have the same picture as one of val",
    ]


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    found = cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)
    return np.asarray(found)


CHANGES = {
    "compressed": lambda picture: jpeg(picture, 30),
    "brighter": lambda picture: (1.2 * picture.astype(float)).clip(0, 255).astype(np.uint8),
    "noisy": lambda picture: (
        (picture + np.random.default_rng(0).normal(0, 8, picture.shape)).clip(1, 255).astype(np.uint8)
    ),
    "smaller": lambda picture: cv2.resize(
        cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), picture.shape[::-1]
    ),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_changed_copy_is_nearly_the_same(how: str, fatty: Path) -> None:
    images = fatty / "images"
    picture = cv2.imread(str(images / "train_1.png"), cv2.IMREAD_GRAYSCALE)
    assert picture is not None
    scan = cv2.imread(str(fatty / "masks" / "scan" / "train_1.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(images / "test_1.png"), CHANGES[how](picture) * (np.asarray(scan) > 0))
    made = load_set(str(fatty), SIZE)
    leaks = find_leaks(made)
    assert len(leaks.exact) == 0
    assert len(leaks.near) == 1
    num = int((made.splits == "test").sum())
    assert leaks.lines() == [f"1 of {num} test samples have nearly the same picture as one of train"]


def test_without_splits_pictures_may_not_cross_groups() -> None:
    rng = np.random.default_rng(1)
    drawn = [draw(0.3, rng)[:2] for _ in range(6)]
    squares = np.stack([np.stack([frame, scan * np.uint8(255)])[:, :, :60] for frame, scan in drawn])
    squares[3], squares[5] = squares[0], squares[4]  # within a group, and across two
    groups = np.array(["a", "a", "b", "a", "c", "d"])
    labels, keys = np.array([0, 1, 0, 0, 1, 0]), np.array(list("uvwxyz"))
    made = LabelledSet("set", squares, labels, groups, ("no", "yes"), 0, keys)
    leaks = find_leaks(made)
    assert leaks.exact.tolist() == [[4, 5]]
    assert leaks.lines() == [
        "2 of 6 samples have the same picture as one of another group",
        "1 pairs of the same picture have different labels",
    ]


def test_pictures_without_detail_are_not_alike() -> None:
    squares = np.full((4, 2, 64, 64), 255, np.uint8)
    squares[:, 0] = np.arange(100, 104)[:, None, None]
    squares[2:, 1] = 0
    values = np.arange(4)
    made = LabelledSet("set", squares, values % 2, values.astype(str), ("a", "b"), 0, values.astype(str))
    assert find_leaks(made).lines() == [PICTURE_GROUPS]


def test_blocks_find_what_one_matrix_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    first = [
        np.stack([frame, scan * np.uint8(255)])[:, :, :60] for frame, scan, _ in (draw(0.5, rng) for _ in range(9))
    ]
    squares = np.stack([*first, *first[::-1]])
    squares[9:, 0] -= (squares[9:, 0] > 100).astype(np.uint8)
    values = np.arange(18)
    made = LabelledSet("set", squares, values % 2, (values % 17).astype(str), ("a", "b"), 0, values.astype(str))
    whole = find_leaks(made).near.tolist()
    monkeypatch.setattr("eval.leaks._BLOCK", 4)
    assert find_leaks(made).near.tolist() == whole == [[n, 17 - n] for n in range(1, 9)]  # 0 and 17 are one group


def test_counts_other_than_the_paper_s_are_said(tmp_path: Path) -> None:
    pocus, gbcu = bench_set("pocus"), bench_set("gbcu")
    assert pocus is not None
    assert gbcu is not None
    write_fake(pocus, "head", tmp_path)
    write_fake(gbcu, "v1.0.1", tmp_path)
    assert find_leaks(load_set(f"pocus={tmp_path}", SIZE)).lines() == [
        "train has 18 samples, the paper's 1621",
        "test has 12 samples, the paper's 443",
    ]
    folder = tmp_path / "gbcu_v1.0.1"
    for name in ("train.json", "validation.json", "test.json"):
        kept = [record for record in records_of(folder, name) if record["label"] != 1]
        (folder / name).write_text(json.dumps(kept))
    assert find_leaks(load_set(f"gbcu={tmp_path}", SIZE)).lines()[:2] == [
        PICTURE_GROUPS,
        "no sample of the classes benign",
    ]


@pytest.mark.parametrize("layout", [pytest.param("v1.0.1", marks=pytest.mark.slow), "head"])
def test_the_eight_sets_go_through_a_comparison(layout: str, tmp_path: Path) -> None:
    for one in BENCH_SETS:
        write_fake(one, layout, tmp_path)  # type: ignore[arg-type]
    cfg = ComparisonConfig(
        encoders=("pixels",),
        sets=tuple(f"{one.key}={tmp_path}" for one in BENCH_SETS),
        size=32,
        probe=ProbeConfig(folds=2, strengths=(1e-2, 1.0)),
        pictures=False,
    )
    results = compare(cfg, tmp_path / "out", record=False)
    assert [one["name"] for one in results["sets"]] == [one.name for one in BENCH_SETS]
    page = (tmp_path / "out" / "report.html").read_text()
    for one, known in zip(results["sets"], BENCH_SETS, strict=True):
        assert any(f"the paper's {known.counts[2]}" in line for line in one["remarks"])
        assert known.name in page

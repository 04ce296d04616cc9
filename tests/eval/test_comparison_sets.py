"""Sets to results, end to end: published splits, every protocol, the paper's eight sets, leaks, the paper's trap."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from eval import comparison
from eval.bootstrap import bootstrap
from eval.cells import Json
from eval.comparison import ComparisonConfig, compare
from eval.datasets import LabelledSet, load_set
from eval.encoders import open_encoder
from eval.features import extract, patches_inside
from eval.metrics import scores
from eval.probe import ProbeConfig, linear_probe
from eval.results import MAJORITY, METRICS, find_pair
from eval.ultrabench import BENCH_SETS
from sharding.recording import InputError
from tests.eval.fakes import Layout, draw, scaled, write_fake
from tests.eval.test_datasets import some_rows, write_table
from train.vit import new_student, save_encoder

PROBE = ProbeConfig(folds=3, strengths=(1e-2, 1.0))
SIZE = 32


def config(sets: tuple[str, ...], **more: object) -> ComparisonConfig:
    settings = {"encoders": ("random:test_vit",), "size": SIZE, "probe": PROBE, "pictures": False}
    return ComparisonConfig(sets=sets, **(settings | more))  # type: ignore[arg-type]


def row_of(one: Json, encoder: str, protocol: str = "fair") -> Json:
    found: Json = next(row for row in one["tables"][protocol]["rows"] if row["encoder"] == encoder)
    return found


def write_grains(folder: Path, num_patients: int, splits: bool, rare: int = 1, clear: bool = False) -> Path:
    """Two frames of each patient; one in `1 + rare` patients has class 0, whose grain is finer.

    Where it is to be clear, that class is dark below, too.
    """
    rng = np.random.default_rng(0)
    folder.mkdir()
    rows = []
    for patient in range(num_patients):
        label = int(patient % (1 + rare) > 0)
        split = {"split": ("train", "train", "val", "test")[patient * 4 // num_patients]} if splits else {}
        for view in range(2):
            name = f"{patient}_{view}.png"
            frame = draw(0.8 * label, rng)[0]
            frame[30:] = frame[30:] * (0.3 if clear and not label else 1)
            assert cv2.imwrite(str(folder / name), frame)
            rows.append({"path": name, "label": str(label), "group": f"p{patient}"} | split)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def split_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 patients: 16 train, 8 val, 8 test."""
    return write_grains(tmp_path_factory.mktemp("split") / "split", 32, splits=True)


@pytest.fixture(scope="module")
def compared(split_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Json]:
    """The set with splits under every protocol, with few-shot curves."""
    out = tmp_path_factory.mktemp("compared")
    cfg = config((str(split_set),), protocols=("fair", "paper", "knn", "attentive"), few_shot=True)
    return out, compare(cfg, out, record=False)["sets"][0]


@pytest.fixture(scope="module")
def loaded(split_set: Path, compared: tuple[Path, Json]) -> tuple[LabelledSet, np.ndarray]:
    """The set, and the features of the random encoder."""
    data = load_set(str(split_set), SIZE)
    return data, extract(open_encoder("random:test_vit"), data, "mean", compared[0] / "features")


def test_scores_intervals_and_pairs_are_over_the_test_split_alone(
    compared: tuple[Path, Json], loaded: tuple[LabelledSet, np.ndarray]
) -> None:
    one, (data, features) = compared[1], loaded
    assert data.splits is not None
    test = data.splits == "test"
    assert one["splits"] == {"train": 32, "val": 16, "test": 16}
    assert (one["num_samples"], one["num_reported"], one["num_groups"]) == (64, 16, 8)
    result = linear_probe(features, data.labels, data.groups, PROBE, data.splits)
    shares = np.bincount(data.labels[data.splits == "train"]) / 32
    reported = {
        MAJORITY: np.tile(shares, (16, 1)),
        "random": result.probabilities[test],
    }
    expected = bootstrap(data.labels[test], reported, data.groups[test])
    for name, encoder in (("random", "random test_vit"), (MAJORITY, MAJORITY)):
        row = row_of(one, encoder)
        for metric in METRICS:
            assert row["scores"][metric]["value"] == pytest.approx(getattr(expected.observed[name], metric))
        interval = expected.intervals[name].auroc
        assert (row["scores"]["auroc"]["low"], row["scores"]["auroc"]["high"]) == (interval.low, interval.high)
        assert "low" not in row["scores"]["calibration_error"]
    pair = find_pair(one["tables"]["fair"], "random test_vit", MAJORITY, "macro_f1")
    difference = expected.paired_difference("random", MAJORITY)
    assert (pair["low"], pair["high"], pair["p"]) == pytest.approx(
        (difference.interval.low, difference.interval.high, difference.p_value)
    )
    assert row_of(one, "random test_vit")["chosen"] == list(result.strengths)


def test_every_protocol_has_its_table_and_the_paper_s_has_its_seeds(compared: tuple[Path, Json]) -> None:
    out, one = compared
    rows = {protocol: row_of(one, "random test_vit", protocol) for protocol in one["tables"]}
    assert list(rows) == ["fair", "paper", "knn", "attentive"]
    assert [row["seeds"] is None for row in rows.values()] == [True, False, True, True]
    assert rows["paper"]["seeds"]["number"] == 5
    assert len({json.dumps(row["scores"]) for row in rows.values()}) == 4
    assert all(row_of(one, MAJORITY, protocol) == row_of(one, MAJORITY) for protocol in rows)
    page, table = ((out / name).read_text() for name in ("report.html", "table.md"))
    for text in (page, table):
        assert "mean and sd of 5 seeds" in text
        assert "balanced accuracy" in text
        assert "published splits it did in 92.5 to 95 %" in text


def test_few_shots_with_all_patients_are_the_fair_probe(compared: tuple[Path, Json]) -> None:
    one = compared[1]
    curve, whole = one["few_shot"]["random test_vit"], row_of(one, "random test_vit")["scores"]["macro_f1"]
    assert set(curve) == {"1", "5", "10", "50", "100"}
    assert curve["100"] == pytest.approx(whole | {"num_fixed": 0, "deviation": 0})
    assert curve["1"]["high"] - curve["1"]["low"] > 0
    assert "split: few shots" in (compared[0] / "report.html").read_text()


def test_patches_outside_the_region_are_not_attended_to() -> None:
    squares = np.zeros((2, 2, 16, 16), dtype=np.uint8)
    squares[0, 1, 3, 9] = 255
    assert patches_inside(squares, 4).tolist() == [[n == 2 for n in range(16)], [False] * 16]


@pytest.mark.parametrize("layout", ["v1.0.1", pytest.param("head", marks=pytest.mark.slow)])
def test_the_eight_sets_of_the_paper_run_end_to_end(layout: Layout, tmp_path: Path) -> None:
    for one in BENCH_SETS:
        write_fake(one, layout, tmp_path)
    specs = tuple(f"{one.key}={tmp_path}" for one in BENCH_SETS)
    found = compare(config(specs), tmp_path / "out", record=False)["sets"]
    assert [one["name"] for one in found] == [one.name for one in BENCH_SETS]
    for known, one in zip(BENCH_SETS, found, strict=True):
        expected = known.expected(has_val=layout == "v1.0.1")
        assert one["splits"] == {split: scaled(number, len(known.classes)) for split, number in expected.items()}
        assert one["num_reported"] == one["splits"]["test"]
        assert one["classes"] == list(known.classes)
        assert any("samples, the paper's" in remark for remark in one["remarks"])
    assert {one["name"] for one in found if one["segmentation"]} == {"AUL", "MMOTU"}
    dice = found[0]["segmentation"]["random test_vit"]["dice"]
    assert 0 <= dice["low"] <= dice["value"] <= dice["high"] <= 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "AUL: segmentation" in page
    assert page.count("after Holm&#39;s correction over 8 sets") + page.count("No student beside its teacher") > 0


def tiny_features(folder: Path) -> Path:
    """An encoder whose features are 10^5 times smaller than usual."""
    torch.manual_seed(0)
    student = new_student("vit_tiny_patch16_224", 64)
    with torch.no_grad():
        for name, values in student.named_parameters():
            if name.rpartition(".")[0].split(".")[-1] in ("norm", "fc_norm"):
                values.mul_(1e-5)
    save_encoder(student, folder, {})
    return folder


def test_the_papers_fatty_liver_trap_is_told_and_the_fair_probe_does_not_fall_into_it(tmp_path: Path) -> None:
    folder = write_grains(tmp_path / "fatty", 48, splits=True, rare=2, clear=True)
    encoder = tiny_features(tmp_path / "tiny")
    cfg = config((f"fatty_liver={folder}",), encoders=(str(encoder),), size=64, protocols=("paper", "fair"))
    [one] = compare(cfg, tmp_path / "out", record=False)["sets"]
    name = one["tables"]["fair"]["rows"][-1]["encoder"]
    paper, fair = row_of(one, name, "paper"), row_of(one, name, "fair")
    floor = row_of(one, MAJORITY)["scores"]["macro_f1"]["value"]
    assert paper["predicts_one_class"]
    assert not fair["predicts_one_class"]
    assert paper["scores"]["macro_f1"]["value"] == pytest.approx(floor)
    assert paper["seeds"]["deviation"] == 0
    assert fair["scores"]["macro_f1"]["value"] > 0.9
    sentence = f"On Fatty Liver the paper probe of {name} predicts one class for every frame"
    for file in ("report.html", "table.md"):
        text = (tmp_path / "out" / file).read_text()
        assert sentence in text
        assert f"the fair probe of {name} predicts one class" not in text
        assert f"{name} (predicts one class)" in text


def test_leaks_are_found_and_said_before_an_encoder_sees_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_grains(tmp_path / "leaky", 16, splits=True)
    (folder / "15_0.png").write_bytes((folder / "0_0.png").read_bytes())  # of test, and of train
    table = (folder / "labels.csv").read_text().replace("14_0.png,0,p14", "14_0.png,0,p2")  # test, and train
    (folder / "labels.csv").write_text(table)
    said: list[str] = []

    def pieces(*_: object) -> None:
        said.append(capsys.readouterr().out)
        raise InputError("stopped")

    monkeypatch.setattr(comparison, "Pieces", pieces)
    cfg = config((str(folder),))
    with pytest.raises(InputError, match="stopped"):
        compare(cfg, tmp_path / "out", record=False)
    monkeypatch.undo()
    leaks = [
        "1 groups (patients) are in several splits, with samples 2 of train, 0 of val, 1 of test",
        "1 of 8 test samples have the same picture as one of train",
    ]
    [one] = compare(cfg, tmp_path / "out", record=False)["sets"]
    page = (tmp_path / "out" / "report.html").read_text()
    for leak in leaks:
        assert leak in " ".join(said[0].split())
        assert leak in one["remarks"]
        assert leak in page


def test_a_column_of_values_adds_ridge_regression(tmp_path: Path) -> None:
    folder = write_grains(tmp_path / "valued", 24, splits=False)
    lines = (folder / "labels.csv").read_text().splitlines()
    values = [f"{10 * int(line.split(',')[1]) + at % 3}" for at, line in enumerate(lines[1:])]
    (folder / "labels.csv").write_text(
        "\n".join([f"{lines[0]},value", *map(",".join, zip(lines[1:], values, strict=True))])
    )
    [one] = compare(config((str(folder),)), tmp_path / "out", record=False)["sets"]
    found = one["regression"]["random test_vit"]
    assert 0 < found["r2"]["low"] < found["r2"]["value"] < found["r2"]["high"] < 1
    assert found["mae"]["value"] < 5
    assert "valued: regression" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("values", "message"), [(["1", "x"] + ["2"] * 6, "1.png has the value 'x'; a finite"), (["1", ""] * 4, "no value")]
)
def test_values_that_are_no_numbers_are_named(values: list[str], message: str, tmp_path: Path) -> None:
    rows = [row | {"value": value} for row, value in zip(some_rows(8), values, strict=True)]
    with pytest.raises(InputError, match=message):
        load_set(str(write_table(tmp_path, rows)), SIZE)


def test_shuffled_labels_hold_a_half_and_another_order_changes_no_number(
    loaded: tuple[LabelledSet, np.ndarray], split_set: Path, compared: tuple[Path, Json], tmp_path: Path
) -> None:
    header, *rows = (split_set / "labels.csv").read_text().splitlines()
    (tmp_path / "again").mkdir()
    for path in split_set.glob("*.png"):
        (tmp_path / "again" / path.name).symlink_to(path)
    shuffled = np.random.default_rng(1).permutation(len(rows))
    (tmp_path / "again" / "labels.csv").write_text("\n".join([header, *(rows[at] for at in shuffled)]))
    [one] = compare(config((str(tmp_path / "again"),)), tmp_path / "out", record=False)["sets"]
    for row, other in zip(one["tables"]["fair"]["rows"], compared[1]["tables"]["fair"]["rows"], strict=True):
        for metric in ("macro_f1", "auroc", "accuracy"):
            assert row["scores"][metric]["value"] == pytest.approx(other["scores"][metric]["value"], abs=1e-6)
    data, features = loaded
    assert data.splits is not None
    test = data.splits == "test"
    labels = np.random.default_rng(0).permutation(data.labels)
    result = linear_probe(features, labels, data.groups, PROBE, data.splits)
    found = bootstrap(labels[test], {"a": result.probabilities[test]}, data.groups[test]).intervals["a"].auroc
    assert found.low <= 0.5 <= found.high
    assert scores(data.labels, np.eye(2)[data.labels]).macro_f1 == 1

"""Labelled set to table: features, probe rows, MLflow children, report, export."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from deploy.export import export_encoder
from eval.datasets import load_labelled_set
from eval.encoders import of_student
from eval.features import pooled
from eval.probe import ProbeConfig
from eval.report import write_run_report
from eval.stage import run_probe
from sharding.recording import InputError
from tests.conftest import ROOT
from train.config_file import load_config, save_config
from train.tracking import Tracker, log_artifacts
from train.vit import load_encoder, new_student, save_encoder


@pytest.fixture(scope="module")
def run_dir(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory whose student and teacher were never trained."""
    folder = tmp_path_factory.mktemp("run")
    run = folder / "student"
    run.mkdir()
    overrides = [
        f"data.shards=[{shards}]", f"run.dir={run}", "student.image_size=64", f"teacher.source={folder / 'teacher'}",
        "masks.context_tokens=6", "masks.target_tokens=2", "masks.min_patches=1",
    ]  # fmt: skip
    save_config(load_config(ROOT / "train" / "configs" / "demo.yaml", overrides), run / "config.yaml")
    for seed, place in enumerate((run / "encoder", folder / "teacher" / "encoder")):
        torch.manual_seed(seed + 1)
        save_encoder(new_student("vit_tiny_patch16_224", 64), place, {"objective": "salt"})
    tracker = Tracker(f"sqlite:///{folder}/mlflow.db", "test", run, params={"a": "1"}, tags={}, start=0)
    for step in range(3):
        baselines = {"_of_predicting_the_mean": 1.0, "_of_predicting_the_position": 0.9}
        for kind in ("train", "val"):
            tracker.log(step, {f"{kind}/loss": 1 - step / 4} | {f"{kind}/loss{k}": v for k, v in baselines.items()})
    tracker.close("FINISHED")
    return run


def test_the_set_has_the_labels_of_its_file(labelled: Path) -> None:
    made = load_labelled_set(labelled, size=48, frames_per_recording=2)
    assert made.squares.shape == (48, 2, 48, 48)
    assert made.classes == ("tissue_0", "tissue_1", "tissue_2")
    assert len(set(made.groups)) == 12
    for group in set(made.groups):
        assert len(set(made.labels[made.groups == group])) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [("path,label\na.png,x\n", "no column group"), ("path,label,group\na.png,x,1\n", "no file a.png")],
)
def test_a_broken_labels_file_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        load_labelled_set(tmp_path, size=32, frames_per_recording=1)


def test_features_average_the_patches_inside_the_region_only() -> None:
    encoder = new_student("vit_tiny_patch16_224", 64)
    squares = np.random.default_rng(0).integers(0, 255, (3, 2, 64, 64)).astype(np.uint8)
    squares[:, 1] = 0
    squares[:, 1, :16, :32] = 255
    squares[2, 1] = 0
    features = pooled(of_student(encoder, "student"), squares, "student")
    tokens = encoder(torch.from_numpy(squares[:, :1]) / 255.0)
    assert np.allclose(features[0], tokens[0, :2].mean(0).detach(), atol=1e-5)
    assert np.allclose(features[2], tokens[2].mean(0).detach(), atol=1e-5)


def test_the_probe_prints_floor_random_teacher_student_and_links_its_runs(
    run_dir: Path, labelled: Path, tmp_path: Path
) -> None:
    table = run_probe(run_dir, labelled, ProbeConfig(folds=3, strengths=(1e-2, 1.0)), frames_per_recording=2)
    assert list(table.scores) == ["majority class", "random init", "teacher", "student"]
    assert [row[0] for row in table.rows()[1:]] == list(table.scores)
    assert table.scores["student"] != table.scores["teacher"]
    assert "its teacher: macro F1" in table.verdict()
    record = json.loads((run_dir / "run.json").read_text())
    client = mlflow.MlflowClient(record["tracking_uri"])
    parent = record["mlflow_run_id"]
    children = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {child.data.params["encoder"] for child in children} == set(table.scores)
    assert all(child.info.status == "FINISHED" for child in children)
    report = tmp_path / "report.html"
    write_run_report({"student": run_dir}, [table], report)
    text = report.read_text()
    assert text.count("data:image/png,") == 3
    assert "http" not in text
    assert "student: learning: 44% below what positions alone give (loss 0.500, of predicting the mean 1.000" in text
    out = export_encoder(run_dir, tmp_path / "out", [table])
    assert "| student |" in (out / "README.md").read_text()
    assert load_encoder(out).width == 192
    log_artifacts(run_dir, {"report.html": report, "export": out})
    assert {item.path for item in client.list_artifacts(parent)} == {"config.yaml", "report.html", "export"}


def test_a_run_without_encoder_says_how_to_finish_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no encoder/; finish it with"):
        run_probe(tmp_path, tmp_path, ProbeConfig())

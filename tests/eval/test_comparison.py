"""Labelled sets to results: rows, pairs, tables, page, MLflow, export; killed and continued."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from deploy.export import export_encoder
from eval import comparison_cells
from eval.comparison import ComparisonConfig, compare, config_of_run, parse_protocols
from eval.datasets import load_set
from eval.encoders import of_student
from eval.features import pooled
from eval.probe import ProbeConfig
from eval.probe_tables import probe_tables
from eval.report import write_run_report
from eval.results import MAJORITY
from eval.robustness import KINDS
from pipeline.views import PROBES
from sharding.recording import InputError
from sharding.sources.synthetic_files import write_demo_set
from tests.conftest import ROOT
from train.config_file import load_config, save_config
from train.tracking import Tracker, log_artifacts
from train.vit import load_encoder, new_student, save_encoder

PROBE = ProbeConfig(folds=3, strengths=(1e-2, 1.0))
# Imports once, then makes the comparison in a new process for every line that it reads.
SERVER = """
import os, sys
from pathlib import Path
from eval.comparison import ComparisonConfig, compare
from eval.probe import ProbeConfig
encoders, sets = (tuple(text.split(",")) for text in sys.argv[2:])
probe = ProbeConfig(folds=3, strengths=(1e-2, 1.0))
cfg = ComparisonConfig(encoders, sets, ("fair", "knn"), size=64, frames_per_recording=1, probe=probe)
for _ in sys.stdin:
    if not (child := os.fork()):
        sys.stdout = open(os.devnull, "w")
        compare(cfg, Path(sys.argv[1]), record=False)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ComparisonConfig:
    """Two generated sets, the second with splits, and two small encoders."""
    folder = tmp_path_factory.mktemp("sets")
    for seed, name in enumerate(("one", "two")):
        table = write_demo_set(folder / name, num_patients=12, seed=seed)
    header, *rows = table.read_text().splitlines()
    quarters = [("train", "train", "val", "test")[at * 4 // len(rows)] for at in range(len(rows))]
    table.write_text(
        "\n".join([f"{header},split", *(f"{row},{word}" for row, word in zip(rows, quarters, strict=True))])
    )
    encoders, sets = ("random:test_vit", "pixels"), (str(folder / "one"), str(folder / "two"))
    return ComparisonConfig(encoders, sets, ("fair", "knn"), size=64, frames_per_recording=1, probe=PROBE)


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
    made = load_set(str(labelled), size=48, frames_per_recording=2)
    assert made.squares.shape == (48, 2, 48, 48)
    assert made.classes == ("tissue_0", "tissue_1", "tissue_2")
    assert len(set(made.groups)) == 12
    for group in set(made.groups):
        assert len(set(made.labels[made.groups == group])) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\na.png,x\n", "no column group"),
        ("path,label,group\na.png,x,1\n", r"1 of 1 rows match no source, the first is a\.png"),
    ],
)
def test_a_broken_labels_file_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        load_set(str(tmp_path), size=32, frames_per_recording=1)


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


def test_a_run_is_compared_with_its_teacher_and_its_start_and_linked_in_mlflow(
    run_dir: Path, labelled: Path, tmp_path: Path
) -> None:
    cfg = config_of_run(run_dir, str(labelled), PROBE, frames_per_recording=2)
    results = compare(cfg, tmp_path / "probe")
    [table] = probe_tables(results)
    names = [MAJORITY, "pixels", "student at its start", "student's teacher", "student"]
    assert [row[0] for row in table.rows[1:]] == names
    assert results["matches"] == [["student", "student's teacher"]]
    assert "its teacher: macro F1" in table.verdict
    scores = {row["encoder"]: row["scores"] for row in results["sets"][0]["tables"]["fair"]["rows"]}
    assert scores["student"] != scores["student's teacher"]
    record = json.loads((run_dir / "run.json").read_text())
    client = mlflow.MlflowClient(record["tracking_uri"])
    [parent] = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{record['mlflow_run_id']}'")
    children = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {child.data.params["encoder"] for child in children} == set(names)
    assert {child.info.status for child in (parent, *children)} == {"FINISHED"}
    shown = {column.split("`")[1] for column in PROBES.columns if column.startswith("metrics.")}
    assert all(shown <= set(child.data.metrics) for child in children)
    stored = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert stored == {"results.json", "table.md", "table.tex", "report.html"}
    report = tmp_path / "report.html"
    write_run_report({"student": run_dir}, [table], report)
    text = report.read_text()
    assert text.count("data:image/png,") == 3
    assert "http" not in text
    assert "student: learning: 44% below what positions alone give (loss 0.500, of predicting the mean 1.000" in text
    out = export_encoder(run_dir, tmp_path / "out", tables=[table])
    assert "| student |" in (out / "README.md").read_text()
    assert load_encoder(out).width == 192
    log_artifacts(run_dir, {"report.html": report, "export": out})
    pretraining = {item.path for item in client.list_artifacts(record["mlflow_run_id"])}
    assert pretraining == {"config.yaml", "report.html", "export"}


def test_a_run_without_encoder_says_how_to_finish_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no encoder/; finish it with"):
        config_of_run(tmp_path, str(tmp_path), PROBE)


@pytest.fixture(scope="module")
def finished(small: ComparisonConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed comparison."""
    out = tmp_path_factory.mktemp("finished")
    compare(small, out, record=False)
    return out


def test_the_page_is_one_file_with_every_part(finished: Path, small: ComparisonConfig) -> None:
    text = (finished / "report.html").read_text()
    assert "http" not in text
    for part in (
        "Did the student beat its teacher?",
        "All sets, protocol fair: macro F1",
        "All sets, protocol knn: AUROC",
        "one: more scores, knn",
        "That of a cross-validated set is too narrow",
        "Cross-validated: a patient is scored by probes of other patients.",
        "Published splits: fitted on 12 frames (train), chosen on 6 (val), scored on 6 (test).",
        "one: scores, fair",
        "one: label-free",
        "two: frames",
    ):
        assert part in text
    results = json.loads((finished / "results.json").read_text())
    assert [one["name"] for one in results["sets"]] == ["one", "two"]
    assert {pair["metric"] for pair in results["sets"][0]["tables"]["fair"]["pairs"]} == {"macro_f1", "auroc"}
    markdown, latex = (finished / "table.md").read_text(), (finished / "table.tex").read_text()
    assert "| encoder | one | two | mean |" in markdown
    assert "random test\\_vit & " in latex


def test_a_finished_comparison_is_not_computed_again(
    finished: Path, small: ComparisonConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison_cells, "extract", None)
    monkeypatch.setattr(comparison_cells, "probe_cell", None)
    before = files_of(finished)
    compare(small, finished, record=False)
    assert files_of(finished) == before


def test_without_frames_the_page_has_none(finished: Path, small: ComparisonConfig) -> None:
    before = files_of(finished)
    compare(replace(small, pictures=False), finished, record=False)
    assert "one: frames" not in (finished / "report.html").read_text()
    compare(small, finished, record=False)
    assert files_of(finished) == before


@pytest.mark.parametrize("at", [0, 1], ids=["folds", "splits"])
def test_degraded_frames_are_scored_by_probes_of_clean_ones(at: int, small: ComparisonConfig, tmp_path: Path) -> None:
    cfg = replace(small, encoders=("pixels",), sets=small.sets[at:][:1], size=32, pictures=False, robustness=True)
    [one] = compare(cfg, tmp_path, record=False)["sets"]
    cell = one["robustness"]["pixels"]
    [row] = [row for row in one["tables"]["fair"]["rows"] if row["encoder"] == "pixels"]
    assert cell["clean"] == row["scores"]["macro_f1"]["value"]
    assert set(cell["degraded"]) == set(KINDS)
    assert all(len(values) == 3 and all(0 <= value <= 1 for value in values) for values in cell["degraded"].values())
    assert f"{one['name']}: robustness" in (tmp_path / "report.html").read_text()


def test_frames_that_are_not_degraded_score_as_the_clean_ones(
    small: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison_cells, "degrade", lambda squares, *_: squares)
    cfg = replace(small, encoders=("pixels",), size=32, pictures=False, robustness=True)
    one, two = compare(cfg, tmp_path, record=False)["sets"]
    for cell in (one["robustness"]["pixels"], two["robustness"]["pixels"]):
        assert all(values == pytest.approx([cell["clean"]] * 3) for values in cell["degraded"].values())


@pytest.mark.parametrize(
    ("encoders", "sets", "message"),
    [
        (("pixels", "pixels"), ("x",), "pixels is there twice; name each encoder once"),
        (("pixels",), (), "no set is named"),
        (("no_such",), ("x",), "encoder no_such: no such folder"),
    ],
)
def test_what_cannot_be_compared_is_named(
    encoders: tuple[str, ...], sets: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        compare(ComparisonConfig(encoders, sets), tmp_path, record=False)


def test_an_unknown_protocol_is_named() -> None:
    assert parse_protocols("fair,knn") == ("fair", "knn")
    with pytest.raises(InputError, match="protocol best: is none of fair, paper, knn, attentive"):
        parse_protocols("fair,best")


@pytest.mark.parametrize("kills", [pytest.param(3, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    kills: int, small: ComparisonConfig, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", SERVER, str(out), ",".join(small.encoders), ",".join(small.sets)]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    random = np.random.default_rng(kills)
    with subprocess.Popen(command, env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        statuses = []
        for kill in [True] * kills + [False]:
            print(file=server.stdin, flush=True)
            child = int(server.stdout.readline())
            if kill:
                time.sleep(random.uniform(0, 2))
                os.kill(child, signal.SIGKILL)
            statuses.append(int(server.stdout.readline()))
        server.stdin.close()
    assert signal.SIGKILL in statuses
    assert statuses[-1] == 0
    assert files_of(out) == files_of(finished)


def files_of(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("results.json", "table.md", "table.tex", "report.html")}

"""`us-jepa probe` where MLflow refuses: said before the work where that is known, after the tables where it is not."""

import sys
from pathlib import Path

import pytest

import pipeline.show
from eval.cells import Json
from pipeline import cli
from tests.cases import mlflow_states
from train.mlflow_store import experiment_id, open_client


@pytest.mark.launch
def test_results_are_printed_before_mlflow_refuses_them_and_are_sent_by_the_same_command(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, out = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "probe"
    client = open_client(uri)
    experiment = experiment_id(client, "us-jepa")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    words = ["--encoders", "pixels", "--sets", str(labelled), "--out", str(out), "--size", "32", "--frames", "1"]
    monkeypatch.setattr(sys, "argv", ["us-jepa", "probe", *words, "--folds", "3", "--no-frames"])

    def probe() -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    client.delete_experiment(experiment)
    code, printed, errors = probe()  # at the start
    assert (code, (out / "cells").exists(), "Probe (fair) on" in printed) == (2, False, False)
    assert f"experiment us-jepa was deleted; restore it with `MLFLOW_TRACKING_URI={uri} mlflow experiments" in errors
    assert mlflow_states.run_command_of(errors) == 0

    with monkeypatch.context() as patch:  # when all is done: somebody deletes it while the table is printed
        shown = pipeline.show.print_comparison

        def show(folder: Path, results: Json) -> None:
            shown(folder, results)
            client.delete_experiment(experiment)

        patch.setattr(pipeline.show, "print_comparison", show)
        code, printed, errors = probe()
    assert code == 2
    assert "Probe (fair) on" in printed
    assert f"results: {out / 'results.json'}" in printed
    assert "experiment us-jepa was deleted; restore it with" in errors
    assert "next:" not in printed
    assert mlflow_states.run_command_of(errors) == 0
    assert probe()[0] == 0
    assert len(client.search_runs([experiment])) == 1 + 2  # the comparison; the floor and the pixels

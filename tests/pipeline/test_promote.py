"""Promotion into a real registry: who becomes champion, why, and that it is the encoder that was trained."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.artifacts import download_artifacts

from eval.encoders import open_encoder
from pipeline import cli
from pipeline.promote import Promoted, Promotion, promote
from sharding.recording import InputError
from tests.cases import mlflow_states
from tests.conftest import ROOT
from tests.deploy.test_promotion import results, write
from train.config_file import load_config, save_config
from train.mlflow_store import open_client, recorded_run
from train.registry import CANDIDATE, CHAMPION
from train.tracking import Tracker
from train.vit import load_encoder, new_student, save_encoder

SIZE = 32


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with tables: making them is what is slow."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_client(f"sqlite:///{path}")
    return path


@pytest.fixture
def place(migrated: Path, tmp_path: Path) -> Path:
    """A folder with a store of its own and three finished runs."""
    (tmp_path / "mlflow.db").write_bytes(migrated.read_bytes())
    for seed, name in enumerate(("old", "new", "third")):
        torch.manual_seed(seed)
        run = tmp_path / name
        run.mkdir()
        overrides = [f"data.shards=[{tmp_path}]", f"run.dir={run}", f"student.image_size={SIZE}"]
        save_config(load_config(ROOT / "train" / "configs" / "demo.yaml", overrides), run / "config.yaml")
        save_encoder(new_student("vit_tiny_patch16_224", SIZE, {"depth": 1}), run / "encoder", {"objective": "salt"})
        Tracker(f"sqlite:///{tmp_path}/mlflow.db", "test", run, params={}, tags={}, start=0).close("FINISHED")
    return tmp_path


def probed(place: Path, shares: dict[str, float]) -> Path:
    """A comparison in which these runs are right so often."""
    content = results({"one": shares})
    content["encoders"] = [
        {"name": name, "identity": open_encoder(str(place / name)).identity} for name in shares
    ]  # fmt: skip
    return write(place / ("-".join(shares) + "-probe"), content)


def aliases(place: Path) -> dict[str, str]:
    """Run of the version with each alias."""
    client = open_client(f"sqlite:///{place}/mlflow.db")
    runs = {run.info.run_id: run.data.tags["mlflow.runName"] for run in client.search_runs(["1"])}
    model = client.get_registered_model("us-jepa")
    return {
        alias: runs[client.get_model_version("us-jepa", version).run_id] for alias, version in model.aliases.items()
    }


def champion_tags(place: Path) -> dict[str, str]:
    client = open_client(f"sqlite:///{place}/mlflow.db")
    return dict(client.get_model_version_by_alias("us-jepa", CHAMPION).tags)


def test_the_first_becomes_champion_and_is_the_encoder_that_was_trained(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Promotion(place / "old", probed(place, {"old": 0.8}))
    assert promote(asked) == Promoted("us-jepa version 1 is champion: there was no champion", is_champion=True)
    assert promote(asked).text == "us-jepa version 1 is champion: it was champion already"
    assert aliases(place) == {CANDIDATE: "old", CHAMPION: "old"}
    client = open_client(f"sqlite:///{place}/mlflow.db")
    assert len(client.search_model_versions("name = 'us-jepa'")) == 1
    version = client.get_model_version_by_alias("us-jepa", CHAMPION)
    assert "| old | 0.800 (" in version.description
    assert str(place) not in version.description
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    folder = Path(download_artifacts("models:/us-jepa@champion", dst_path=str(place / "got")))
    assert "| old | 0.800 (" in (folder / "README.md").read_text()
    images = torch.rand(2, 1, SIZE, SIZE)
    wanted = load_encoder(place / "old" / "encoder").eval()(images)
    assert np.array_equal(load_encoder(folder).eval()(images).detach(), wanted.detach())


def test_a_better_one_takes_its_place_and_a_worse_one_is_refused_unless_forced(place: Path) -> None:
    promote(Promotion(place / "old", probed(place, {"old": 0.6})))
    said = promote(Promotion(place / "new", probed(place, {"old": 0.6, "new": 0.95}))).text
    assert "version 2 is champion: it beats the champion, version 1, in the paired test (one: macro F1 +0." in said
    assert aliases(place) == {CANDIDATE: "new", CHAMPION: "new"}
    assert champion_tags(place)["us_jepa.promoted_because"].startswith("it beats the champion, version 1")

    worse = Promotion(place / "third", probed(place, {"new": 0.95, "third": 0.6}))
    refused = promote(worse)
    assert not refused.is_champion
    assert "version 3 is registered as candidate, and is not promoted: it does not beat the champion" in refused.text
    assert aliases(place) == {CANDIDATE: "third", CHAMPION: "new"}
    assert promote(replace(worse, force=True)).text.endswith("(forced)")
    assert aliases(place) == {CANDIDATE: "third", CHAMPION: "third"}
    assert champion_tags(place)["us_jepa.promoted_because"].startswith("forced, though: it does not beat the champion")


def test_a_tie_is_no_win(place: Path) -> None:
    promote(Promotion(place / "old", probed(place, {"old": 0.8})))
    tie = promote(Promotion(place / "new", probed(place, {"old": 0.8, "new": 0.8})))
    assert not tie.is_champion
    assert re.search(r"does not beat the champion, version 1.*--force does it anyway", tie.text)


def test_what_was_not_compared_is_not_promoted_nor_registered(place: Path) -> None:
    promote(Promotion(place / "old", probed(place, {"old": 0.8})))
    alone = Promotion(place / "new", probed(place, {"new": 0.9}))
    with pytest.raises(
        InputError, match=r"the champion, version 1, is not in the comparison .*; compare them on the same"
    ):
        promote(alone)
    with pytest.raises(InputError, match=r"the encoder of \S+new is not in it \(it has old\)"):
        promote(Promotion(place / "new", place / "old-probe"))
    client = open_client(f"sqlite:///{place}/mlflow.db")
    assert len(client.search_model_versions("name = 'us-jepa'")) == 1
    assert "is champion: the champion, version 1, is not in the comparison" in promote(replace(alone, force=True)).text


def test_what_is_missing_is_named(place: Path) -> None:
    with pytest.raises(InputError, match=r"0 finished probes below \S+old/probe; name one with --probe DIR"):
        promote(Promotion(place / "old", None))
    probed(place, {"old": 0.8}).rename(place / "old" / "set")
    (place / "old" / "probe").mkdir()
    (place / "old" / "set").rename(place / "old" / "probe" / "set")
    with pytest.raises(InputError, match=r"takes no model named 'a/b'"):
        promote(Promotion(place / "old", None, name="a/b"))
    assert "version 1 is champion" in promote(Promotion(place / "old", None)).text


def test_the_exit_code_tells_a_candidate_from_a_mistake(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def code(run: str, folder: Path) -> object:
        monkeypatch.setattr(sys, "argv", ["us-jepa", "promote", str(place / run), "--probe", str(folder)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code

    assert code("old", probed(place, {"old": 0.8})) == 0
    assert code("new", probed(place, {"old": 0.8, "new": 0.8})) == 3
    printed = capsys.readouterr()
    assert "us-jepa version 2 is registered as candidate, and is not promoted: it does not beat" in printed.out
    assert aliases(place) == {CANDIDATE: "new", CHAMPION: "old"}
    assert code("third", place / "old-probe") == 2
    assert "is not in it (it has old)" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["delete_run", "delete_experiment"])
def test_a_deleted_run_is_not_promoted_before_it_is_restored(place: Path, action: str) -> None:
    asked = Promotion(place / "old", probed(place, {"old": 0.8}))
    client, run_id = recorded_run(place / "old")
    getattr(mlflow_states, action)(client, run_id)
    with pytest.raises(InputError, match=r"was deleted; restore it with `") as refused:
        promote(asked)
    assert mlflow_states.run_command_of(str(refused.value)) == 0
    assert promote(asked).is_champion

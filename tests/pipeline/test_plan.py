"""The plan is arithmetic on rates: it is checked against arithmetic done here, and against a small job."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from pipeline import measure
from pipeline.foresee import Asked, config_file, print_plan
from pipeline.measure import FRAMES_PER_CINE, measure_sharding, write_cines
from pipeline.plan import Model, Quantity, Size, drivers, model_of, plan, train_rate
from pipeline.rates import SHIPPED, Rate, Rates, load_rates
from pipeline.timed import Took, run_timed
from sharding.manifest import load_manifest
from sharding.plan import write_plan
from sharding.recording import InputError
from tests.conftest import ROOT
from train.config_file import load_config


def rate(value: float) -> Rate:
    return Rate(value=value, unit="x", source="a test")


RATES = Rates(
    machine="a test", date="2026-01-01", frames_per_source=rate(30), source_bytes=rate(100_000),
    shard_bytes=rate(40_000), shard=rate(500), shard_start=rate(4), decode=rate(4000),
    train={"vit_base on cpu": rate(2), "vit_base on GPU 9": rate(2500)},
    train_start={"vit_base on cpu": rate(20), "vit_base on GPU 9": rate(60)},
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    return model_of("vit_base", load_config(ROOT / "train" / "configs" / "vit_base.yaml", []))


def by_name(quantities: list[Quantity]) -> dict[str, float]:
    return {one.name: one.value for one in quantities}


def test_hours_and_bytes_are_what_a_calculator_gives(model: Model) -> None:
    found = by_name(plan(Size(1e9, gpus=64, epochs=100), RATES, model))
    assert found["bytes of shards"] == 4e13
    assert found["CPU hours, sharding"] == 4 + 1e9 / 500
    assert found["sharding takes"] == pytest.approx(4 + 1e9 / 500 / (8 * 96))
    assert found["images"] == pytest.approx(100 * 0.95e9)
    assert found["steps"] == -(-found["images"] // 128)
    images = found["images"] + -(-found["steps"] // 5900) * 1024 * model.forward_share()
    assert found["training takes"] == pytest.approx(60 + images / (2500 * 64))
    assert found["GPU hours, training"] == pytest.approx(64 * found["training takes"])
    assert found["reading, per node"] == 8 * 2500 * 40_000
    assert 0.3 < model.forward_share() < 0.7  # forward of everything, over teacher + 3 x the rest


def test_shards_are_those_that_a_job_of_this_size_makes(tmp_path: Path, model: Model) -> None:
    num_sources = 100_000
    listing = write_plan(((f"{number}.dcm", 3_000_000) for number in range(num_sources)), tmp_path / "listing")
    found = plan(Size(30 * num_sources), RATES, model)
    shown = next(one for one in found if one.name == "shards")
    tars = -(-0.95 * 40_000 * 30 * num_sources / listing.num_units // (256 << 20)) + 1
    assert shown.value == listing.num_units * tars
    few = next(one for one in plan(Size(30 * 320), RATES, model) if one.name == "shards")  # 20 units of 16 sources
    assert few.value == round(20 + 20 * (1 - 0.95**16))  # some have nobody in val


def test_a_larger_plan_never_takes_less(model: Model) -> None:
    small, large = (by_name(plan(Size(frames, gpus=8), RATES, model)) for frames in (1e5, 1e7))
    same = {"devices", "reading, per node", "decoding, per device", "a checkpoint"}
    assert all(large[name] == small[name] if name in same else large[name] > small[name] for name in small)


def test_training_rates_are_measured_or_said_to_be_assumed(model: Model) -> None:
    assert train_rate(RATES, model, 0) == (rate(2), 20)
    assert train_rate(RATES, model, 8) == (rate(2500), 60)
    bare = RATES.model_copy(update={"train": {}, "train_start": {}})
    assumed, _ = train_rate(bare, model, 8)
    assert not assumed.is_measured
    assert assumed.value == pytest.approx(989e12 * 0.25 / model.step_flops)
    assert "989 TFLOP/s x 0.25" in str(assumed)
    with pytest.raises(
        InputError, match=r"vit_base was not measured on a processor .measured: none.; run `us-jepa plan"
    ):
        train_rate(bare, model, 0)


def test_idle_gpus_are_named(model: Model) -> None:
    said = " ".join(drivers(model, [Size(1e9, gpus=64), Size(1e5, gpus=1)]))
    assert "optim.batch 128 on 64 GPUs is 2 images each" in said
    assert "on 1 GPUs" not in said
    assert re.search(r"student \d+%, predictor \d+%, teacher \d+%", said)


def asked(**changes: object) -> Asked:
    usual = {"frames": [1e5, 1e9], "gpus": [8], "model": "vit_base", "epochs": 100, "gpus_per_node": 8}
    usual |= {"cores_per_node": None, "rates": None, "measure": False, "source": None, "folder": Path("x")}
    return Asked(**usual | changes)


def test_the_printed_plan_has_a_column_for_each_size_and_every_formula(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(asked(gpus=[1, 64]))
    said = capsys.readouterr().out
    assert "| frames | 1e5 | 1e9 | formula |" in said
    assert "| devices | 1 on 1 | 64 on 8 | on nodes" in said
    assert "peak: 989 TFLOP/s, assumed: an H100" in said
    assert re.search(r"sharding: [\d,.e+]+ frames/s per core, measured: \d+ sources", said)
    assert all(row.count("|") == 5 for row in said.splitlines() if row.startswith("|"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": [0]}, "frames is 0; it must be above 0"),
        ({"gpus": [1, 2, 3]}, "--gpus: 3 numbers for 2 --frames; give one, or as many"),
        ({"gpus": [-1]}, "gpus is -1; give 0 to train on a processor"),
        ({"model": "vit_huge"}, "--model vit_huge: no such config; give a YAML file, or one of demo"),
        ({"rates": Path("no-such.json")}, "rates no-such.json: no such file; make it with `us-jepa plan --measure"),
        ({"measure": True}, "say where the rates go, with --rates FILE"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        print_plan(asked(**changes))
    assert message in str(caught.value)


def test_rates_are_read_back_and_a_spoilt_file_is_named(tmp_path: Path) -> None:
    RATES.save(tmp_path / "rates.json")
    assert load_rates(tmp_path / "rates.json") == RATES
    content = json.loads((tmp_path / "rates.json").read_text())
    content["shard"]["value"] = -1
    (tmp_path / "rates.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"shard.value: Input should be greater than or equal to 0; make it again"):
        load_rates(tmp_path / "rates.json")
    assert load_rates(SHIPPED).shard.value > 0


def test_cpu_time_counts_processes_that_nobody_waits_for(tmp_path: Path) -> None:
    busy = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {busy!r}], start_new_session=True)"
    took = run_timed([sys.executable, "-c", orphan], "it", tmp_path / "took.json")
    assert 0.5 < took.cpu < 2
    with pytest.raises(InputError, match=r"it failed while it was measured: .*no such thing"):
        run_timed([sys.executable, "-c", "import sys; sys.exit('no such thing')"], "it", tmp_path / "took.json")


@pytest.mark.slow
def test_measured_rates_foresee_the_job_that_they_were_measured_on(tmp_path: Path, model: Model) -> None:
    source = write_cines(tmp_path / "source", 12, 1, (96, 128))
    assert write_cines(tmp_path / "source", 12, 1, (96, 128)) == source  # what is there stays
    rates = RATES.model_copy(update=measure_sharding(source, tmp_path))
    manifest = load_manifest(tmp_path / "shards-1")
    assert manifest.num_samples() == 12 * FRAMES_PER_CINE
    assert rates.frames_per_source.value == FRAMES_PER_CINE
    found = by_name(plan(Size(manifest.num_samples(), cores_per_node=os.cpu_count() or 1), rates, model))
    assert found["bytes of shards"] == pytest.approx(sum(one.num_bytes for one in manifest.shards))
    assert found["bytes of sources"] == pytest.approx(sum(path.stat().st_size for path in source.iterdir()))
    with pytest.raises(InputError, match="has 3 files; give at least 10 to measure with"):
        measure_sharding(write_cines(tmp_path / "few", 3, 2, (96, 128)), tmp_path)


def test_the_first_start_on_a_machine_is_no_part_of_its_rate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    starts = iter([60.0])  # the first compiles

    def pretrain(*words: object) -> Took:
        seconds = next(starts, 20.0) + 0.5 * int(str(words[4]))
        return Took(seconds, seconds)

    monkeypatch.setattr(measure, "pretrain", pretrain)
    config = ROOT / "train" / "configs" / "vit_tiny.yaml"
    train, start = measure.measure_training(load_config(config, []), config, tmp_path, tmp_path)
    batch = int(train.source.split()[-2])
    assert train.source == f"runs of 2 and 128 steps of {batch} images"  # 32 steps would not be twice the short run
    assert train.value == pytest.approx(batch / 0.5)
    assert start.value == pytest.approx(20)


def test_configs_go_by_name_or_by_file(tmp_path: Path) -> None:
    assert config_file("vit_tiny").name == "vit_tiny.yaml"
    (tmp_path / "mine.yaml").write_text("")
    assert config_file(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"

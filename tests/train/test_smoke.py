"""`--smoke` tries every shipped config: what it costs at full size, and two steps at reduced size."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_command
from train.config_file import load_config
from train.flops import costs_of
from train.masks import check_masks
from train.objective import shape_of
from train.smoke import describe_config, smoke_config

CONFIGS = sorted((ROOT / "train" / "configs").glob("*.yaml"))
SOME = [path for path in CONFIGS if path.stem in ("ijepa", "vit_tiny")]  # ema and salt
LINE = re.compile(r"^(student|predictor|teacher) +([\d.]+) M weights +([\d.]+) GFLOP per image$", re.MULTILINE)


def numbers(printed: str) -> dict[str, tuple[float, float]]:
    """Million weights and GFLOP of each part."""
    return {part: (float(weights), float(flops)) for part, weights, flops in LINE.findall(printed)}


def test_costs_of_vit_base_are_the_published_ones() -> None:
    cfg = load_config(ROOT / "train" / "configs" / "vit_base.yaml", [])
    found = numbers(describe_config(cfg))
    counted = costs_of(cfg, 768)
    for part in ("student", "predictor"):
        cost = counted[part]
        assert cost is not None
        assert found[part] == (pytest.approx(cost.params / 1e6, abs=0.05), pytest.approx(cost.flops / 1e9, abs=0.005))
    assert found["student"][0] == pytest.approx(85, rel=0.01)
    assert found["teacher"] == (pytest.approx(86, rel=0.01), pytest.approx(34.8, rel=0.02))


@pytest.mark.parametrize(("name", "teacher"), [("salt_stage1", False), ("vit_small", True), ("ijepa", True)])
def test_costs_name_a_teacher_where_there_is_one(name: str, teacher: bool) -> None:
    found = numbers(describe_config(load_config(ROOT / "train" / "configs" / f"{name}.yaml", [])))
    assert ("teacher" in found) == teacher


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_reduced_configs_differ_in_size_alone(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.smoke._shards", lambda folder: folder / "shards")
    cfg = load_config(path, [])
    made = smoke_config(cfg, tmp_path)
    assert shape_of(made)[:2] == (6, shape_of(cfg).patch)
    check_masks(made.masks, 6)
    assert len(made.masks.more) == len(cfg.masks.more)
    for section, changed in {
        "masks": {"context_tokens", "target_tokens", "min_patches", "more"},
        "predictor": {"depth"},
        "target": {"measure_batches"},
    }.items():
        before, after = (getattr(one, section).model_dump(exclude=changed) for one in (cfg, made))
        assert before == after
    assert (made.objective, made.optim.lr, made.optim.precision) == (cfg.objective, cfg.optim.lr, cfg.optim.precision)


@pytest.mark.launch
@pytest.mark.parametrize("path", SOME, ids=lambda path: path.stem)
def test_two_steps_of_some_configs(path: Path, tmp_path: Path) -> None:
    smoke(path, tmp_path)


@pytest.mark.slow
@pytest.mark.launch
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_two_steps_of_every_config(path: Path, tmp_path: Path) -> None:
    smoke(path, tmp_path)


def smoke(path: Path, tmp_path: Path) -> None:
    done = run_command("python", str(ROOT / "train" / "pretrain.py"), "--config", str(path), "--smoke", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(LINE.findall(done.stdout)) == 2 * len(numbers(done.stdout)) >= 4  # at full and at reduced size
    assert "of step 2" in done.stdout
    assert not list(tmp_path.iterdir())

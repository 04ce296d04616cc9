"""Benches of the step: the plain I-JEPA that ours is compared with, timing, gates, what of bench-gpu needs no GPU."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from pipeline.bench import gpu
from pipeline.bench.gpu_ways import compiled_graphs, sync_places
from pipeline.bench.our_step import IJEPA_MASKS, bench_config, plain_shape
from pipeline.bench.plain_ijepa import Collator, PlainIjepa, Shape
from pipeline.bench.timing import Gate, Timing
from tests.conftest import ROOT
from train.flops import params_of
from train.model import LatentPredictor

SHAPE = Shape(encoder=(32, 2, 2), predictor=(16, 1, 2), grid=4)


def test_the_plain_collator_cuts_to_the_shortest_and_never_uses_the_last_row() -> None:
    collator = Collator(14, (0.15, 0.2))
    rows = set()
    for _ in range(20):
        context, targets = collator(16)
        assert len(targets) == 4
        assert len({ids.shape for ids in targets}) == 1
        assert context.shape[0] == targets[0].shape[0] == 16
        for image in range(16):
            hidden = {int(patch) for ids in targets for patch in ids[image]}
            assert not hidden & set(context[image].tolist())
        rows |= {patch // 14 for ids in [context, *targets] for patch in ids.flatten().tolist()}
    assert rows == set(range(13))


def test_the_plain_step_learns_and_its_teacher_follows_slowly() -> None:
    torch.manual_seed(0)
    model = PlainIjepa(SHAPE, momentum=0.9)
    images, masks = torch.rand(4, 1, 64, 64), (torch.arange(6).expand(4, -1), [torch.arange(8, 10).expand(4, -1)] * 2)
    before = [value.clone() for value in model.teacher.parameters()]
    model.step(images, masks)
    for old, average, value in zip(before, model.teacher.parameters(), model.student.parameters(), strict=True):
        assert torch.allclose(average, 0.9 * old + 0.1 * value, atol=1e-6)
    losses = [float(model.step(images, masks)) for _ in range(30)]
    assert losses[-1] < losses[0]


def test_the_plain_model_is_as_large_as_ours() -> None:
    cfg = bench_config("vit_small", 4, "fp32")
    shape = plain_shape(cfg)
    ours, plain = LatentPredictor(cfg, latent_width=384), PlainIjepa(shape)
    assert shape == Shape(encoder=(384, 12, 6), predictor=(192, 6, 6), grid=14)
    assert params_of(plain.student) == params_of(ours.student)
    assert params_of(plain.predictor) == params_of(ours.predictor)


def test_a_bench_config_has_one_forward_and_one_precision() -> None:
    cfg = bench_config("vit_base", 8, "bf16", *IJEPA_MASKS)
    assert cfg.teacher is not None
    assert (cfg.optim.batch, cfg.run.micro_batch, cfg.optim.precision, cfg.teacher.precision) == (8, 8, "bf16", "bf16")
    assert (cfg.masks.context_tokens, cfg.masks.target_tokens, cfg.run.compile) == (56, 35, False)


@pytest.mark.parametrize(
    ("gate", "passed", "text"),
    [
        (Gate("a", 1.2, 1.15), True, "ok"),
        (Gate("a", 1.1, 1.15), False, "BAD"),
        (Gate("a", 4, 5, at_most=True), True, "ok"),
        (Gate("a", 6, 5, at_most=True), False, "BAD"),
        (Gate("a", None, 1.3), True, "skipped"),
    ],
)
def test_a_gate_says_whether_it_holds(gate: Gate, passed: bool, text: str) -> None:
    assert gate.passed == passed
    assert text in str(gate)


def test_ways_take_turns_and_the_warm_up_does_not_count() -> None:
    ticks, turns = iter(range(100)), []
    timing = Timing(lambda: float(next(ticks)))
    timing.measure({"a": lambda: turns.append("a"), "b": lambda: (turns.append("b"), next(ticks))}, rounds=2)
    assert turns == ["a", "b"] * 3
    assert timing.seconds == {"a": [1, 1], "b": [2, 2]}
    assert timing.ratio("b", "a") == 2
    assert timing.spread("a") == 0


def test_compiled_graphs_are_counted() -> None:
    double = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
    double(torch.ones(2))
    before = compiled_graphs()
    double(torch.ones(2))
    assert compiled_graphs() == before
    double(torch.ones(3))
    assert compiled_graphs() == before + 1


def test_waits_are_counted_by_the_line_that_makes_them() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    (place, count), *others = sync_places(caught).items()
    assert place.startswith("test_bench_step.py:")
    assert count == 2
    assert not others


def row(size: str, way: str, rate: float, recompiles: int = 0) -> gpu.Row:
    return gpu.Row(size, way, rate, 10.0, 300.0, 0.45, recompiles, {})


def test_gates_of_a_gpu_compare_the_ways_of_a_size() -> None:
    rates = {gpu.PLAIN: 1000, gpu.EAGER: 1800, gpu.COMPILED: 2500, gpu.AHEAD: 2600, gpu.SMALLER: 3500}
    rows = [row("base", way, rate) for way, rate in rates.items()]
    gates = {gate.name: gate for gate in gpu.gates_of(rows)}
    assert len(gates) == 7
    assert all(gate.passed for gate in gates.values())
    assert gates["ViT base: over plain I-JEPA, same-size teacher"].value == 2.5
    slow = [row("base", way, rate, recompiles=1) for way, rate in (rates | {gpu.COMPILED: 1900}).items()]
    assert [gate.name for gate in gpu.gates_of(slow) if not gate.passed] == [
        "ViT base: compiled over eager",
        "ViT base: recompiles after step 3",
        "ViT base: over plain I-JEPA, same-size teacher",
    ]
    assert "2,500" in str(rows[2])


def run(module: str, *args: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"pipeline.bench.{module}", *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.launch
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_bench_gpu_without_a_gpu_is_one_sentence_and_exit_code_2() -> None:
    done = run("gpu")
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1].startswith("bench-gpu needs a CUDA device")


@pytest.mark.slow
@pytest.mark.launch
def test_bench_step_runs_every_way_once_and_keeps_the_seconds(tmp_path: Path) -> None:
    done = run("step", "--batch", "1", "--rounds", "1", "--folder", str(tmp_path))
    raw = json.loads((tmp_path / "step.json").read_text())
    assert done.returncode == (not all(Gate(**gate).passed for gate in raw["gates"])), done.stderr
    assert len(raw["gates"]) == 7
    assert {"plain I-JEPA", "ours, I-JEPA's blocks", "collator, batch 1024", "ZeRO-1, test_vit", "matmul fp32"} <= set(
        raw["seconds"]
    )
    assert all(len(seconds) >= 1 for seconds in raw["seconds"].values())

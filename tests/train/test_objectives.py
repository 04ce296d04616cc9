"""What each objective predicts, what it keeps in checkpoints, and what its steps must not touch."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from sharding.recording import InputError
from tests.train.micro import CPU, GRID, PATCH, N, config, objective_of, shards_config, some_view
from train.average import Average
from train.checkpoint import Checkpoint, _gather
from train.config import PretrainConfig, TargetConfig
from train.data import find_sets
from train.engine import set_schedule
from train.flops import params_of
from train.health import Means
from train.job import Job, begin, build_job
from train.latents import Latents
from train.objectives.distill import whole
from train.objectives.ema import momentum
from train.run import export
from train.step import prepare, run_step
from train.teacher import Teacher, load_teacher, random_teacher
from train.vit import load_encoder

Weights = dict[str, torch.Tensor]


def test_momentum_is_linear_from_the_first_to_the_last_step() -> None:
    cfg = config("ema", target={"momentum": [0.9, 1.0]}, optim={"steps": 5, "batch": 6})
    assert [momentum(step, cfg) for step in range(6)] == pytest.approx([0.9, 0.925, 0.95, 0.975, 1, 1])
    assert momentum(0, config("ema", optim={"steps": 1, "batch": 6})) == 0.996


def test_the_averages_equal_the_closed_form_over_steps() -> None:
    cfg = config("ema", target={"momentum": [0.5, 0.9]}, optim={"steps": 4, "batch": 6})
    objective = objective_of(cfg)
    module: Any = objective.module
    plain, decay = Average(module.student, CPU), 0.75
    history: list[Weights] = [{name: value.clone() for name, value in module.student.state_dict().items()}]
    for step in range(4):
        with torch.no_grad():
            for weight in module.student.parameters():
                weight.add_(torch.randn_like(weight))
        history.append({name: value.clone() for name, value in module.student.state_dict().items()})
        objective.after_step(module.student, step)
        plain.update(module.student, decay)
    decays = [momentum(step, cfg) for step in range(4)]
    # share of each step's weights in the end: what it got, times all later decays
    shares = [np.prod(decays)] + [(1 - decays[step]) * np.prod(decays[step + 1 :]) for step in range(4)]
    fixed = [decay**4] + [(1 - decay) * decay ** (3 - step) for step in range(4)]
    for found, wanted in ((objective.state, shares), (plain.state, fixed)):
        assert sum(wanted) == pytest.approx(1)
        for name, value in found.items():
            expected = sum(share * old[name] for share, old in zip(wanted, history, strict=True))
            assert torch.allclose(value, torch.as_tensor(expected), atol=1e-5), name


@pytest.mark.parametrize("normalisation", ["none", "layernorm"])
def test_ema_targets_are_the_averages_latents_without_gradient(normalisation: str) -> None:
    objective = objective_of(config("ema", target={"normalisation": normalisation}))
    assert objective.release is not None
    assert not objective.is_frozen
    images = some_view(config()).images
    targets, latents = objective.targets(images), objective.release(images)
    assert not targets.requires_grad
    if normalisation == "layernorm":
        latents = (latents - latents.mean(-1, keepdim=True)) / (
            latents.var(-1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
    assert torch.allclose(targets, latents, atol=1e-5)
    assert {id(tensor) for tensor in objective.state.values()} == {id(part) for part in objective.release.parameters()}


@pytest.mark.parametrize("normalisation", ["none", "layernorm", "channel"])
def test_latents_are_the_teachers_normalised(normalisation: Literal["none", "layernorm", "channel"]) -> None:
    teacher, views = (
        random_teacher("vit_tiny_patch16_224", GRID),
        [some_view(config(), 3, first) for first in (0, 3, 6)],
    )
    made = [Latents(teacher, TargetConfig(normalisation=normalisation), CPU) for _ in range(2)]
    made[0].measure((view.images, view.valid) for view in views)
    images, valid = (torch.cat([view[part] for view in views]) for part in (0, 1))
    made[1].measure([(images, valid)])
    assert all(torch.allclose(made[0].state[name], made[1].state[name], rtol=1e-5) for name in ("shift", "scale"))
    raw, targets = teacher(images).numpy().astype(np.float64), made[0](images)
    expected = {
        "none": raw,
        "layernorm": (raw - raw.mean(-1, keepdims=True)) / np.sqrt(raw.var(-1, keepdims=True) + 1e-5),
        "channel": (raw - raw[valid].mean(0)) / raw[valid].std(0, ddof=1),
    }[normalisation]
    assert np.allclose(targets, expected, atol=1e-4)


def test_a_large_constant_and_a_dead_channel_do_not_spoil_the_measure() -> None:
    latents = torch.randn(4, N, 3) * 1e-2 + torch.tensor([100.0, -5, 0])
    latents[..., 2] = 7

    class Stub(torch.nn.Module):
        width = 3

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return latents[: len(images)]

    stub: Any = Stub()
    made = Latents(stub, TargetConfig(), CPU)
    made.measure([(torch.zeros(4, 1, 1, 1), torch.ones(4, N, dtype=torch.bool))])
    targets = made(torch.zeros(4, 1, 1, 1))
    assert targets[..., :2].flatten(0, 1).std(0).tolist() == pytest.approx([1, 1], rel=1e-2)
    assert not targets[..., 2].any()


def test_a_random_teacher_is_the_same_on_every_rank() -> None:
    cfg = config().teacher
    assert cfg is not None
    first = load_teacher(cfg, GRID)[1]
    torch.rand(5)
    assert load_teacher(cfg, GRID)[1] == first


def test_distill_counts_all_valid_patches_and_no_others() -> None:
    cfg = config("distill", target={"loss": "l1"})
    objective, view = objective_of(cfg), some_view(cfg, 3)
    masks = objective.masks(view.valid, torch.arange(3))
    assert masks[0].target_ids.tolist() == [[list(range(N))]] * 3
    part = prepare(view._replace(masks=masks), objective, Means(torch.zeros(192), torch.zeros(N, 192)), cfg)
    assert part.weight == view.valid.sum()
    loss, _ = objective.module(view.images, masks, part.wanted, 1 / part.weight)
    module: Any = objective.module
    said, meant = module.project(module.student(view.images)).detach(), objective.targets(view.images)
    assert loss.item() == pytest.approx(float((said - meant)[view.valid].abs().mean()), rel=1e-5)
    other = tuple(torch.where(view.valid[:, None, :, None], wanted, 9) for wanted in part.wanted)
    assert torch.equal(objective.module(view.images, masks, other, 1 / part.weight)[0], loss)
    assert torch.equal(objective.module(view.images), module.student(view.images))


def test_pixel_targets_are_each_patch_normalised_by_itself() -> None:
    objective, images = objective_of(config("pixel")), some_view(config(), 2).images
    images[1, 0, :PATCH, :PATCH] = 0.5  # nothing to see in this patch
    targets = objective.targets(images)
    assert targets.shape == (2, N, objective.width) == (2, N, PATCH**2)
    for image, patch in np.ndindex(2, N):
        row, column = patch // GRID * PATCH, patch % GRID * PATCH
        pixels = images[image, 0, row : row + PATCH, column : column + PATCH].flatten()
        assert torch.allclose(targets[image, patch], (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt(), atol=1e-4)
    assert targets[1, 0].abs().max() < 1e-3


def job_of(cfg: PretrainConfig, checkpoint: Checkpoint | None = None) -> Job:
    return build_job(cfg, find_sets(cfg), checkpoint, (0, 1))


def steps_of(job: Job, num: int) -> None:
    views = [some_view(job.cfg)]
    if job.cfg.objective == "distill":
        views = [view._replace(masks=whole(view.valid, torch.arange(6))) for view in views]
    for step in range(num):
        set_schedule(job.engine, step, job.cfg)
        run_step(job.engine, [prepare(view, job.objective, job.means, job.cfg) for view in views], 1)
        job.objective.after_step(job.engine.module.student, step)


def checkpoint_of(job: Job, step: int) -> Checkpoint:
    tensors = {name: value.clone() for name, value in _gather(job.engine, job.state(), True)[0].items()}
    return Checkpoint(step, tensors, {})


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", ["salt", "distill"])
def test_a_teacher_does_not_change_and_is_nowhere_in_engine_and_checkpoint(
    name: str, shards: Path, tmp_path: Path
) -> None:
    job = job_of(shards_config(name, shards, tmp_path))
    begin(job, None)
    teacher: Any = job.objective.teacher
    assert isinstance(teacher, Teacher)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    student = [value.clone() for value in job.engine.parameters()]
    steps_of(job, 3)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not any(torch.equal(*pair) for pair in zip(student, job.engine.parameters(), strict=True))
    assert not {id(part) for part in teacher.parameters()} & {id(part) for part in job.engine.parameters()}
    saved = checkpoint_of(job, 3).tensors
    kept = params_of(job.objective.module) * 3 + sum(value.numel() for value in job.state().values())
    assert sum(value.numel() for value in saved.values()) == kept
    assert {key.partition(".")[0] for key in saved} == {
        "weights",
        "exp_avg",
        "exp_avg_sq",
        "objective",
        "means",
        "clock",
        "bad_samples",
    }


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", ["salt", "ema"])
def test_what_an_objective_measured_and_averaged_survives_a_restart(name: str, shards: Path, tmp_path: Path) -> None:
    cfg = shards_config(name, shards, tmp_path, optim={"average": 0.9, "batch": 6, "steps": 6, "precision": "fp32"})
    job = job_of(cfg)
    begin(job, None)
    steps_of(job, 2)
    assert job.average is not None
    job.average.update(job.engine.module.student, 0.9)
    job.device_seconds.fill_(12)
    saved = checkpoint_of(job, 2)
    assert saved.part("objective")["shift" if name == "salt" else "vit.norm.weight"].any()  # measured, averaged
    again = job_of(cfg, saved)
    begin(again, saved)
    assert again.state().keys() == job.state().keys()
    assert all(torch.equal(value, job.state()[key]) for key, value in again.state().items())
    restored = checkpoint_of(again, 2).tensors
    assert all(torch.equal(value, saved.tensors[key]) for key, value in restored.items())


@pytest.mark.usefixtures("alone")
def test_a_checkpoint_of_another_version_is_one_sentence(shards: Path, tmp_path: Path) -> None:
    cfg = shards_config("pixel", shards, tmp_path, optim={"batch": 6, "steps": 6, "precision": "fp32"})
    job = job_of(cfg)
    steps_of(job, 1)
    saved = checkpoint_of(job, 1)
    del saved.tensors["bad_samples.state"]
    with pytest.raises(InputError, match=r"checkpoint of step 1: has no bad_samples\.state, so another version"):
        begin(job_of(cfg, saved), saved)


class OneCheckpoint:
    """A store of one."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.latest = self.best = lambda: checkpoint


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("name", "average", "part"),
    [("pixel", 0.0, "weights.student"), ("pixel", 0.5, "average"), ("ema", 0.0, "objective")],
)
def test_the_released_encoder_is_student_or_average(
    name: str, average: float, part: str, shards: Path, tmp_path: Path
) -> None:
    cfg = shards_config(name, shards, tmp_path, optim={"average": average, "batch": 6, "steps": 6, "precision": "fp32"})
    job = job_of(cfg)
    steps_of(job, 2)
    if job.average is not None:
        job.average.update(job.engine.module.student, average)
    saved, store = checkpoint_of(job, 2), OneCheckpoint(checkpoint_of(job, 2))
    made: Any = store
    assert export(cfg, made, {}) == 2
    released = load_encoder(cfg.run.dir / "encoder").state_dict()
    assert all(torch.equal(value, saved.part(part)[key]) for key, value in released.items())
    if part != "weights.student":
        assert not torch.equal(saved.part("weights.student")["vit.pos_embed"], released["vit.pos_embed"])

"""Baselines, rank, spread and verdict; validation; what happens when the loss is not finite; pictures."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from sharding.loader import micro_batches
from tests.train.micro import PATCH, SIZE, N, config, shards_config, some_view
from train.data import find_sets, stream_of_rank
from train.engine import set_schedule
from train.health import effective_rank, is_collapsed, measure_means, spread, verdict
from train.job import Job, begin, build_job
from train.loop import Reader
from train.pictures import features_png, masks_png
from train.record import Record, save
from train.step import prepare, run_step
from train.validation import Validation, validate

LOSSES = ("loss", "loss_of_predicting_the_mean", "loss_of_predicting_the_position")


def test_means_are_those_of_valid_patches() -> None:
    torch.manual_seed(0)
    valid, latents = torch.rand(6, N) < 0.5, torch.randn(6, N, 4)
    valid[:, 3] = False
    looks = [(latents[part], valid[part]) for part in (slice(4), slice(4, 6))]
    means = measure_means(lambda images: images, looks)
    overall = latents[valid].numpy().mean(axis=0)
    assert np.allclose(means.overall, overall, atol=1e-6)
    for position in range(N):
        some = latents[valid[:, position], position].numpy()
        expected = some.mean(axis=0) if len(some) else overall
        assert np.allclose(means.at_position[position], expected, atol=1e-6)
    nothing = measure_means(lambda images: images, [(latents, torch.zeros_like(valid))])
    assert not nothing.at_position.any()


def test_means_of_ranks_add_up_whatever_each_has() -> None:
    latents, valid = torch.randn(5, N, 4), torch.rand(5, N) < 0.5
    wanted = measure_means(lambda images: images, [(latents, valid)])
    others = iter([(latents * valid[..., None])[:1].double().sum(0), valid[:1].double().sum(0)[..., None]])
    found = measure_means(lambda images: images, [(latents[1:], valid[1:])], lambda total: total.add_(next(others)))
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(found, wanted, strict=True))


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_rank_of_k_equal_directions_is_k(rank: int) -> None:
    directions = torch.linalg.qr(torch.randn(20, rank)).Q
    features = torch.cat([directions, -directions], dim=1).T + 3  # each direction there and back: the mean is 3
    assert effective_rank(features) == pytest.approx(rank, rel=1e-4)
    assert effective_rank(features * 7) == pytest.approx(rank, rel=1e-4)


def test_rank_and_spread_at_their_limits() -> None:
    same = torch.ones(10, 4)
    assert (spread(same), spread(torch.zeros(10, 4))) == (0, 0)
    assert effective_rank(same) == 1
    assert math.isnan(effective_rank(torch.full((10, 4), math.inf)))
    features = torch.randn(4000, 8)
    assert spread(features) == pytest.approx(1, rel=0.02)
    assert spread(features + 7) == pytest.approx(1 / 50**0.5, rel=0.02)
    assert effective_rank(features) == pytest.approx(8, rel=0.02)


@pytest.mark.parametrize(
    ("rank", "size", "collapsed"), [(2.4, 1, True), (2.6, 1, False), (30, 9e-4, True), (30, 2e-3, False)]
)
def test_collapse(rank: float, size: float, collapsed: bool) -> None:
    assert is_collapsed({"health/effective_rank": rank, "health/feature_spread": size}) == collapsed
    assert not is_collapsed({})


def losses(kind: str, *values: float) -> dict[str, float]:
    return {f"{kind}/{name}": value for name, value in zip(LOSSES, values, strict=True)}


def health(rank: float, size: float) -> dict[str, float]:
    return {"health/effective_rank": rank, "health/feature_spread": size}


LEARNS = losses("val", 0.4, 1, 0.8)
VERDICTS = [
    (
        losses("val", 0.99, 1, 0.8) | health(30, 0.1),
        "not learning yet: no better than predicting the mean target (",
    ),
    (losses("val", 0.79, 1, 0.8) | health(30, 0.1), "copying positions: no better than predicting the mean target of"),
    (LEARNS | health(30, 0.1), "(loss 0.400, of predicting the mean 1.000, of the position's mean 0.800)"),
    (losses("train", 0.4, 1, 0.8), "learning: 50% below what positions alone give"),
    (losses("train", 0.99, 1, 0.8) | LEARNS, "learning: 50% below"),
    (LEARNS | health(1.23, 0.1), "COLLAPSED: features lie in 1.2 directions"),
    (LEARNS | health(30, 2e-5), "vary by 2e-05 of their size; lower optim.lr"),
    (LEARNS | {"perf/data_wait_share": 0.3}, "give; data-bound: 30% of the time waits for the stream ("),
]


@pytest.mark.parametrize(("metrics", "said"), VERDICTS)
def test_the_verdict_is_one_sentence(metrics: dict[str, float], said: str) -> None:
    assert said in verdict(metrics)
    assert ("data-bound" in verdict(metrics)) == ("perf/data_wait_share" in metrics)


@pytest.fixture(scope="module")
def jobs(alone: None, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """Begun, by objective and micro batch."""
    folder, made = tmp_path_factory.mktemp("jobs"), {}
    for name, micro_batch in (("pixel", 6), ("pixel", 4), ("ema", 6), ("ema", 4)):
        cfg = shards_config(name, shards, folder, run={"micro_batch": micro_batch, "dir": str(folder / name)})
        made[f"{name} {micro_batch}"] = job = build_job(cfg, find_sets(cfg), None, (0, 1))
        begin(job, None)
    return made


def metrics_of(job: Job) -> dict[str, float]:
    found = validate(job)
    assert found is not None
    return found.metrics


@pytest.mark.parametrize("name", ["pixel", "ema"])
def test_validation_is_the_same_again_and_for_any_micro_batch(name: str, jobs: dict[str, Job]) -> None:
    first = metrics_of(jobs[f"{name} 6"])
    assert set(LOSSES) < {key.removeprefix("val/") for key in first}
    assert metrics_of(jobs[f"{name} 6"]) == first
    other = metrics_of(jobs[f"{name} 4"])
    assert other.keys() == first.keys()
    for key in first.keys() - {"val/predicted_deviation", "val/target_deviation"}:  # of one micro batch
        assert other[key] == pytest.approx(first[key], rel=1e-4), key
    assert jobs[f"{name} 6"].engine.module.training


def step(job: Job) -> None:
    view = some_view(job.cfg)
    set_schedule(job.engine, 1, job.cfg)
    run_step(job.engine, [prepare(view, job.objective, job.means, job.cfg)], 1)
    job.objective.after_step(job.engine.module.student, 1)


def test_means_of_moving_targets_are_measured_again_and_others_are_not(jobs: dict[str, Job]) -> None:
    for name, moves in (("pixel 6", False), ("ema 6", True)):
        job = jobs[name]
        metrics_of(job)
        before, first = job.means.overall.clone(), metrics_of(job)
        step(job)
        second = metrics_of(job)
        assert first["val/loss"] != second["val/loss"]
        assert torch.equal(job.means.overall, before) != moves


def test_the_clock_counts_steps_since_the_last_log_and_stops_for_saving(jobs: dict[str, Job]) -> None:
    job = jobs["pixel 4"]
    began = time.perf_counter()
    reader = Reader(job, micro_batches(job.dataset, stream_of_rank(job.cfg, 0, 1), 0))
    for num_steps in (2, 1):
        batches = [reader.next_step()[0] for _ in range(num_steps)]
        with reader.paused():
            time.sleep(0.3)
        facts = reader.facts(batches[-1])
        assert facts.num_steps == num_steps
        assert 0 < facts.waited < facts.seconds <= time.perf_counter() - began - 0.3
        began = time.perf_counter()


class Kept:
    """A store and a tracker that remember what they got."""

    def __init__(self) -> None:
        self.scores: list[float | None] = []
        self.tags: dict[str, str] = {}

    def save(self, engine: object, step: int, state: object, score: float | None) -> None:
        self.scores.append(score)

    def tag(self, key: str, value: str) -> None:
        self.tags[key] = value

    def log(self, *_: object) -> None: ...
    def artifact(self, *_: object) -> None: ...


@pytest.mark.parametrize(
    ("name", "changes", "score", "said"),
    [
        ("pixel 6", {"health/effective_rank": 9.0}, 0.4, "learning"),
        ("pixel 6", {"health/effective_rank": 1.1}, None, "COLLAPSED"),
        ("ema 6", {"health/effective_rank": 9.0}, None, "learning"),  # losses of other targets do not compare
    ],
)
def test_no_collapsed_checkpoint_is_the_best(
    name: str,
    changes: dict[str, float],
    score: float | None,
    said: str,
    jobs: dict[str, Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = losses("val", 0.4, 1, 0.8) | {"health/feature_spread": 0.1} | changes
    found = Validation(metrics, some_view(config()), torch.randn(6, N, 48))
    monkeypatch.setattr("train.record.validate", lambda job: found)
    kept: Any = Kept()
    record = Record(kept, kept, 1, 1)
    record.logged.update({"perf/data_wait_share": 0.5})
    jobs[name].cfg.run.dir.mkdir(exist_ok=True)
    save(jobs[name], 0, record, with_validation=True)
    assert kept.scores == [score]
    assert kept.tags["verdict"].startswith(said)
    assert "data-bound" in kept.tags["verdict"]


def test_a_run_without_held_out_images_has_a_verdict_too(jobs: dict[str, Job]) -> None:
    kept: Any = Kept()
    record = Record(kept, kept, 1, 1)
    job = dataclasses.replace(jobs["pixel 6"], held_out=None)
    save(job, 0, record, with_validation=True)
    assert kept.tags == {}
    record.logged.update(losses("train", 0.4, 1, 0.8))
    save(job, 1, record, with_validation=True)
    assert kept.tags["verdict"].startswith("learning: 50%")
    assert kept.scores == [None, None]


def test_held_out_images_that_give_nan_save_nothing(jobs: dict[str, Job]) -> None:
    kept: Any = Kept()
    job = jobs["ema 4"]
    with torch.no_grad():
        job.engine.module.student.vit.norm.bias.fill_(math.inf)
    with pytest.raises(
        FloatingPointError, match=r"not finite after step 7; the last good checkpoint is in .*checkpoints"
    ):
        save(job, 7, Record(kept, kept, 1, 1), with_validation=True)
    assert kept.scores == []


def decoded(png: bytes) -> np.ndarray:
    found = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert found is not None
    return found


def test_pictures_show_context_bright_targets_outlined_and_the_rest_dark() -> None:
    view = some_view(config(), num=9)._replace(images=torch.full((9, 1, SIZE, SIZE), 0.8))
    sheet = decoded(masks_png(view, PATCH))
    side = SIZE * 5  # the least multiple that reaches 224
    assert sheet.shape == (2 * side, 4 * side, 3)
    mask, zoom = view.masks[0], PATCH * 5
    for image in range(8):
        tile = sheet[image // 4 * side :, image % 4 * side :][:side, :side]
        targets = set(mask.target_ids[image][mask.target_weight[image] > 0].tolist())
        context = set(mask.context_ids[image].tolist())
        for patch_id in range(N):
            row, column = patch_id // 6 * zoom, patch_id % 6 * zoom
            patch = tile[row : row + zoom, column : column + zoom]
            assert int(patch[zoom // 2, zoom // 2, 0]) == (204 if patch_id in context | targets else 51)
            assert (patch[0, 0].tolist() == [60, 140, 255]) == (patch_id in targets)


def test_pictures_of_features_colour_what_differs() -> None:
    view = some_view(config(), num=3)
    tokens = torch.zeros(3, N, 12)
    tokens[:, : N // 2, 0], tokens[:, N // 2 :, 1] = 5, 3
    tokens += 0.1 * torch.randn_like(tokens)
    sheet = decoded(features_png(view, tokens))
    side = SIZE * 5
    assert sheet.shape == (2 * side, 3 * side, 3)
    assert sheet[:side, 0:5, 0].max() > 0
    levels = sheet[side::, :side][20::40, 20::40].reshape(N, 3).astype(int)
    valid = view.valid[0].numpy()
    assert not levels[~valid].any()
    top, bottom = levels[: N // 2][valid[: N // 2]], levels[N // 2 :][valid[N // 2 :]]
    assert np.abs(top.mean(0) - bottom.mean(0)).max() > 90

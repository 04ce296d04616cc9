"""Student, predictor and loss beside loops over images, targets and tokens; what must not change a step."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from sharding.stream import Batch
from tests.train.micro import CPU, GRID, PATCH, SIZE, N, config, objective_of, some_view
from train.augment import centre
from train.backbone import described_backbone
from train.checkpoint import _gather
from train.config import PretrainConfig, TargetConfig
from train.engine import build_engine
from train.health import Means
from train.masks import draw_all
from train.model import LatentPredictor, scored
from train.objective import Objective
from train.step import Looker, Prepared, View, prepare, run_step, step_scale, summed
from train.teacher import Teacher
from train.vit import TimmModel, timm_model

MORE = {"more": [{"context_tokens": 5, "target_tokens": 4, "num_targets": 3, "min_patches": 2}]}
ONE_BLOCK = {"args": {"patch_size": PATCH, "depth": 1, "embed_dim": 48, "num_heads": 3}}


def slow_block(block: TimmModel, tokens: torch.Tensor) -> torch.Tensor:
    """A pre-norm transformer block on (n, D), head by head, token by token."""
    width, heads = tokens.shape[1], block.attn.num_heads
    qkv = functional.linear(block.norm1(tokens), block.attn.qkv.weight, block.attn.qkv.bias)
    query, key, value = (part.view(len(tokens), heads, -1) for part in qkv.split(width, dim=1))
    said = torch.zeros_like(query)
    for head in range(heads):
        for token in range(len(tokens)):
            scores = torch.stack([query[token, head] @ key[other, head] for other in range(len(tokens))])
            said[token, head] = (scores / (width // heads) ** 0.5).softmax(0) @ value[:, head]
    tokens = tokens + block.attn.proj(said.flatten(1))
    return tokens + block.mlp.fc2(functional.gelu(block.mlp.fc1(block.norm2(tokens))))


def slow_student(student: TimmModel, image: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Tokens (K, D) of some patches of one image (1, S, S): only those are looked at."""
    vit, tokens = student.vit, []
    for patch_id in ids.tolist():
        row, column = patch_id // GRID * PATCH, patch_id % GRID * PATCH
        pixels = (image[0, row : row + PATCH, column : column + PATCH].flatten() - 0.5) / 0.5
        weight = vit.patch_embed.proj.weight.flatten(1)
        tokens.append(weight @ pixels + vit.patch_embed.proj.bias + vit.pos_embed[0, patch_id])
    some = torch.stack(tokens)
    for block in vit.blocks:
        some = slow_block(block, some)
    normed: torch.Tensor = vit.norm(some)
    return normed


def slow_predictor(predictor: TimmModel, context: torch.Tensor, ids: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Of one image: context (K, D) at ids (K,), and what is asked (n,) in one pass -> (n, D of the targets)."""
    shown = [predictor.embed(token) + predictor.positions[0, at] for token, at in zip(context, ids, strict=True)]
    tokens = torch.stack(shown + [predictor.mask_token[0, 0] + predictor.positions[0, at] for at in asked])
    for block in predictor.blocks:
        tokens = slow_block(block, tokens)
    predicted: torch.Tensor = predictor.project(predictor.norm(tokens[len(ids) :]))
    return predicted


@pytest.mark.parametrize("mode", ["joint", "per_block"])
@torch.no_grad()
def test_student_and_predictor_equal_a_loop_over_images_and_targets(mode: str) -> None:
    torch.manual_seed(0)
    cfg = config(predictor={"mode": mode})
    module, view = LatentPredictor(cfg, 5).eval(), some_view(cfg, 2)
    for weight in module.parameters():
        weight.add_(0.1 * torch.randn_like(weight))  # initial biases and gains would hide errors
    mask = view.masks[0]
    context = module.student(view.images, mask.context_ids)
    predicted = module.predictor(context, mask.context_ids, mask.target_ids)
    for image in range(2):
        ids, targets = mask.context_ids[image], mask.target_ids[image]
        slow = slow_student(module.student, view.images[image], ids)
        assert torch.allclose(context[image], slow, atol=1e-5)
        asked = [targets.flatten()] if mode == "joint" else list(targets)
        said = torch.cat([slow_predictor(module.predictor, slow, ids, some) for some in asked])
        assert torch.allclose(predicted[image].flatten(0, 1), said, atol=1e-5)


@pytest.mark.parametrize("name", ["salt", "pixel", "ema"])
def test_pixels_that_are_not_context_never_reach_the_student(name: str) -> None:
    cfg = config(name)
    module: Any = objective_of(cfg).module
    view, seen = some_view(cfg), []
    module.student.register_forward_hook(lambda *call: seen.append(call[2]))
    shown = torch.zeros(6, N, dtype=torch.bool).scatter_(1, view.masks[0].context_ids, value=True)
    pixels = shown.view(6, 1, GRID, GRID).float()
    pixels = functional.interpolate(pixels, scale_factor=PATCH, mode="nearest") > 0
    wanted = torch.zeros(6, 2, 3, objective_of(cfg).width)
    for images in (view.images, torch.where(pixels, view.images, 7)):
        module(images, view.masks, (wanted,), torch.ones(()))
    assert torch.equal(*seen)
    assert seen[0].shape == (6, 8, 48)


def coordinates(images: torch.Tensor) -> torch.Tensor:
    """(B, N, 3): row, column, and a grey level that tells the image."""
    ids = torch.arange(N)
    where = torch.stack([ids // GRID, ids % GRID], dim=1).float().expand(len(images), -1, -1)
    return torch.cat([where, images[:, 0, :1, :1].expand(-1, N, -1)], dim=-1)


def objective_with(targets: Callable[[torch.Tensor], torch.Tensor], cfg: PretrainConfig, width: int) -> Objective:
    return Objective(
        LatentPredictor(cfg, width), width, targets, lambda valid, at: draw_all(valid, at, cfg.masks, 0), True
    )


def test_targets_and_baselines_are_those_of_the_right_patches() -> None:
    cfg = config(masks=MORE, target={"beta": 0.3})
    view, means = some_view(cfg), Means(torch.rand(3), torch.rand(N, 3))
    made = prepare(view, objective_with(coordinates, cfg, 3), means, cfg)
    sums, weight = [0.0, 0.0], 0.0
    for mask, wanted in zip(view.masks, made.wanted, strict=True):
        for place in np.ndindex(*mask.target_ids.shape):
            patch_id = int(mask.target_ids[place])
            true = torch.tensor([patch_id // GRID, patch_id % GRID, view.images[place[0], 0, 0, 0]])
            assert torch.equal(wanted[place], true)
            weight += float(mask.target_weight[place])
            for number, guess in enumerate((means.overall, means.at_position[patch_id])):
                error = (guess - true).abs()
                costs = torch.where(error < 0.3, error**2 / 0.6, error - 0.15)
                sums[number] += float(costs.mean() * mask.target_weight[place])
    assert made.baselines.tolist() == pytest.approx(sums, rel=1e-5)
    assert made.weight.item() == weight > 0


ERRORS = {
    "smooth_l1": lambda error: error**2 / 0.6 if error < 0.3 else error - 0.15,
    "l1": lambda error: error,
    "mse": lambda error: error**2,
}


@pytest.mark.parametrize("loss", ERRORS)
def test_loss_and_statistics_equal_a_loop_and_numpy(loss: Literal["smooth_l1", "l1", "mse"]) -> None:
    torch.manual_seed(0)
    shapes = [(3, 2, 4), (3, 3, 2)]
    said, meant = (tuple(torch.randn(*shape, 5) for shape in shapes) for _ in range(2))
    weights = tuple(torch.rand(shape) * (torch.rand(shape) < 0.7) for shape in shapes)
    made, statistics = scored(said, meant, weights, TargetConfig(loss=loss, beta=0.3))
    total = 0.0
    for predicted, wanted, weight in zip(said, meant, weights, strict=True):
        for place in np.ndindex(*weight.shape):
            errors = [ERRORS[loss](abs(float(a - b))) for a, b in zip(predicted[place], wanted[place], strict=True)]
            total += float(weight[place]) * sum(errors) / 5
    assert made.item() == pytest.approx(total, rel=1e-5)
    rows, truth = (np.concatenate([part.reshape(-1, 5) for part in parts]) for parts in (said, meant))
    flat = np.concatenate([weight.flatten() for weight in weights])
    cosine = (rows * truth).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(truth, axis=1)
    assert statistics.cosine.item() == pytest.approx(cosine @ flat, rel=1e-4)
    for found, values in ((statistics.predicted_deviation, rows), (statistics.target_deviation, truth)):
        variance = np.average((values - np.average(values, axis=0, weights=flat)) ** 2, axis=0, weights=flat)
        assert found.item() == pytest.approx(np.sqrt(variance).mean() * flat.sum(), rel=1e-4)


def gradients(
    module: nn.Module, views: list[View], objective: Objective, cfg: PretrainConfig
) -> dict[str, torch.Tensor]:
    """Of a step over micro batches, and under `totals` its statistics."""
    module.zero_grad()
    parts = [prepare(view, objective, Means(torch.zeros(3), torch.zeros(N, 3)), cfg) for view in views]
    totals = summed(module, parts, step_scale(parts), lambda loss: loss.backward())
    return {name: value.grad.clone() for name, value in module.named_parameters() if value.grad is not None} | {
        "totals": totals
    }


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert torch.allclose(value, wanted[name], atol=1e-6, rtol=1e-4), name


@pytest.mark.usefixtures("alone")
def test_rows_of_weight_0_change_nothing() -> None:
    cfg = config(masks=MORE)
    objective = objective_with(coordinates, cfg, 3)
    whole_view, padded = some_view(cfg, 3), some_view(cfg, 5, num_padding=2)
    padded.images[3] = 0.7  # an image whose region is empty is not black
    assert all(mask.target_weight[3:].sum() == 0 for mask in padded.masks)
    found, wanted = (gradients(objective.module, [view], objective, cfg) for view in (padded, whole_view))
    assert found["totals"].isfinite().all()
    assert_close(found, wanted)
    nothing = gradients(objective.module, [some_view(cfg, 2, num_padding=2)], objective, cfg)
    assert not any(value.any() for value in nothing.values())


SPLITS = [(6,), (3, 3), (2, 2, 2), (4, 4), (1, 1, 1, 1, 1, 1)]  # of 6 images; 4 + 4 has two rows of padding


def split(cfg: PretrainConfig, sizes: tuple[int, ...]) -> list[View]:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [some_view(cfg, size, start, max(0, start + size - 6)) for start, size in zip(starts, sizes, strict=True)]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("sizes", SPLITS[1:], ids=str)
def test_any_split_into_micro_batches_gives_the_same_loss_and_gradients(sizes: tuple[int, ...]) -> None:
    cfg = config(masks=MORE)
    objective = objective_with(coordinates, cfg, 3)
    found, wanted = (gradients(objective.module, split(cfg, some), objective, cfg) for some in (sizes, SPLITS[0]))
    assert torch.allclose(
        found.pop("totals")[:4], wanted.pop("totals")[:4], rtol=1e-5
    )  # deviations are per micro batch
    assert_close(found, wanted)


def engine_step(sizes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """First moments after one step of a real engine, which are a tenth of its gradients, and the loss."""
    cfg = config(run={"micro_batch": sizes[0]})
    torch.manual_seed(0)
    objective = objective_with(coordinates, cfg, 3)
    engine = build_engine(objective.module, cfg, world=1)
    means = Means(torch.zeros(3), torch.zeros(N, 3))
    totals = run_step(engine, [prepare(view, objective, means, cfg) for view in split(cfg, sizes)], world=1)
    tensors, _ = _gather(engine, {}, is_writer=True)
    return {name: value for name, value in tensors.items() if name.startswith("exp_avg.")} | {"loss": totals[:4]}


@pytest.mark.usefixtures("alone")
def test_an_engine_accumulates_what_one_batch_gives() -> None:
    wanted = engine_step((6,))
    assert max(float(value.abs().max()) for value in wanted.values()) > 1e-3
    assert_close(engine_step((2, 2, 2)), wanted)
    assert_close(engine_step((4, 4)), wanted)


def part_for(objective: Objective, cfg: PretrainConfig) -> Prepared:
    view, means = some_view(cfg), Means(torch.zeros(objective.width), torch.zeros(N, objective.width))
    masks = objective.masks(view.valid, torch.arange(len(view.valid)))
    return prepare(view._replace(masks=masks), objective, means, cfg)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", ["salt", "distill"])
def test_activation_checkpointing_gives_the_same_gradients(name: str) -> None:
    found = []
    for wanted in (False, True):
        cfg = config(name, run={"checkpoint_activations": wanted})
        objective = objective_of(cfg)
        part, calls = part_for(objective, cfg), []
        student: Any = objective.module.student
        student.vit.blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        summed(objective.module, [part], step_scale([part]), lambda loss: loss.backward())
        assert len(calls) == 1 + wanted  # again in the backward pass
        found.append({key: value.grad for key, value in objective.module.named_parameters()})
    assert_close(found[1], found[0])


@pytest.mark.parametrize("name", ["pixel", "distill"])
def test_modules_compile_without_a_graph_break(name: str) -> None:
    cfg = config(name, student=ONE_BLOCK, predictor={"depth": 1})
    objective = objective_of(cfg)
    part = part_for(objective, cfg)
    call = (part.view.images, part.view.masks, part.wanted, torch.ones(()))
    compiled = torch.compile(objective.module, backend="aot_eager", fullgraph=True)
    (loss, statistics), (wanted, others) = compiled(*call), objective.module(*call)
    assert torch.allclose(torch.stack([loss, *statistics]), torch.stack([wanted, *others]), rtol=1e-5)


def test_a_teacher_compiles_without_a_graph_break() -> None:
    arch = "vit_tiny_patch16_224"
    teacher = Teacher(described_backbone(timm_model(arch, {"depth": 1}), arch), GRID)
    images, fast = torch.rand(2, 1, SIZE, SIZE), torch.compile(teacher, backend="aot_eager", fullgraph=True)
    assert torch.allclose(fast(images), teacher(images), atol=1e-5)


def test_looking_compiles_without_a_graph_break_and_still_views_are_the_centre() -> None:
    cfg = config(masks=MORE)
    looker = Looker(cfg, PATCH, objective_of(cfg).masks, CPU)
    pixels = torch.randint(0, 256, (3, 56, 63), dtype=torch.uint8)
    batch = Batch(
        pixels,
        torch.tensor([4, 9, -1]),
        torch.zeros(3, dtype=torch.long),
        torch.zeros(3),
        torch.zeros((0, 2), dtype=torch.long),
        "",
    )
    fast = torch.compile(looker._look, backend="aot_eager", fullgraph=True)
    found, wanted = fast(pixels, batch.positions, batch.datasets, False), looker(batch)
    assert torch.allclose(found.images, wanted.images, atol=1e-5)
    assert all(
        torch.equal(*pair) for masks in zip(found.masks, wanted.masks, strict=True) for pair in zip(*masks, strict=True)
    )
    frames, regions = pixels[:, None, :, :56], torch.from_numpy(np.unpackbits(pixels[:, :, 56:].numpy(), axis=-1))
    still = looker(batch, still=True).images
    assert still.shape == (3, 1, SIZE, SIZE)
    assert torch.equal(still, centre(frames, regions[:, None] * 255, SIZE)[0])

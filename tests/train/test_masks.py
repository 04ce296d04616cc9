"""Masks: their distribution beside a plain sampler, what they must never show, and the published recipes."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.recording import InputError
from train.config import MaskConfig
from train.masks import Masks, check_masks, draw_all, draw_masks, valid_patches

GRID, N = 14, 196
USJEPA = MaskConfig()
IJEPA = MaskConfig(target_scale=(0.15, 0.2), target_tokens=28, context_tokens=48)
SALT_LONG = MaskConfig(
    target_scale=(0.7, 0.7), context_scale=(1, 1), num_targets=2, target_tokens=64, context_tokens=20
)
SALT = MaskConfig(target_scale=(0.15, 0.15), context_scale=(1, 1), num_targets=8, target_tokens=15, more=(SALT_LONG,))
RECIPES = {"us-jepa": USJEPA, "i-jepa": IJEPA, "salt short": SALT, "salt long": SALT_LONG}
ONE_PATCH = MaskConfig(target_scale=(0.001, 0.001), num_targets=1, target_tokens=1, min_patches=1)
recipes = pytest.mark.parametrize("cfg", RECIPES.values(), ids=RECIPES.keys())


def with_(cfg: MaskConfig, **changes: object) -> MaskConfig:
    return cfg.model_copy(update=changes)


def draw(cfg: MaskConfig, num: int, valid: torch.Tensor | None = None, seed: int = 0) -> Masks:
    valid = torch.ones(N, dtype=torch.bool) if valid is None else valid
    return draw_masks(valid.expand(num, N), torch.arange(num), cfg, seed)


def narrow() -> torch.Tensor:
    """A narrow sector from the middle of the top row, (N,) bool."""
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    return ((columns - 6.5).abs() <= 1 + 0.25 * rows).flatten()


def paper_block(rng: random.Random, scale: tuple[float, float], aspect: tuple[float, float]) -> tuple[int, ...]:
    """Top, left, height, width, as the paper's text has it: area and aspect drawn apart, any place in the grid."""
    area, ratio = rng.uniform(*scale) * N, rng.uniform(*aspect)
    height, width = (min(GRID, round(side)) for side in ((area * ratio) ** 0.5, (area / ratio) ** 0.5))
    return rng.randint(0, GRID - height), rng.randint(0, GRID - width), height, width


def bounding_block(ids: torch.Tensor) -> tuple[int, ...]:
    rows, columns = ids // GRID, ids % GRID
    top, left = int(rows.min()), int(columns.min())
    return top, left, int(rows.max()) - top + 1, int(columns.max()) - left + 1


def assert_same_distribution(ours: list[tuple[int, ...]], wanted: list[tuple[int, ...]]) -> None:
    """Chi-square of two samples of one size, for each pair of the four numbers of a block."""
    for first, second in ((0, 1), (0, 2), (1, 3), (2, 3)):
        counts = [Counter((block[first], block[second]) for block in blocks) for blocks in (ours, wanted)]
        cells = [cell for cell in counts[0] | counts[1] if counts[0][cell] + counts[1][cell] >= 10]
        chi = sum((counts[0][c] - counts[1][c]) ** 2 / (counts[0][c] + counts[1][c]) for c in cells)
        assert chi < len(cells) + 4 * (2 * len(cells)) ** 0.5, (first, second, chi, len(cells))


def test_target_blocks_are_distributed_as_in_the_paper() -> None:
    masks = draw(MaskConfig(num_targets=1, target_tokens=25), 20_000)
    ids = zip(masks.target_ids[:, 0], masks.target_weight[:, 0] > 0, strict=True)
    rng = random.Random(1)
    wanted = [paper_block(rng, (0.075, 0.125), (0.75, 1.5)) for _ in range(20_000)]
    assert_same_distribution([bounding_block(some[real]) for some, real in ids], wanted)


def test_context_blocks_are_squares_anywhere() -> None:
    cfg = with_(ONE_PATCH, context_scale=(0.3, 0.6), context_tokens=150)
    own = ((1 - draw(cfg, 20_000).filled) * 150).round().int().tolist()  # patches of the block, before what fills up
    exact = {num: draw(with_(cfg, context_tokens=num), 20_000).context_ids for num in set(own)}  # nothing fills up
    blocks = [bounding_block(exact[num][image]) for image, num in enumerate(own)]
    rng = random.Random(1)
    assert_same_distribution(blocks, [paper_block(rng, (0.3, 0.6), (1, 1)) for _ in range(20_000)])
    assert all(
        height * width - 1 <= num <= height * width for (_, _, height, width), num in zip(blocks, own, strict=True)
    )


def test_blocks_of_one_image_are_independent() -> None:
    first, second = draw(MaskConfig(num_targets=2), 20_000).target_ids.float().mean(dim=-1).T
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.03


@recipes
def test_no_place_is_favoured(cfg: MaskConfig) -> None:
    masks = draw(cfg, 30_000)
    chances = []
    for ids in (masks.context_ids.flatten(), masks.target_ids[masks.target_weight > 0]):
        chance = torch.bincount(ids, minlength=N).view(GRID, GRID) / 30_000
        mirrored = torch.stack([chance, chance.flip(0), chance.flip(1), chance.flip(0, 1)]).mean(0)
        counted = mirrored > 0.04  # below, 30,000 images are too few to tell
        assert ((chance / mirrored - 1).abs() < 0.1)[counted].all()
        chances.append(chance)
    assert chances[1].min() > 0
    assert chances[0].min() > (0 if cfg is SALT_LONG else 0.04)  # long targets hide the middle almost always


@given(
    seed=st.integers(0, 2**31),
    start=st.integers(-1, 10**12),
    share=st.floats(0, 1),
    cfg=st.sampled_from([*RECIPES.values(), with_(USJEPA, context_tokens=124, tries=1)]),
)
@settings(max_examples=60, deadline=None)
def test_what_holds_for_any_region(seed: int, start: int, share: float, cfg: MaskConfig) -> None:
    check_masks(cfg, GRID)
    positions = torch.arange(start, start + 8)
    valid = torch.rand(8, N, generator=torch.Generator().manual_seed(seed)) < share
    valid[0] = False
    masks = draw_masks(valid, positions, cfg, seed)
    assert masks.context_ids.shape == (8, cfg.context_tokens)
    assert masks.target_ids.shape == masks.target_weight.shape == (8, cfg.num_targets, cfg.target_tokens)
    assert all(part.isfinite().all() for part in masks)
    assert not masks.target_weight[0].any()
    assert (masks.rejected >= masks.failed).all()
    for image in range(8):
        predicted = set(masks.target_ids[image][masks.target_weight[image] > 0].tolist())
        context = set(masks.context_ids[image].tolist())
        assert len(context) == cfg.context_tokens
        assert context <= set(range(N))
        assert not predicted & context
        assert valid[image][list(predicted)].all()
    for part, again in zip(masks, draw_masks(valid[3:6], positions[3:6], cfg, seed), strict=True):
        assert torch.equal(part[3:6], again)


@recipes
def test_targets_are_distinct_patches_of_their_block(cfg: MaskConfig) -> None:
    masks = draw(cfg, 50)
    area = cfg.target_scale[1] * N
    assert masks.target_weight.any(dim=(1, 2)).float().mean() > 0.9
    for ids, weight in zip(masks.target_ids.flatten(0, 1), masks.target_weight.flatten(0, 1), strict=True):
        real = ids[weight > 0]
        if not len(real):  # two long blocks can leave too little context
            continue
        _, _, height, width = bounding_block(real)
        assert len(real.unique()) == len(real) >= 10
        assert height * width < 1.35 * area


def target_blocks(cfg: MaskConfig, num: int, valid: torch.Tensor | None = None) -> list[set[int]]:
    """All valid patches of the target blocks of each image: blocks don't depend on how many tokens are kept."""
    masks = draw(with_(cfg, target_tokens=25, context_tokens=1, min_patches=1), num, valid)
    pairs = zip(masks.target_ids, masks.target_weight > 0, strict=True)
    return [set(ids[real].tolist()) for ids, real in pairs]


def test_surplus_of_a_target_stays_hidden() -> None:
    cfg = with_(USJEPA, target_tokens=5, context_tokens=40, min_patches=1)
    masks, hidden = draw(cfg, 200), target_blocks(cfg, 200)
    assert all(masks.target_weight.sum(dim=(1, 2)) == 20)
    assert all(not some & set(ids.tolist()) for some, ids in zip(hidden, masks.context_ids, strict=True))


def test_context_is_filled_from_the_region_then_outside_then_surplus() -> None:
    cfg = with_(USJEPA, target_tokens=5, context_tokens=170, context_scale=(1, 1), min_patches=1)
    valid = narrow()
    masks, blocks = draw(cfg, 100, valid), target_blocks(cfg, 100, valid)
    inside, surplus = set(valid.nonzero().flatten().tolist()), 0
    for context, hidden, filled in zip(masks.context_ids.tolist(), blocks, masks.filled.tolist(), strict=True):
        visible, outside = inside - hidden, set(range(N)) - inside
        assert set(context) >= visible
        assert len(set(context) & outside) == min(len(outside), 170 - len(visible))
        assert filled == pytest.approx(1 - len(visible) / 170)
        surplus += len(set(context) & hidden)
    assert surplus > 0


def test_the_rest_of_the_region_comes_before_what_is_outside() -> None:
    cfg = with_(ONE_PATCH, context_scale=(0.1, 0.1), context_tokens=40)
    valid = narrow()
    assert valid[draw(cfg, 200, valid).context_ids].all()


def test_context_is_filled_from_outside_the_block_only_when_it_is_used_up() -> None:
    masks = draw(with_(ONE_PATCH, context_scale=(0.25, 0.25), context_tokens=60), 200)  # a block of 7 x 7
    assert set(masks.filled.mul(60).round().int().tolist()) <= {11, 12}


def test_slots_beyond_the_block_have_weight_0() -> None:
    cfg, valid = with_(USJEPA, min_patches=1, context_tokens=20), narrow()
    everything = draw(with_(cfg, target_tokens=25), 300, valid).target_weight.sum(dim=-1)
    kept = draw(with_(cfg, target_tokens=15), 300, valid).target_weight.sum(dim=-1)
    assert torch.equal(kept, everything.clamp(max=15))
    assert everything.min() < 15


@pytest.mark.parametrize(
    ("num_valid", "tokens", "trains"), [(10, 64, False), (11, 64, True), (5, 5, False), (6, 5, True)]
)
def test_an_image_with_too_little_context_has_weight_0(num_valid: int, tokens: int, trains: bool) -> None:
    cfg = with_(ONE_PATCH, context_scale=(1, 1), min_patches=10, context_tokens=tokens)
    weight = draw(cfg, 300, torch.arange(N) < num_valid).target_weight  # a real target leaves num_valid - 1
    assert bool(weight.any()) == trains


def test_rejected_and_failed_count_blocks() -> None:
    cfg, valid = with_(USJEPA, num_targets=1), narrow()
    assert draw(USJEPA, 100).rejected.max() == 0
    empty = draw(USJEPA, 1, torch.zeros(N, dtype=torch.bool))
    assert empty.rejected == empty.failed == 1
    rng, inside, short = random.Random(2), valid.view(GRID, GRID), 0
    for _ in range(8000):
        top, left, height, width = paper_block(rng, cfg.target_scale, cfg.aspect)
        short += int(inside[top : top + height, left : left + width].sum() < cfg.min_patches)
    chance = short / 8000
    for tries in (1, 2, 4):
        masks = draw(with_(cfg, tries=tries), 8000, valid)  # the context, the other block, always keeps enough
        assert float(masks.rejected.mean()) * 2 == pytest.approx(chance, abs=0.02)
        assert float(masks.failed.mean()) * 2 == pytest.approx(chance**tries, abs=0.02)


def test_a_block_is_the_first_try_that_keeps_enough_else_the_largest() -> None:
    cfg, valid = with_(USJEPA, num_targets=1, target_tokens=25, min_patches=14), narrow()
    counts = [draw(with_(cfg, tries=1), 8000, valid), draw(with_(cfg, tries=8), 8000, valid)]
    once, often = (masks.target_weight.sum(dim=(1, 2)) for masks in counts)
    assert torch.equal(once[once >= 14].unique(), often[often >= 14].unique())
    # among the draws that keep enough none is preferred: their mean is that of single draws
    assert float(often[often >= 14].mean()) == pytest.approx(float(once[once >= 14].mean()), abs=0.15)
    failed = counts[1].failed > 0
    assert (often[failed] < 14).all()
    assert often[failed].mean() > once[once < 14].mean() + 2


def test_a_context_that_targets_cover_is_drawn_again() -> None:
    cfg = with_(USJEPA, target_scale=(0.1, 0.1), context_scale=(0.1, 0.1), min_patches=14)
    tried = draw(cfg, 1000)
    assert 0.1 < tried.rejected.mean() * 5 < 0.9  # one block of five
    assert tried.failed.mean() < tried.rejected.mean() / 3


def test_masks_depend_on_seed_and_position() -> None:
    masks = draw(USJEPA, 50)
    assert not torch.equal(draw(USJEPA, 50, seed=1).context_ids, masks.context_ids)
    assert len(masks.context_ids.unique(dim=0)) == len(masks.target_ids.unique(dim=0)) == 50


def test_masks_of_one_image_are_independent() -> None:
    valid, positions = torch.ones(2000, N, dtype=torch.bool), torch.arange(2000)
    short, long = draw_all(valid, positions, SALT, seed=1)
    assert torch.equal(short.context_ids, draw_masks(valid, positions, SALT, seed=1).context_ids)
    assert short.target_ids.shape == (2000, 8, 15)
    assert long.target_ids.shape == (2000, 2, 64)
    one, other = draw_all(valid, positions, with_(USJEPA, more=(USJEPA,)), seed=1)
    for part, another in zip(one[:2], other[:2], strict=True):
        places = torch.stack([part.flatten(1).float().mean(1), another.flatten(1).float().mean(1)])
        assert abs(torch.corrcoef(places)[0, 1]) < 0.1


def test_one_graph_compiles() -> None:
    compiled: Callable[..., Masks] = torch.compile(draw_masks, fullgraph=True, backend="aot_eager")
    valid, positions = narrow().expand(4, N), torch.arange(4)
    for part, wanted in zip(
        compiled(valid, positions, USJEPA, 0), draw_masks(valid, positions, USJEPA, 0), strict=True
    ):
        assert torch.equal(part, wanted)


def test_region_conditioning_is_a_switch_and_padding_never_counts() -> None:
    regions = torch.zeros(2, 1, 32, 32)
    regions[0, :, :16, :16] = 1
    assert valid_patches(regions, 16, MaskConfig()).tolist() == [[True, False, False, False], [False] * 4]
    assert valid_patches(regions, 16, MaskConfig(region=False)).tolist() == [[True] * 4, [False] * 4]
    assert not valid_patches(regions / 200, 16, MaskConfig()).any()


@pytest.mark.parametrize(
    ("cfg", "grid", "message"),
    [
        (
            MaskConfig(context_tokens=125),
            14,
            r"masks\.context_tokens is 125: on a 14 x 14 grid 4 targets of 18 tokens leave 124; lower it",
        ),
        (MaskConfig(target_tokens=26), 14, r"masks\.target_tokens is 26: .* a target block has at most 25 patches"),
        (with_(USJEPA, target_scale=(0.02, 0.04)), 14, r"masks\.target_tokens is 18: .* at most 9 patches"),
        (MaskConfig(min_patches=26), 14, r"masks\.min_patches is 26: .* at most 25 patches"),
        (with_(SALT, more=(MaskConfig(context_tokens=190),)), 14, r"masks\.more\.0\.context_tokens is 190"),
        (with_(SALT, more=(SALT,)), 14, r"masks\.more\.0\.more has 1 masks; list all of them in masks\.more"),
        (with_(SALT, more=(MaskConfig(region=False),)), 14, r"more\.0\.region is False and masks\.region is True"),
        (MaskConfig(), 65, r"the grid is 65 x 65 patches; at most 64 a side"),
    ],
)
def test_masks_that_cannot_be_filled_name_the_numbers(cfg: MaskConfig, grid: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_masks(cfg, grid)


@pytest.mark.parametrize("cfg", [USJEPA, IJEPA, SALT, SALT_LONG, with_(USJEPA, aspect=(0.3, 3.0))])
@pytest.mark.parametrize("grid", [7, 14, 24])
def test_the_largest_block_is_exact(cfg: MaskConfig, grid: int) -> None:
    area, aspect = torch.linspace(*cfg.target_scale, 2)[:, None] * grid**2, torch.linspace(*cfg.aspect, 20_001)
    sides = ((area * aspect).sqrt().round().clamp(1, grid), (area / aspect).sqrt().round().clamp(1, grid))
    largest = int((sides[0] * sides[1]).max())
    small = {"num_targets": 1, "context_tokens": 1, "min_patches": 1, "more": ()}
    check_masks(with_(cfg, target_tokens=largest, **small), grid)
    with pytest.raises(InputError, match=f"at most {largest} patches"):
        check_masks(with_(cfg, target_tokens=largest + 1, **small), grid)

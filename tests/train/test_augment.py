"""Augmentation: each transform beside an independent reference, and keyed by the sample position alone."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.augment import augment, centre
from train.config import AugmentConfig

OFF = AugmentConfig(
    crop_scale=(1, 1), crop_aspect=(1, 1), horizontal_flip=(0,), vertical_flip=(0,), blur=0, speckle=0, contrast=0
)
ALL = AugmentConfig(blur=1, speckle=1, contrast=1)


def with_(cfg: AugmentConfig, **changes: object) -> AugmentConfig:
    return cfg.model_copy(update=changes)


def run(
    frames: torch.Tensor, cfg: AugmentConfig, size: int, regions: torch.Tensor | None = None, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    regions = torch.full_like(frames, 255) if regions is None else regions
    positions = torch.arange(len(frames))
    return augment(frames, regions, positions, torch.zeros_like(positions), cfg, size, seed)


def noise(num: int, side: int, low: int = 0) -> torch.Tensor:
    return torch.randint(low, 256, (num, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def ramp(num: int) -> torch.Tensor:
    """Each pixel is its column, (num, 1, 256, 256) uint8."""
    return torch.arange(256, dtype=torch.uint8).expand(num, 1, 256, 256)


def crops(num: int, cfg: AugmentConfig) -> tuple[torch.Tensor, ...]:
    """Left, top, width, height of each crop as shares of the canvas, read from ramps; each (num,)."""
    found = []
    for frames in (ramp(num), ramp(num).mT.contiguous()):
        line = run(frames, cfg, 32)[0][:, 0].diagonal(dim1=1, dim2=2) * 255 + 0.5  # in pixels of the canvas
        step = (line[:, -1] - line[:, 0]) / 31
        found += [(line[:, 0] - step / 2) / 256, step * 32 / 256]
    return found[0], found[2], found[1], found[3]


def assert_uniform(values: torch.Tensor, low: float, high: float) -> None:
    """Kolmogorov-Smirnov: at this limit chance alone fails one in 10,000."""
    steps = torch.arange(1, len(values) + 1) / len(values)
    distance = ((values.sort().values - low) / (high - low) - steps).abs().max()
    assert distance < 2.23 / len(values) ** 0.5, float(distance)


def test_crops_have_uniform_area_log_aspect_and_place() -> None:
    left, top, width, height = crops(1000, with_(OFF, crop_scale=(0.2, 0.4), crop_aspect=(0.5, 2.0)))
    assert_uniform(width * height, 0.2, 0.4)
    assert_uniform((width / height).log(), -np.log(2), np.log(2))
    assert_uniform(left / (1 - width), 0, 1)
    assert_uniform(top / (1 - height), 0, 1)
    pairs = torch.corrcoef(
        torch.stack([width * height, (width / height).log(), left / (1 - width), top / (1 - height)])
    )
    assert (pairs - torch.eye(4)).abs().max() < 0.1


def test_crops_stay_on_the_canvas() -> None:
    left, top, width, height = crops(500, with_(OFF, crop_scale=(0.9, 1.0), crop_aspect=(0.5, 2.0)))
    for start, side in ((left, width), (top, height)):
        assert start.min() > -1e-3
        assert (start + side).max() < 1 + 1e-3


def test_a_whole_crop_is_the_frame_and_so_is_the_centre() -> None:
    frames = noise(2, 32)
    assert torch.allclose(run(frames, OFF, 32)[0], frames / 255, atol=1e-5)
    assert torch.allclose(centre(frames, torch.full_like(frames, 255), 32)[0], frames / 255, atol=1e-5)


@pytest.mark.parametrize("size", [40, 100])
def test_the_centre_is_resized_like_opencv_does(size: int) -> None:
    frames = noise(1, 64)
    wanted = cv2.resize(frames[0, 0].numpy() / np.float32(255), (size, size), interpolation=cv2.INTER_LINEAR)
    regions = torch.full_like(frames, 255)
    regions[..., :32] = 0
    images, inside = centre(frames, regions, size)
    assert inside.dtype == images.dtype == torch.float32
    assert torch.equal(inside, (torch.arange(size) >= size // 2).float().expand(1, 1, size, size))
    assert np.allclose(images[0, 0].numpy(), wanted * inside[0, 0].numpy(), atol=1e-4)


def test_flips_have_one_probability_for_all_or_one_per_data_set() -> None:
    frames = noise(1, 16).expand(900, -1, -1, -1)
    positions = torch.arange(900)
    datasets = positions % 3
    image = frames[0, 0] / 255

    def share(cfg: AugmentConfig, data_set: int, wanted: torch.Tensor) -> float:
        made = augment(frames, torch.full_like(frames, 255), positions, datasets, cfg, 16, seed=0)[0][:, 0]
        return float((made[datasets == data_set] - wanted).abs().amax(dim=(1, 2)).lt(1e-4).float().mean())

    sets = with_(OFF, horizontal_flip=(0, 1, 0.5), vertical_flip=(0, 0, 0))
    assert share(sets, 0, image) == 1
    assert share(sets, 1, image.flip(1)) == 1
    assert share(sets, 2, image.flip(1)) == pytest.approx(0.5, abs=0.1)
    assert share(with_(sets, horizontal_flip=(0,), vertical_flip=(0, 1, 0)), 1, image.flip(0)) == 1
    assert share(with_(OFF, horizontal_flip=(0.25,)), 1, image.flip(1)) == pytest.approx(0.25, abs=0.1)
    both = with_(OFF, horizontal_flip=(0.5,), vertical_flip=(0.5,))
    assert share(both, 0, image.flip(0, 1)) == pytest.approx(0.25, abs=0.1)


def test_the_blur_is_gaussian() -> None:
    frames = noise(2, 48)
    made = run(frames, with_(OFF, blur=1, blur_sigma=(1.2, 1.2)), 48)[0]
    for image, frame in zip(made, frames, strict=True):
        grey = frame[0].numpy() / np.float32(255)
        wanted = cv2.GaussianBlur(grey, (7, 7), 1.2, borderType=cv2.BORDER_REPLICATE)
        assert np.allclose(image[0].numpy(), wanted, atol=1e-5)


def test_each_image_has_its_own_blur() -> None:
    made = run(noise(1, 32).expand(300, -1, -1, -1), with_(OFF, blur=1, blur_sigma=(0.3, 1.5)), 32)[0]
    deviations = made.std(dim=(1, 2, 3))
    assert deviations.max() > 3 * deviations.min()


def test_speckle_has_the_configured_deviation_at_every_pixel() -> None:
    """Also between the cells of the field, where interpolation averages."""
    frames = torch.full((8000, 1, 24, 24), 102, dtype=torch.uint8)
    made = run(frames, with_(OFF, speckle=1, speckle_strength=(0.2, 0.2)), 24)[0] / 0.4
    assert torch.allclose(made.mean(dim=0), torch.tensor(1.0), atol=0.012)
    assert torch.allclose(made.std(dim=0), torch.tensor(0.2), atol=0.012)
    values = (made - 1) / 0.2
    assert (values[..., 1:] * values[..., :-1]).mean() > 0.6  # neighbours are correlated
    assert (values[..., 12:] * values[..., :-12]).mean().abs() < 0.02  # distant pixels are not
    assert ((values.abs() > 2).float().mean() - 0.0455).abs() < 0.003  # normal
    across = values[:-1] * values[1:]  # nor are two images
    assert across.mean().abs() < 0.02


def test_speckle_multiplies() -> None:
    frames = noise(20, 24, low=1)
    frames[:, :, :12] = 0
    made = run(frames, with_(OFF, speckle=1), 24)[0]
    assert not made[:, :, :11].any()
    flat = run(torch.full_like(frames, 100), with_(OFF, speckle=1), 24)[0] * 255 / 100
    wanted = (frames / 255 * flat).clamp(max=1)
    assert torch.allclose(made, wanted, atol=1e-4)


def test_contrast_scales_the_distance_to_the_mean_of_the_region() -> None:
    frames = noise(5, 32).clamp(80, 170)
    regions = torch.full_like(frames, 255)
    regions[..., :10] = 0
    for factor in (0.5, 1.3):
        made, inside = run(frames, with_(OFF, contrast=1, contrast_range=(factor, factor)), 32, regions)
        for image, frame, mask in zip(made, frames / 255, inside > 0, strict=True):
            mean = frame[mask].mean()
            assert torch.allclose(image[mask], mean + factor * (frame[mask] - mean), atol=1e-4)


@pytest.mark.parametrize("name", ["blur", "speckle", "contrast"])
def test_a_transform_hits_its_share_and_leaves_the_rest_as_it_was(name: str) -> None:
    frames = noise(1000, 16)
    made = run(frames, with_(OFF, **{name: 0.3}), 16)[0]
    change = (made - frames / 255).abs().amax(dim=(1, 2, 3))
    assert float((change > 1e-5).float().mean()) == pytest.approx(0.3, abs=0.05)


def test_transforms_are_drawn_independently() -> None:
    frames = noise(2000, 16)
    names = ("blur", "speckle", "contrast")
    made = [run(frames, with_(OFF, **{name: 0.5}), 16)[0] for name in names]
    hits = [(images - frames / 255).abs().amax(dim=(1, 2, 3)) > 1e-5 for images in made]
    assert (torch.corrcoef(torch.stack(hits).float()) - torch.eye(3)).abs().max() < 0.1


@given(seed=st.integers(0, 2**31), start=st.integers(-1, 10**12), cuts=st.lists(st.integers(1, 11), max_size=3))
@settings(max_examples=15, deadline=None)
def test_pixels_depend_on_the_position_alone(seed: int, start: int, cuts: list[int]) -> None:
    frames, positions = noise(12, 40), torch.arange(start, start + 12)
    regions = (noise(12, 40) > 60).to(torch.uint8) * 255
    datasets = positions.remainder(2)
    cfg = with_(ALL, horizontal_flip=(0.3, 0.6), vertical_flip=(0.5, 0.1))
    images, inside = augment(frames, regions, positions, datasets, cfg, 32, seed)
    assert images.shape == inside.shape == (12, 1, 32, 32)
    assert not images[inside == 0].any()
    assert set(inside.unique().tolist()) <= {0, 1}
    assert images.min() >= 0
    assert images.max() <= 1
    parts = [
        augment(*(part[low:high] for part in (frames, regions, positions, datasets)), cfg, 32, seed)
        for low, high in zip([0, *sorted(set(cuts))], [*sorted(set(cuts)), 12], strict=True)
    ]
    assert torch.allclose(torch.cat([part[0] for part in parts]), images, atol=1e-6, rtol=0)
    assert torch.equal(torch.cat([part[1] for part in parts]), inside)
    other, _ = augment(frames, regions, positions + 100, datasets, cfg, 32, seed)
    assert not torch.allclose(other, images)
    other, _ = augment(frames, regions, positions, datasets, cfg, 32, seed + 1)
    assert not torch.allclose(other, images)


def test_frame_and_region_move_alike() -> None:
    frames = noise(50, 40, low=1)
    regions = torch.full_like(frames, 255)
    regions[..., :20] = 0
    cfg = AugmentConfig(blur=0, speckle=0, contrast=0)
    images, inside = run(frames, cfg, 32, regions)
    assert torch.equal(images > 0, inside > 0)
    as_frame, _ = run(regions, cfg, 32)
    assert ((as_frame > 0.5) == (inside > 0)).float().mean() > 0.999  # a point halfway may go either way


def test_an_empty_region_is_black_and_finite() -> None:
    frames = noise(3, 24)
    images, inside = run(frames, ALL, 24, torch.zeros_like(frames))
    assert not images.any()
    assert not inside.any()

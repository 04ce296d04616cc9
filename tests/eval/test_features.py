"""Cached features: joined by key, continued after a kill, never those of another preprocessing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.datasets import LabelledSet
from eval.encoders import FrozenEncoder, of_student, open_encoder
from eval.features import Pooling, cache_of, extract, extract_tokens, pooled
from sharding.recording import InputError
from train.vit import new_student

PIECE = 4
SMALL = {"depth": 4, "embed_dim": 48, "num_heads": 2}


class Killed(BaseException):
    """Stands for a signal."""


class Counted:
    """How many images an encoder saw; it dies before it sees more than `limit`."""

    def __init__(self, encoder: FrozenEncoder) -> None:
        self.seen, self.limit = 0, 10**9
        encoder.register_forward_pre_hook(self._count)

    def _count(self, _: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if self.seen + len(inputs[0]) > self.limit:
            raise Killed
        self.seen += len(inputs[0])


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.features._PIECE", PIECE)


@pytest.fixture
def encoder() -> FrozenEncoder:
    torch.manual_seed(0)
    return of_student(new_student("vit_tiny_patch16_224", 64, SMALL), "student")


def made_set(num: int = 10, side: int = 64) -> LabelledSet:
    draws = np.random.default_rng(3)
    squares = draws.integers(0, 255, (num, 2, side, side), dtype=np.uint8)
    squares[:, 1] = 0
    squares[:, 1, :, : side // 2] = 255
    keys = np.array([f"key{n}" for n in draws.permutation(num)])
    return LabelledSet("set", squares, np.arange(num) % 2, keys, ("a", "b"), 0, keys)


def in_order(dataset: LabelledSet, order: np.ndarray) -> LabelledSet:
    return replace(dataset, **{name: getattr(dataset, name)[order] for name in ("squares", "labels", "groups", "keys")})


def test_a_second_pass_reads_and_computes_nothing(encoder: FrozenEncoder, tmp_path: Path) -> None:
    dataset, counted = made_set(), Counted(encoder)
    first = extract(encoder, dataset, "mean", tmp_path)
    assert first.dtype == np.float32
    assert counted.seen == len(dataset.keys)
    assert np.allclose(first, pooled(encoder, dataset.squares, "student"), atol=1e-5)
    counted.seen = 0
    assert np.array_equal(extract(encoder, dataset, "mean", tmp_path), first)
    assert counted.seen == 0


def test_rows_are_joined_by_key_and_not_by_order(encoder: FrozenEncoder, tmp_path: Path) -> None:
    dataset, counted = made_set(), Counted(encoder)
    first = extract(encoder, dataset, "mean", tmp_path)
    counted.seen = 0
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(first))
        assert np.array_equal(extract(encoder, in_order(dataset, order), "mean", tmp_path), first[order])
    assert counted.seen == 0


def test_another_preprocessing_encoder_or_pooling_has_another_cache(encoder: FrozenEncoder, tmp_path: Path) -> None:
    dataset = made_set()
    other_weights = of_student(new_student("vit_tiny_patch16_224", 64, SMALL), "student")
    other_mean = new_student("vit_tiny_patch16_224", 64, SMALL)
    other_mean.vit.load_state_dict(encoder.network.model.state_dict())
    other_mean.mean = 0.25
    brighter = replace(dataset, squares=np.maximum(dataset.squares, 1))
    places = [
        cache_of(encoder, dataset, "mean", tmp_path), cache_of(encoder, dataset, "last4", tmp_path),
        cache_of(encoder, dataset, "tokens", tmp_path), cache_of(other_weights, dataset, "mean", tmp_path),
        cache_of(of_student(other_mean, "student"), dataset, "mean", tmp_path),
        cache_of(encoder, brighter, "mean", tmp_path), cache_of(encoder, made_set(side=32), "mean", tmp_path),
    ]  # fmt: skip
    assert len(set(places)) == len(places)
    stale = extract(encoder, dataset, "mean", tmp_path)
    fresh = extract(of_student(other_mean, "student"), dataset, "mean", tmp_path)
    assert np.allclose(fresh, pooled(of_student(other_mean, "student"), dataset.squares, "x"), atol=1e-5)
    assert not np.allclose(fresh, stale, atol=1e-3)


@pytest.mark.parametrize("limit", range(0, 10, 2))
def test_a_killed_pass_goes_on_where_it_was(limit: int, encoder: FrozenEncoder, tmp_path: Path) -> None:
    dataset = made_set()
    whole = extract(encoder, dataset, "mean", tmp_path / "whole")
    counted = Counted(encoder)
    counted.limit = limit
    with pytest.raises(Killed):
        extract(encoder, dataset, "mean", tmp_path / "killed")
    done = counted.seen
    assert done == limit // PIECE * PIECE
    counted.seen, counted.limit = 0, 10**9
    assert np.array_equal(extract(encoder, dataset, "mean", tmp_path / "killed"), whole)
    assert counted.seen == len(whole) - done
    names = [
        {path.name: path.read_bytes() for path in cache_of(encoder, dataset, "mean", tmp_path / place).iterdir()}
        for place in ("whole", "killed")
    ]
    assert names[0].keys() == names[1].keys() == {"00000000.npz", "00000004.npz", "00000008.npz"}


def test_a_damaged_or_foreign_piece_is_refused_by_name(encoder: FrozenEncoder, tmp_path: Path) -> None:
    dataset = made_set()
    first = extract(encoder, dataset, "mean", tmp_path)
    place = cache_of(encoder, dataset, "mean", tmp_path)
    whole = (place / "00000004.npz").read_bytes()
    for broken in (whole[: len(whole) // 2], b"", whole.replace(b"key", b"kez")):
        (place / "00000004.npz").write_bytes(broken)
        with pytest.raises(InputError, match=r"cached features .*00000004.npz: damaged .*; delete the file"):
            extract(encoder, dataset, "mean", tmp_path)
    (place / "00000004.npz").write_bytes((place / "00000000.npz").read_bytes())
    with pytest.raises(InputError, match=r"00000004.npz: of other rows than the set has"):
        extract(encoder, dataset, "mean", tmp_path)
    (place / "00000004.npz").unlink()
    assert np.array_equal(extract(encoder, dataset, "mean", tmp_path), first)


def test_tokens_are_cached_like_features(encoder: FrozenEncoder, tmp_path: Path) -> None:
    dataset = made_set()
    tokens = extract_tokens(encoder, dataset, tmp_path)
    assert (tokens.shape, tokens.dtype) == ((10, 16, 48), np.float16)
    order = np.random.default_rng(0).permutation(10)
    assert np.array_equal(extract_tokens(encoder, in_order(dataset, order), tmp_path), tokens[order])
    left = tokens.reshape(10, 4, 4, 48)[:, :, :2].reshape(10, 8, 48).astype(np.float32).mean(axis=1)
    assert np.allclose(left, extract(encoder, dataset, "mean", tmp_path), atol=2e-3)


def test_poolings(encoder: FrozenEncoder, tmp_path: Path) -> None:
    dataset = made_set(3)
    last4 = extract(encoder, dataset, "last4", tmp_path)
    assert last4.shape == (3, 4 * 48)
    assert np.allclose(last4[:, -48:], extract(encoder, dataset, "mean", tmp_path), atol=1e-5)
    with pytest.raises(InputError, match="encoder student: has no class token; pool by `mean`"):
        extract(encoder, dataset, "cls", tmp_path)
    vit = open_encoder("random:vit_tiny_patch16_224")
    cls = vit(torch.from_numpy(dataset.squares[:, :1]) / 255.0).cls
    assert cls is not None
    assert np.allclose(extract(vit, dataset, "cls", tmp_path), cls.numpy(), atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "last4"])
def test_pixels_pool_by_mean_alone(pooling: Pooling, tmp_path: Path) -> None:
    pixels, dataset = open_encoder("pixels"), made_set(3)
    assert extract(pixels, dataset, "mean", tmp_path).shape == (3, 1024)
    with pytest.raises(InputError, match="encoder pixels: has"):
        extract(pixels, dataset, pooling, tmp_path)


def test_what_is_no_number_or_no_key_is_refused(encoder: FrozenEncoder, tmp_path: Path) -> None:
    dataset = made_set()
    twice = replace(dataset, keys=np.where(dataset.keys == "key1", "key2", dataset.keys))
    with pytest.raises(InputError, match="set set: key key2 is there twice"):
        extract(encoder, twice, "mean", tmp_path)
    encoder.network.model.norm.weight.data.fill_(1e6)
    with pytest.raises(InputError, match="encoder student: gives values that float16 cannot hold"):
        extract_tokens(encoder, dataset, tmp_path)

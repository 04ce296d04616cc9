"""A few bad samples over several epochs: counted once per epoch, with one verdict however often a run is stopped."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed

from sharding.loader import StreamConfig, micro_batches
from sharding.recording import InputError
from sharding.stream import PositionDataset
from sharding.tar_index import load_index
from tests.sharding.streams import open_stream
from tests.train.tiny import checkpoint, different, losses, metrics, write_config
from train.bad_samples import BadSamples
from train.config_file import load_config
from train.run import main

pytestmark = pytest.mark.usefixtures("alone")
CPU = torch.device("cpu")
BATCH = 8


@pytest.fixture
def spoil(shards: Path, tmp_path: Path) -> Callable[[int, str], Path]:
    """A copy of the shards in which the first frames of the first tar of a split cannot be decoded."""

    def make(num: int, split: str = "train") -> Path:
        copy = tmp_path / f"bad-{split}-{num}"
        shutil.copytree(shards, copy)
        path = min(copy.glob(f"{split}-*.tar"))
        index, data = load_index(path), bytearray(path.read_bytes())
        for start, end in zip(index[".jpg"][:num], index[".jpg/end"][:num], strict=True):
            data[start:end] = bytes(end - start)
        path.write_bytes(data)
        return copy

    return make


def read(dataset: PositionDataset, bad: BadSamples, start: int, end: int, every: int = 3) -> int | None:
    """Steps from start to end, settled as a run that logs would; the step of the verdict, None where there is none."""
    stream = micro_batches(dataset, StreamConfig(BATCH, 0, 1, 0), start)
    for step in range(start, end):
        bad.add([next(stream)])
        if (step + 1) % every == 0:
            try:
                bad.settle((step + 1) * BATCH, CPU)
            except InputError:
                return step
    return None


@pytest.mark.parametrize(("num_bad", "allowed", "dies"), [(1, 1, False), (2, 2, False), (3, 2, True)])
def test_each_bad_sample_counts_once_an_epoch_and_a_resumed_run_ends_where_an_undisturbed_one_does(
    spoil: Callable[[int], Path], tmp_path: Path, num_bad: int, allowed: int, dies: bool
) -> None:
    dataset = open_stream([str(spoil(num_bad))], tmp_path, batch=BATCH)
    num = dataset.order.num_samples
    fraction, steps = (allowed + 0.5) / num, 5 * num // BATCH
    verdict = read(dataset, BadSamples(num, fraction), 0, steps)
    assert (verdict is not None) == dies
    for stop in range(3, (verdict or steps) + 1, 3):  # a checkpoint holds what was settled
        first, second = BadSamples(num, fraction), BadSamples(num, fraction)
        assert read(dataset, first, 0, stop) is None
        second.state.copy_(first.state)
        assert read(dataset, second, stop, steps) == verdict


def test_all_epochs_since_the_last_time_are_looked_at(spoil: Callable[[int], Path], tmp_path: Path) -> None:
    dataset = open_stream([str(spoil(3))], tmp_path, batch=BATCH)
    num, bad = dataset.order.num_samples, BadSamples(dataset.order.num_samples, 1)
    stream = micro_batches(dataset, StreamConfig(BATCH, 0, 1, 0), 0)
    for _ in range(2 * num // BATCH):
        bad.add([next(stream)])
    everything = bad.settle(2 * num // BATCH * BATCH, CPU)
    assert sum(everything.values()) <= 3  # of the second epoch alone
    bad = BadSamples(num, 2.5 / num)
    bad.add([dataset.batch(np.arange(num)), dataset.batch(np.arange(num, num + 1))])
    sentence = (
        rf"data: 3 samples of epoch 1 cannot be read so far \(3 undecodable\); data.max_bad_fraction \S+ of its {num} "
        r"allows 2; one of them: shard .*/train-\S+\.tar: .*sample \S+: .*jpg"
    )
    with pytest.raises(InputError, match=sentence):
        bad.settle(num + 1, CPU)


def run(config: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)  # the group is the session's
    main(load_config(config, list(overrides)))


def test_a_run_of_several_epochs_survives_a_bad_sample_and_can_be_continued(
    spoil: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = spoil(1)
    num = open_stream([str(shards)], tmp_path, batch=BATCH).order.num_samples
    steps = 3 * num // BATCH
    settings = (
        f"data.max_bad_fraction={1.5 / num}",
        f"optim.steps={steps}",
        f"run.save_every={steps // 2}",
        "run.keep=9",
    )
    config = write_config(tmp_path, "whole", shards, *settings, "run.micro_batch=8", "data.val_samples=0")
    run(config, monkeypatch)
    assert max(metrics(tmp_path / "whole", "data/bad_undecodable")) == 1
    shutil.copytree(
        tmp_path / "whole",
        tmp_path / "again",
        ignore=shutil.ignore_patterns(f"step-{steps:08d}*", "encoder", "run.json"),
    )
    run(config, monkeypatch, f"run.dir={tmp_path / 'again'}")
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")
    assert metrics(tmp_path / "again", "data/bad_undecodable") == metrics(tmp_path / "whole", "data/bad_undecodable")
    assert different(checkpoint(tmp_path / "again", steps), checkpoint(tmp_path / "whole", steps)) == []


def test_bad_samples_of_the_val_split_are_counted_too(
    spoil: Callable[[int, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(
        tmp_path, "run", spoil(1, "val"), "optim.steps=2", "run.micro_batch=8", "data.val_samples=999"
    )
    with pytest.raises(InputError) as error:
        run(config, monkeypatch)
    assert re.search(
        r"data: 1 samples of the val split cannot be read so far .*; one of them: shard .*/val-", str(error.value)
    )
    run(config, monkeypatch, "data.max_bad_fraction=0.5", f"run.dir={tmp_path / 'other'}")
    assert metrics(tmp_path / "other", "val/bad_samples") == [1]

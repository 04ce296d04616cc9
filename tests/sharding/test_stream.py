"""The stream: any topology gives the same batches, strangers' tars are read, bad samples are counted."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.loader import StreamConfig, micro_batches
from sharding.manifest import load_manifest
from sharding.preprocess import stretch, to_square
from sharding.reader import BadSampleError, ShardReader
from sharding.recording import InputError
from sharding.stream import CAUSES, PositionDataset, split_pixels
from sharding.tar_index import load_index, scan
from tests.conftest import ROOT
from tests.sharding.streams import global_batches, open_stream, picture, write_tar


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("US_JEPA_CACHE", str(folder))
    return folder


@pytest.fixture
def dataset(shards: Path, tmp_path: Path) -> PositionDataset:
    return open_stream([str(shards)], tmp_path, batch=12, cap=40)


@given(
    world=st.integers(1, 16), micro_batch=st.integers(1, 7), start=st.integers(0, 6), batch=st.sampled_from([6, 7, 12])
)
@settings(max_examples=20, deadline=None)
def test_every_topology_sees_the_same_pixels_crops_and_masks(
    shards: Path, tmp_path_factory: pytest.TempPathFactory, world: int, micro_batch: int, start: int, batch: int
) -> None:
    dataset = open_stream([str(shards)], tmp_path_factory.getbasetemp(), batch=batch, cap=40)
    alone = global_batches(dataset, 0, 8, micro_batch=batch)
    assert len(set(alone)) == 8
    assert global_batches(dataset, start, 2, micro_batch, world) == alone[start : start + 2]


@pytest.mark.parametrize("canvas", [48, 45])
def test_pixels_split_into_the_frame_and_region_of_each_row(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, canvas: int
) -> None:
    monkeypatch.setattr("tests.sharding.streams.CANVAS", canvas)
    dataset = open_stream([str(shards)], tmp_path)
    positions = dataset.order.of_step(0)
    frames, regions = split_pixels(dataset.batch(positions).pixels)
    for row, sample in dataset.samples(positions):
        assert not isinstance(sample, Exception)
        frame = stretch(sample.frame, sample.region, sample.meta.percentiles)
        assert (torch.cat([frames[row], regions[row]]).numpy() == to_square(frame, sample.region, canvas)).all()


def test_each_row_says_its_data_set(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    write_tar(folder / "a.tar", [f"{number}.png" for number in range(40)])
    dataset = open_stream([str(shards), str(folder)], tmp_path, batch=16)
    positions = np.append(dataset.order.of_step(0), -1)
    batch = dataset.batch(positions)
    assert set(batch.datasets.tolist()) == {0, 1}
    assert (batch.datasets.numpy()[:-1] == dataset.order.at(positions[:-1]).datasets).all()
    assert batch.datasets[-1] == 0


@pytest.mark.parametrize(("num_workers", "world"), [(1, 1), (3, 2), (8, 1)])
def test_workers_change_nothing(dataset: PositionDataset, num_workers: int, world: int) -> None:
    assert global_batches(dataset, 2, 3, 5, world, num_workers) == global_batches(dataset, 0, 5, 12)[2:]


def test_a_pass_has_every_training_key_once(shards: Path, tmp_path: Path) -> None:
    dataset = open_stream([str(shards)], tmp_path)
    keys = [sample.key for _, sample in dataset.samples(np.arange(dataset.order.num_samples))]  # type: ignore[union-attr]
    manifest = load_manifest(shards)
    wanted = [s.key for info in manifest.shards if info.split == "train" for s in ShardReader(shards / info.name)]
    assert sorted(keys) == sorted(wanted)


def test_pairs_of_one_clip_in_a_batch_are_as_rare_as_chance(shards: Path, tmp_path: Path) -> None:
    dataset = open_stream([str(shards)], tmp_path, batch=16)
    num = dataset.order.num_samples
    clips = np.empty(num, dtype=object)
    for row, sample in dataset.samples(np.arange(num)):
        clips[row] = sample.meta.clip  # type: ignore[union-attr]
    counts = np.unique(clips.astype(str), return_counts=True)[1]
    ideal = (counts * (counts - 1)).sum() / (num * (num - 1))
    same = total = 0
    for epoch in range(40):
        placed = np.empty(num, dtype=object)
        for row, sample in dataset.samples(np.arange(num) + epoch * num):
            placed[row] = sample.meta.clip  # type: ignore[union-attr]
        for batch in placed[: num // 16 * 16].reshape(-1, 16):
            same += (batch[:, None] == batch).sum() - 16
            total += 16 * 15
    assert same / total < 1.5 * ideal


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("long", ["", "x" * 120])
def test_tars_of_strangers_are_read_as_webdataset_reads_them(tar_format: int, long: str, tmp_path: Path) -> None:
    if long and tar_format == tarfile.USTAR_FORMAT:
        long = "y" * 60 + "/" + "x" * 60  # split over name and prefix
    names = [f"{long}/s{number:03d}.a.png" for number in range(5)] + ["b.png", "b.cls.png", "c.png"]
    path = write_tar(tmp_path / "t.tar", [name.lstrip("/") for name in names], tar_format)
    theirs = [sample["__key__"] for sample in webdataset.WebDataset([str(path)], shardshuffle=False)]
    assert [key.decode() for key in load_index(path)["key"]] == theirs


def test_a_folder_of_pictures_streams(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    write_tar(folder / "a.tar", [f"{number}.png" for number in range(9)])
    write_tar(folder / "b.tar", [f"x{number}.jpg" for number in range(4)])
    dataset = open_stream([str(folder)], tmp_path)
    assert dataset.order.num_samples == 13
    found = {sample.key: sample for _, sample in dataset.samples(np.arange(13)) if not isinstance(sample, Exception)}
    assert (found["3"].frame == picture(3)).all()
    assert found["3"].region.all()
    alone = open_stream([f"{folder}/{{a,b}}.tar"], tmp_path)
    assert global_batches(alone, 0, 3) == global_batches(dataset, 0, 3)


@given(data=st.binary(max_size=1200), place=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_data_that_looks_like_headers_is_data(
    data: bytes, place: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    inner = (folder / "inner.tar").read_bytes() if (folder / "inner.tar").exists() else b""
    if not inner:
        inner = write_tar(folder / "inner.tar", ["p.png", "q.png"]).read_bytes()
    path = folder / "outer.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, content in enumerate([inner[: 512 * place], data, inner, b""]):
            (folder / "member").write_bytes(content)
            tar.add(folder / "member", f"s{number}.bin")
    with tarfile.open(path) as tar:
        wanted = [(m.name.split(".")[0], m.offset_data, m.offset_data + m.size) for m in tar]
    assert [(key.decode(), start, end) for key, start, end in scan(path).tolist()] == wanted


def test_what_is_no_tar_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(InputError, match=r"x\.tar: not an uncompressed tar .*make it again"):
        load_index(tmp_path / "x.tar")


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    shutil.copytree(shards, tmp_path / "copy")
    return tmp_path / "copy"


def test_bad_samples_are_counted_by_cause_and_weigh_nothing(copy: Path, tmp_path: Path) -> None:
    dataset = open_stream([str(copy)], tmp_path, batch=12)
    whole = dataset.batch(dataset.order.of_step(0))
    for path in copy.glob("train-*.tar"):
        index, data = load_index(path), bytearray(path.read_bytes())
        for start, end in list(zip(index[".jpg"], index[".jpg/end"], strict=True))[::2]:
            data[start:end] = bytes(end - start)
        path.write_bytes(data)
    places = dataset.order.at(dataset.order.of_step(0))
    bad = places.indices % 2 == 0
    assert 0 < bad.sum() < 12
    batch = open_stream([str(copy)], tmp_path, batch=12).batch(dataset.order.of_step(0))
    assert dict(zip(CAUSES, batch.num_bad.tolist(), strict=True)) == {
        "missing": 0, "undecodable": bad.sum(),
    }  # fmt: skip
    assert ((batch.positions < 0).numpy() == bad).all()
    assert not batch.pixels[bad].any()
    assert torch.equal(batch.pixels[~bad], whole.pixels[~bad])


def test_a_tar_that_holds_less_than_its_manifest_says(copy: Path, tmp_path: Path) -> None:
    """Samples that are not there are bad; a tar that ends inside a sample is no tar."""
    path = copy / load_manifest(copy).shards[0].name
    dataset = open_stream([str(copy)], tmp_path)
    whole, index = path.read_bytes(), load_index(path)
    path.write_bytes(whole[: index[".jpg"][5] - 512] + bytes(1024))
    with ShardReader(path) as reader:
        assert len(reader) == 5
        with pytest.raises(BadSampleError, match=r"train-00000-000\.tar: sample 5 of 5") as caught:
            reader[5]
        assert caught.value.cause == "missing"
    num = dataset.order.num_samples
    assert dataset.batch(np.arange(num)).num_bad.tolist() == [len(index) - 5, 0]
    path.write_bytes(whole[: index[".jpg"][5] + 10])
    with pytest.raises(
        InputError, match=r"train-00000-000\.tar: cut short: it stops in the data after .*; get it again"
    ):
        ShardReader(path)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_that_is_gone_stops_the_run_in_one_sentence(copy: Path, tmp_path: Path, num_workers: int) -> None:
    dataset = open_stream([str(copy)], tmp_path)
    for path in copy.glob("*.tar"):
        path.unlink()
    with pytest.raises(InputError, match=r"^rank 1: shard .*\.tar: No such file or directory; bring it back"):
        next(micro_batches(dataset, StreamConfig(4, 1, 2, num_workers), 0))


@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_is_said_with_its_rank_and_shards(dataset: PositionDataset, what: int) -> None:
    mine = psutil.Process()
    before = {child.pid for child in mine.children(recursive=True)}
    batches = micro_batches(dataset, StreamConfig(4, 1, 2, num_workers=1, seconds=10), 3)
    next(batches)
    workers = [
        child
        for child in mine.children(recursive=True)
        if child.pid not in before and "forkserver" in " ".join(psutil.Process(child.ppid()).cmdline())
    ]
    for worker in workers:
        worker.send_signal(what)
    try:
        with pytest.raises(RuntimeError, match=r"^rank 1, step \d+, shards \S+\.tar.*: a decoding process died or sto"):
            list(itertools.islice(batches, 10))
    finally:
        for worker in workers:
            if worker.is_running():
                worker.kill()


_READ_FOR_EVER = """
import sys, time
from pathlib import Path
from sharding.loader import StreamConfig, micro_batches
from tests.sharding.streams import open_stream

if __name__ == "__main__":
    batches = micro_batches(open_stream([sys.argv[1]], Path(sys.argv[2])), StreamConfig(4, 0, 1, num_workers=2), 0)
    next(batches)
    print("reading", flush=True)
    time.sleep(600)
"""


def test_a_killed_training_process_leaves_no_decoding_process_behind(shards: Path, tmp_path: Path) -> None:
    script = tmp_path / "read.py"
    script.write_text(_READ_FOR_EVER)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(shards), str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    left = psutil.Process(process.pid).children(recursive=True)
    assert len(left) >= 3  # the fork server and two workers
    process.kill()
    process.wait()
    assert not psutil.wait_procs(left, timeout=20)[1]

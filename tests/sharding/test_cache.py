"""Remote shards: the same batches as local ones through faults, within bounds, shared by processes."""

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import boto3
import numpy as np
import psutil
import pytest

from pipeline.bench.faults import FaultyProxy
from sharding.cache import ShardCache
from sharding.loader import StreamConfig, micro_batches
from sharding.manifest import load_manifest
from sharding.prefetch import Prefetcher
from sharding.recording import InputError
from sharding.shard import Shard
from sharding.shard_set import find_shards
from sharding.store import Store
from sharding.stream import PositionDataset
from tests.sharding.conftest import forget_servers
from tests.sharding.streams import global_batches, open_stream, write_tar


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("US_JEPA_CACHE", str(folder))
    monkeypatch.setattr("sharding.cache._FIRST_PAUSE", 0.01)
    return folder


def pipe(folder: Path, number: int, num_bytes: int = 1000) -> Shard:
    """A shard that comes through a pipe, and whose fetches are counted in a file beside it."""
    path = folder / f"{number}.tar"
    path.write_bytes(bytes([number]) * num_bytes)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Shard(f"pipe:echo x >> {path}.count; cat {path}", 1, num_bytes, digest)


def num_fetches(folder: Path, number: int) -> int:
    count = folder / f"{number}.tar.count"
    return len(count.read_text().split()) if count.exists() else 0


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in {".tar", ".part"})


def test_a_shard_is_fetched_once_and_checked(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "c", 10_000)
    shard = pipe(tmp_path, 1)
    assert cache.fetch(shard).read_bytes() == cache.fetch(shard).read_bytes() == bytes([1]) * 1000
    assert num_fetches(tmp_path, 1) == 1
    (tmp_path / "2.tar").write_bytes(b"other")
    wrong = Shard(f"pipe:cat {tmp_path}/2.tar", 1, 5, "0" * 64)
    with pytest.raises(InputError, match=r"not fetched in 6 tries \(sha256 is .*, the manifest says 000000000000"):
        cache.fetch(wrong)
    short = Shard(f"pipe:head -c 3 {tmp_path}/2.tar", 1, 5, "0" * 64)
    with pytest.raises(InputError, match="3 bytes came, the manifest says 5"):
        cache.fetch(short)
    with pytest.raises(InputError, match="exit code 7"):
        cache.fetch(Shard("pipe:exit 7", 1, 0))
    assert sorted(path.suffix for path in cache.folder.iterdir()) == [".lock"] * 4 + [".tar"]


def test_the_longest_unused_goes_and_what_is_pinned_stays(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "c", 3000)
    shards = [pipe(tmp_path, number) for number in range(5)]
    with cache.pin(shards[0]), cache.pin(shards[1]):
        for number in (2, 3, 4):
            cache.pin(shards[number]).close()
            assert used(cache.folder) <= 3000
        assert [cache.path_of(shard).exists() for shard in shards] == [True, True, False, False, True]
    cache.pin(shards[0]).close()  # used again, so 1 is the longest unused
    cache.fetch(shards[3])
    assert [cache.path_of(shard).exists() for shard in shards] == [True, False, False, True, True]


def test_a_cache_that_is_too_small_says_so(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "c", 1500, seconds=0.2)
    with pytest.raises(InputError, match="500 bytes are less than shard"):
        ShardCache(tmp_path / "d", 500).fetch(pipe(tmp_path, 1))
    with cache.pin(pipe(tmp_path, 1)), pytest.raises(InputError, match=r"in use, none for shard .* data\.window"):
        cache.fetch(pipe(tmp_path, 2))


def _fetch_all(folder: Path, shards: list[Shard]) -> None:
    cache = ShardCache(folder, 3000)
    for shard in shards:
        with cache.pin(shard) as file:
            assert hashlib.sha256(file.read()).hexdigest() == shard.sha256


def test_processes_share_and_stay_within_the_bound(tmp_path: Path) -> None:
    shards = [pipe(tmp_path, number) for number in range(6)]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fetch_all, args=(tmp_path / "c", shards[k:] + shards[:k])) for k in range(4)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        assert not (tmp_path / "c").exists() or _used_now(tmp_path / "c") <= 3000
    assert [process.exitcode for process in processes] == [0] * 4


def _used_now(folder: Path) -> int:
    """Bytes at one moment: while we hold the lock nobody evicts or reserves, and a file may only change its name."""
    with (folder / "room.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        sizes = {}
        for path in folder.iterdir():
            if path.suffix in {".tar", ".part"}:
                with suppress(FileNotFoundError):  # complete since, under its other name
                    sizes[path.stat().st_ino] = path.stat().st_size
        return sum(sizes.values())


def test_a_killed_fetch_leaves_no_lock_and_no_bytes(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "c", 1500, seconds=20)
    slow, other = pipe(tmp_path, 1), pipe(tmp_path, 2)
    process = multiprocessing.get_context("fork").Process(
        target=cache.fetch, args=(Shard(f"pipe:sleep 60; {slow.place.removeprefix('pipe:')}", 1, 1000, slow.sha256),)
    )
    process.start()
    while not list((tmp_path / "c").glob("*.part")) or not used(tmp_path / "c"):
        time.sleep(0.01)
    commands = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
    process.join()
    for command in commands:
        command.kill()
    assert cache.fetch(other).exists()
    assert cache.fetch(slow).read_bytes() == bytes([1]) * 1000


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "1.tar").write_bytes(bytes(1 << 20))
    code = (
        "import sharding.cache as c; from sharding.shard import Shard; c._FIRST_PAUSE = .01; from pathlib import Path\n"
        f"c.ShardCache(Path('{disk}/c'), 1 << 30).fetch(Shard('pipe:cat {tmp_path}/1.tar', 1, 1 << 20))"
    )
    (tmp_path / "run.py").write_text(code)
    script = f"mount -t tmpfs -o size=200k tmpfs {disk} || exit 99; {sys.executable} {tmp_path}/run.py"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("no right to mount a small disk here")
    assert "InputError: shard pipe:cat" in done.stderr
    assert "No space left on device" in done.stderr


def test_prefetch_runs_ahead_within_its_bytes_and_lets_go(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "c", 10_000)
    shards = [pipe(tmp_path, number) for number in range(8)]
    prefetcher = Prefetcher(cache, lambda step: [shards[step % 8]], 0, max_bytes=3000)
    _wait(lambda: num_fetches(tmp_path, 2) == 1)
    time.sleep(0.2)
    assert num_fetches(tmp_path, 3) == 0
    prefetcher.reached(2)
    _wait(lambda: num_fetches(tmp_path, 4) == 1)
    assert num_fetches(tmp_path, 5) == 0
    assert _is_free(cache.path_of(shards[0]))
    assert not _is_free(cache.path_of(shards[2]))
    prefetcher.close()
    assert _is_free(cache.path_of(shards[2]))


def test_prefetch_holds_a_bounded_number_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny shards would all fit the bytes, and each pin is an open file; what the first step needs is no exception."""
    monkeypatch.setattr("sharding.prefetch._MAX_PINS", 3)
    cache = ShardCache(tmp_path / "c", 100_000)
    shards = [pipe(tmp_path, number) for number in range(6)]
    prefetcher = Prefetcher(cache, lambda step: shards if step == 0 else [], 0, max_bytes=100_000)
    _wait(lambda: num_fetches(tmp_path, 2) == 1)
    for shard in shards:  # a worker gets what has no place among the pins
        cache.pin(shard).close()
    assert sum(not _is_free(cache.path_of(shard)) for shard in shards) == 3
    prefetcher.close()
    assert all(_is_free(cache.path_of(shard)) for shard in shards)


def _wait(condition: object) -> None:
    deadline = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _is_free(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.fixture
def proxy(shards: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The shards in a bucket, behind a proxy that is still faultless."""
    address = os.environ["AWS_ENDPOINT_URL_S3"]
    client = boto3.client("s3", endpoint_url=address)
    for path in [*shards.glob("*.tar"), shards / "manifest.json"]:
        client.upload_file(str(path), "scans", f"set/{path.name}")
    host, port = address.removeprefix("http://").split(":")
    proxy = FaultyProxy(host, int(port), share=0.0)
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, proxy.url)
    forget_servers()
    yield proxy
    proxy.close()


@pytest.mark.launch
def test_remote_batches_are_the_local_ones_whatever_the_network_does(
    shards: Path, tmp_path: Path, proxy: FaultyProxy
) -> None:
    local = global_batches(open_stream([str(shards)], tmp_path), 1, 4)
    proxy.share = 0.5
    for number in range(4):
        remote = open_stream(["s3://scans/set"], tmp_path / str(number))
        assert global_batches(remote, 1, 4) == local
        assert used(tmp_path / str(number) / "cache") <= 1 << 30
    assert sum(proxy.done.values()) > 3
    assert global_batches(open_stream(["s3://scans/set"], tmp_path / "w"), 1, 4, 3, 2, num_workers=1) == local


@pytest.mark.launch
def test_a_remote_tar_without_a_manifest_is_fetched_and_scanned_once(
    tmp_path: Path, proxy: FaultyProxy, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tars = [name for name in Store("s3://scans/set").names("", ".tar") if name.startswith("train-")]
    places, gets = [f"s3://scans/set/{name}" for name in tars], []
    monkeypatch.setattr(proxy, "fault", lambda: gets.append(1) or "")  # asked at every GET of a tar
    dataset = open_stream(places, tmp_path)
    assert len(gets) == len(tars)
    num = dataset.order.num_samples
    assert dataset.batch(np.arange(num)).num_bad.tolist() == [0, 0]
    assert len(gets) == len(tars)
    digests = {hashlib.sha256(Store("s3://scans/set").read(name)).hexdigest() for name in tars}
    assert {path.stem for path in (tmp_path / "cache").glob("*.tar")} == digests
    assert len(list((cache_folder / "index").iterdir())) == len(tars)


def test_processes_that_count_at_once_fetch_once(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", ["a.png", "b.png"])
    place = f"pipe:echo x >> {path}.count; cat {path}; : .tar"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=find_shards, args=(place, ShardCache(tmp_path / "c", 10**6))) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "a.tar.count").read_text() == "x\n"


@pytest.mark.launch
def test_a_shard_that_never_comes_is_one_sentence_with_rank_and_shard(tmp_path: Path, proxy: FaultyProxy) -> None:
    dataset = open_stream(["s3://scans/set"], tmp_path)
    proxy.share, proxy.kinds = 1.0, ("corrupt",)
    with pytest.raises(InputError, match=r"^rank 1: shard s3://scans/set/train-\S+: not fetched in 6 tries"):
        next(micro_batches(dataset, StreamConfig(4, 1, 2, 0), 0))


def test_a_step_that_needs_more_than_the_cache_is_refused_at_the_start(shards: Path, tmp_path: Path) -> None:
    dataset = _piped(shards, tmp_path, max_bytes=2000)
    with pytest.raises(InputError, match=r"step 0 needs shards of \d+ bytes on rank 0, whose part .* is 2000"):
        next(micro_batches(dataset, StreamConfig(4, 0, 1, 0), 0))


def _piped(shards: Path, tmp_path: Path, max_bytes: int) -> PositionDataset:
    """The shards as tars of a stranger behind pipes, counted once with room enough."""
    places = [f"pipe:cat {shards}/{info.name}" for info in load_manifest(shards).shards if info.split == "train"]
    open_stream(places, tmp_path / "count")
    return open_stream(places, tmp_path, max_bytes=max_bytes)


def test_a_windowed_stream_runs_in_a_cache_smaller_than_the_set(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    for number in range(12):
        write_tar(folder / f"{number:02d}.tar", [f"{number}-{k}.png" for k in range(8)])
    place = f"pipe:cat {folder}/{{00..11}}.tar"
    total = sum(path.stat().st_size for path in folder.glob("*.tar"))
    local = open_stream([str(folder)], tmp_path, batch=1, window=8)
    wanted = global_batches(local, 0, 96, micro_batch=1)
    open_stream([place], tmp_path / "count", batch=1)
    remote = open_stream([place], tmp_path, batch=1, window=8, max_bytes=total // 2)
    assert global_batches(remote, 0, 96, micro_batch=1) == wanted
    assert used(tmp_path / "cache") <= total // 2


def test_what_was_counted_must_stay_the_same(tmp_path: Path, cache_folder: Path) -> None:
    path = write_tar(tmp_path / "a.tar", ["a.png", "b.png"])
    place = f"pipe:cat {path}"
    open_stream([place], tmp_path)
    assert json.loads(next((cache_folder / "remote").glob("*.json")).read_text())["num_samples"] == 2
    write_tar(path, ["c.png", "d.png"])
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(InputError, match="not fetched in 6 tries"):
        global_batches(open_stream([place], tmp_path), 0, 1)


def test_a_shard_that_goes_between_fetch_and_pin_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = ShardCache.fetch

    def fetch_and_lose_once(cache: ShardCache, shard: Shard) -> Path:
        path = fetch(cache, shard)
        if num_fetches(tmp_path, 1) == 1:
            path.unlink()
        return path

    monkeypatch.setattr(ShardCache, "fetch", fetch_and_lose_once)
    with ShardCache(tmp_path / "c", 10_000).pin(pipe(tmp_path, 1)) as file:
        assert file.read() == bytes([1]) * 1000
    assert num_fetches(tmp_path, 1) == 2
